//! Paths in an image, which are text: always absolute, without `.` and `..`.

/// `path`, which may be relative to `base`, without `.`, `..` and double slashes.
pub(crate) fn absolute(base: &str, path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let whole = if path.starts_with('/') { path.to_owned() } else { format!("{base}/{path}") };
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_made_absolute() {
        for (base, path, wanted) in [
            ("/", "a", "/a"),
            ("/w", "a/b/", "/w/a/b"),
            ("/w", "/a//b/../c", "/a/c"),
            ("/w", "../../..", "/"),
            ("", ".", "/"),
        ] {
            assert_eq!(absolute(base, path), wanted, "{base} {path}");
        }
    }
}
