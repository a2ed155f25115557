//! The header `WWW-Authenticate`: what a registry wants to see.

/// Longest header that is read.
const HEADER_BYTES_MAX: usize = 8 * 1024;

/// A way to authenticate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    /// A token from a service. The scope that a registry proposes is not read: a token is for what is asked for.
    Bearer {
        realm: String,
        service: Option<String>,
    },
}

/// The ways in a header that this crate knows. Malformed ones are left out.
pub(crate) fn parse(header: &str) -> Vec<Challenge> {
    if header.len() > HEADER_BYTES_MAX {
        return Vec::new();
    }
    let mut found = Vec::new();
    let mut scheme: Option<(String, Vec<(String, String)>)> = None;
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if rest.is_empty() {
            break;
        }
        let Some((word, after)) = token(rest) else { break };
        if let Some(value) = after.trim_start_matches([' ', '\t']).strip_prefix('=') {
            let Some((value, after)) = parameter(value.trim_start_matches([' ', '\t'])) else { break };
            if let Some((_, parameters)) = &mut scheme {
                parameters.push((word.to_ascii_lowercase(), value));
            }
            rest = after;
        } else {
            found.extend(scheme.take().and_then(finish));
            scheme = Some((word.to_ascii_lowercase(), Vec::new()));
            rest = after;
        }
    }
    found.extend(scheme.and_then(finish));
    found
}

fn finish((scheme, parameters): (String, Vec<(String, String)>)) -> Option<Challenge> {
    let get = |name: &str| parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    match scheme.as_str() {
        "basic" => Some(Challenge::Basic),
        "bearer" => Some(Challenge::Bearer { realm: get("realm")?, service: get("service") }),
        _ => None,
    }
}

fn token(text: &str) -> Option<(&str, &str)> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let end = text.bytes().position(|byte| !good(byte)).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

/// A token or a quoted string.
fn parameter(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        return token(text).map(|(value, rest)| (value.to_owned(), rest));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>) -> Challenge {
        Challenge::Bearer { realm: realm.to_owned(), service: service.map(str::to_owned) }
    }

    #[test]
    fn challenges_are_read() {
        for (header, expected) in [
            (
                r#"Bearer realm="https://auth.example/token",service="r.example",scope="repository:a/b:pull,push""#,
                vec![bearer("https://auth.example/token", Some("r.example"))],
            ),
            (r#"Basic realm="x, Bearer realm=\"y\"""#, vec![Challenge::Basic]),
            (r#"Basic realm="x" , bearer Realm = "y""#, vec![Challenge::Basic, bearer("y", None)]),
            ("Negotiate, Basic", vec![Challenge::Basic]),
            ("Bearer service=x", vec![]),
            (r#"Bearer realm="unfinished"#, vec![]),
            ("", vec![]),
            ("=,=", vec![]),
        ] {
            assert_eq!(parse(header), expected, "{header}");
        }
        assert_eq!(parse(&format!("Basic {}", "x".repeat(9000))), vec![]);
    }
}
