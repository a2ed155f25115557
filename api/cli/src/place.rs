//! Where `cp` reads or writes: a local path, a path in a box, or a standard stream.
//!
//! The rule for the colon is that of scp: a word is `BOX:PATH` when a colon comes before any slash. A local file with
//! a colon in its name is written `./a:b`.

use std::convert::Infallible;
use std::path::PathBuf;
use std::str::FromStr;

/// Home and work folder of a box; relative paths start here.
pub(crate) const HOME: &str = "/workspace/home";

/// One end of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// A path on this machine.
    Local {
        /// The path.
        path: PathBuf,
        /// Written with `/.` at its end: the content, not the directory.
        content_only: bool,
        /// Written with `/` at its end: must be a directory.
        directory: bool,
    },
    /// A path in a box.
    Remote(Remote),
    /// Standard input or output.
    Stream,
}

/// A path in a box.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Remote {
    /// Id or name; none means $BOX_ID.
    pub(crate) name: Option<String>,
    /// Absolute, without a slash at its end (but for the root itself).
    pub(crate) path: String,
    /// As in [`Place::Local`].
    pub(crate) content_only: bool,
    /// As in [`Place::Local`].
    pub(crate) directory: bool,
}

impl FromStr for Place {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        if text == "-" {
            return Ok(Self::Stream);
        }
        let content_only = |path: &str| path == "." || path.ends_with("/.");
        let directory = |path: &str| path.is_empty() || path.ends_with('/') || content_only(path);
        match text.split_once(':') {
            Some((name, path)) if !name.contains('/') => Ok(Self::Remote(Remote {
                name: (!name.is_empty()).then(|| name.to_owned()),
                path: absolute(path),
                content_only: content_only(path),
                directory: directory(path),
            })),
            _ => Ok(Self::Local {
                path: PathBuf::from(text),
                content_only: content_only(text),
                directory: directory(text),
            }),
        }
    }
}

/// The path from the root of the box, without `.` parts, doubled slashes and a slash at the end. `..` stays: what it
/// means depends on symbolic links that only the box knows.
pub(crate) fn absolute(path: &str) -> String {
    let joined = if path.starts_with('/') { path.to_owned() } else { format!("{HOME}/{path}") };
    let parts: Vec<&str> = joined.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    format!("/{}", parts.join("/"))
}

/// `directory/name` for a directory in a box.
pub(crate) fn join(directory: &str, name: &str) -> String {
    format!("{}/{name}", directory.trim_end_matches('/'))
}

/// Last part of a path in a box, if it names something (not the root, not `..`).
pub(crate) fn base_name(path: &str) -> Option<&str> {
    path.rsplit('/').next().filter(|name| !name.is_empty() && *name != "..")
}

/// Whether a name that a box reports may become a local file name: one plain part, nothing that leads elsewhere.
pub(crate) fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(text: &str) -> Remote {
        match text.parse() {
            Ok(Place::Remote(remote)) => remote,
            other => panic!("{text}: {other:?}"),
        }
    }

    fn is_local(text: &str) -> bool {
        matches!(text.parse(), Ok(Place::Local { .. }))
    }

    #[test]
    fn a_colon_before_any_slash_names_a_box() {
        assert_eq!(remote("b:x").name.as_deref(), Some("b"));
        assert_eq!(remote("b:x").path, "/workspace/home/x");
        assert_eq!(remote("b:/etc/hosts").path, "/etc/hosts");
        assert_eq!(remote("b:a:b").path, "/workspace/home/a:b");
        assert_eq!(remote(":x").name, None);
    }

    #[test]
    fn everything_else_is_local() {
        for text in ["x", "./a:b", "/tmp/a:b", "../x", "", "dir/"] {
            assert!(is_local(text), "{text}");
        }
        assert_eq!("-".parse(), Ok(Place::Stream));
    }

    #[test]
    fn the_bare_box_is_its_home() {
        let home = remote("b:");
        assert_eq!(home.path, HOME);
        assert!(home.directory && !home.content_only);
    }

    #[test]
    fn a_slash_asks_for_a_directory_and_a_dot_for_its_content() {
        assert!(remote("b:d/").directory);
        assert!(!remote("b:d").directory);
        assert!(remote("b:d/.").content_only);
        assert!(remote("b:.").content_only);
        assert!(!remote("b:d.").content_only);
        assert!(matches!("d/.".parse(), Ok(Place::Local { content_only: true, directory: true, .. })));
    }

    #[test]
    fn paths_are_tidied_but_dot_dot_is_left_to_the_box() {
        assert_eq!(absolute("./a//b/"), "/workspace/home/a/b");
        assert_eq!(absolute("/"), "/");
        assert_eq!(absolute("../x"), "/workspace/home/../x");
        assert_eq!(join("/", "x"), "/x");
        assert_eq!(join("/a", "x"), "/a/x");
    }

    #[test]
    fn names_that_lead_elsewhere_are_no_file_names() {
        for name in ["", ".", "..", "a/b", "/etc", "a\0b"] {
            assert!(!is_plain_name(name), "{name:?}");
        }
        assert!(is_plain_name("..a"));
        assert_eq!(base_name("/a/b"), Some("b"));
        assert_eq!(base_name("/"), None);
        assert_eq!(base_name("/a/.."), None);
    }
}
