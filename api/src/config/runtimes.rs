//! Configuration of runtimes: what a name that clients ask for means.

use std::path::PathBuf;

use serde::Deserialize;

/// What an operator says of a runtime.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "a runtime is the name of an image, or { boxfile = \"/path\" }")]
pub enum Runtime {
    /// The name of an image.
    Image(String),
    /// A Boxfile of this host, which is built when it is needed.
    Boxfile(BoxfilePath),
}

/// The place of a Boxfile.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BoxfilePath {
    /// An absolute path.
    pub boxfile: PathBuf,
}

impl Runtime {
    /// Checks it.
    pub(super) fn check(&self, name: &str) -> Result<(), &'static str> {
        let Self::Boxfile(place) = self else { return Ok(()) };
        if !place.boxfile.is_absolute() {
            return Err("must be the absolute path of a Boxfile");
        }
        // It becomes a part of the name of an image.
        let is_part = |part: &str| {
            !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        };
        if name.split('-').all(is_part) {
            Ok(())
        } else {
            Err("must have a name of a-z and 0-9 with single dashes inside, since it has a Boxfile")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_is_an_image_or_a_boxfile() {
        #[derive(Debug, Deserialize)]
        struct File {
            runtime: Runtime,
        }
        let read = |text: &str| toml::from_str::<File>(&format!("runtime = {text}")).map(|file| file.runtime);
        assert_eq!(read("\"x:1\""), Ok(Runtime::Image("x:1".to_owned())));
        let place = |path: &str| Runtime::Boxfile(BoxfilePath { boxfile: path.into() });
        assert_eq!(read("{ boxfile = \"/b\" }"), Ok(place("/b")));
        for bad in ["1", "{ file = \"/b\" }", "{ boxfile = \"/b\", more = 1 }"] {
            let refused = read(bad).expect_err(bad).to_string();
            assert!(refused.contains("{ boxfile = \"/path\" }"), "{refused}");
        }
        assert_eq!(place("/b").check("my-own-2"), Ok(()));
        for (path, name) in [("b", "mine"), ("/b", "Mine"), ("/b", "mine-"), ("/b", "a b"), ("/b", "")] {
            assert!(place(path).check(name).is_err(), "{path} {name}");
        }
        assert_eq!(Runtime::Image("x".into()).check("Any Name"), Ok(()));
    }
}
