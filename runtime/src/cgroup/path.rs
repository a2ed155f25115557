//! A cgroup's path: relative to the root of every hierarchy, and checked once, so that no other code needs to.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::error::{Error, Result};

/// The longest path we take.
const PATH_BYTES_MAX: usize = 1024;
/// The longest single part: NAME_MAX.
const PART_BYTES_MAX: usize = 255;
/// The deepest path we take; the kernel has no limit of its own unless `cgroup.max.depth` is set.
const PARTS_MAX: usize = 32;

/// A relative cgroup path without `..`, empty parts or a leading slash.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CgroupPath(String);

impl TryFrom<String> for CgroupPath {
    type Error = Error;

    fn try_from(path: String) -> Result<Self> {
        Self::new(path)
    }
}

impl From<CgroupPath> for String {
    fn from(path: CgroupPath) -> Self {
        path.0
    }
}

impl CgroupPath {
    /// Checks `path`.
    ///
    /// # Errors
    /// `Invalid` for anything that could lead out of the hierarchy or is not a plain relative path.
    pub fn new(path: impl Into<String>) -> Result<Self> {
        let path = path.into();
        let refuse = |why: &'static str| Err(Error::invalid("check path", &path, why));
        if path.is_empty() || path.len() > PATH_BYTES_MAX {
            return refuse("length");
        }
        if path.split('/').count() > PARTS_MAX {
            return refuse("too deep");
        }
        for part in path.split('/') {
            match part {
                "" => return refuse("empty part or leading or trailing slash"),
                "." | ".." => return refuse("`.` or `..`"),
                _ if part.len() > PART_BYTES_MAX => return refuse("part longer than 255 bytes"),
                // A newline would forge lines in /proc/*/cgroup; NUL cannot be passed to the kernel.
                _ if part.bytes().any(|b| b < 0x20 || b == 0x7f) => {
                    return refuse("control character");
                }
                // `cgroup.procs` and friends are files: a directory of such a form confuses every reader.
                _ if part.starts_with("cgroup.") => return refuse("part begins with `cgroup.`"),
                _ => {}
            }
        }
        Ok(Self(path))
    }

    /// This path and one part more.
    ///
    /// # Errors
    /// As [`CgroupPath::new`]; also when `name` has more than one part.
    pub fn join(&self, name: &str) -> Result<Self> {
        if name.contains('/') {
            return Err(Error::invalid("check path", name, "slash in a name"));
        }
        Self::new(format!("{}/{name}", self.0))
    }

    /// The path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn parts(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// Everything but the last part (empty when there is only one), and the last part.
    pub(super) fn split_last(&self) -> (&str, &str) {
        self.0.rsplit_once('/').unwrap_or(("", &self.0))
    }
}

impl fmt::Display for CgroupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for CgroupPath {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        Self::new(s)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn refuses_what_could_leave_the_hierarchy() {
        for bad in [
            "",
            "/",
            "/a",
            "a/",
            "a//b",
            "..",
            "a/../b",
            "../a",
            ".",
            "a/.",
            "a\nb",
            "a\0",
            "cgroup.procs",
            "a/cgroup.x",
        ] {
            assert!(CgroupPath::new(bad).is_err(), "{bad:?}");
        }
        assert!(CgroupPath::new("x".repeat(256)).is_err());
        assert!(CgroupPath::new(vec!["x"; 33].join("/")).is_err());
        for good in [
            "a",
            "a/b",
            "icebox.00aa/right-flamingo-1/run-1",
            "..a",
            "a..",
            "...",
            "user.slice/x.scope",
            &"x".repeat(255),
        ] {
            assert!(CgroupPath::new(good).is_ok(), "{good:?}");
        }
        assert!(CgroupPath::new("a").unwrap().join("b/c").is_err());
        assert!(CgroupPath::new("a").unwrap().join("..").is_err());
        assert_eq!(CgroupPath::new("a/b/c").unwrap().split_last(), ("a/b", "c"));
    }

    proptest! {
        #[test]
        fn accepted_paths_stay_below(path in "[a./]{0,12}") {
            if let Ok(p) = CgroupPath::new(path.clone()) {
                let joined = std::path::Path::new("/base").join(p.as_str());
                prop_assert!(joined.starts_with("/base"));
                let normal = |c: std::path::Component<'_>| matches!(c, std::path::Component::Normal(_));
                prop_assert!(std::path::Path::new(p.as_str()).components().all(normal));
                prop_assert_eq!(p.parts().collect::<Vec<_>>().join("/"), path);
            }
        }
    }
}
