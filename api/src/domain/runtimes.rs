//! The runtimes that clients ask for by name: the Boxfiles of this version, and the names of the images that they make.

use sha2::{Digest, Sha256};

/// A runtime that comes with Icebox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Runtime {
    /// The name that clients ask for.
    pub name: &'static str,
    /// The text of its Boxfile.
    pub boxfile: &'static str,
    /// Megabytes that its build fetches, about.
    pub fetched_mb: u32,
    /// Megabytes that its layers take above the base image, about.
    pub stored_mb: u32,
}

/// The runtimes of this version.
pub const RUNTIMES: [Runtime; 5] = [
    Runtime {
        name: "golang",
        boxfile: include_str!("../../../rootfs/runtimes/golang.Boxfile"),
        fetched_mb: 165,
        stored_mb: 505,
    },
    Runtime {
        name: "node",
        boxfile: include_str!("../../../rootfs/runtimes/node.Boxfile"),
        fetched_mb: 150,
        stored_mb: 475,
    },
    Runtime {
        name: "python",
        boxfile: include_str!("../../../rootfs/runtimes/python.Boxfile"),
        fetched_mb: 100,
        stored_mb: 315,
    },
    Runtime {
        name: "ruby",
        boxfile: include_str!("../../../rootfs/runtimes/ruby.Boxfile"),
        fetched_mb: 105,
        stored_mb: 335,
    },
    Runtime {
        name: "rust",
        boxfile: include_str!("../../../rootfs/runtimes/rust.Boxfile"),
        fetched_mb: 205,
        stored_mb: 785,
    },
];

/// Runtimes that the base image has, in Debian's versions: a box gets it at once while the runtime's own image is not built.
const IN_BASE: [&str; 2] = ["node", "python"];

/// The label of an image that says by which recipe it was built.
pub const LABEL: &str = "icebox.recipe";

/// The ending of names of images on Alpine.
const ALPINE: &str = "-alpine";

/// The Boxfile of a runtime, and the base image that it is built on here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// The name that clients ask for.
    pub name: String,
    /// The text of the Boxfile.
    pub text: String,
    /// The id of the base image.
    pub base: String,
    /// Megabytes that are fetched and stored, about; none if it is not known before.
    pub megabytes: Option<(u32, u32)>,
}

impl Recipe {
    /// A digest of all that decides what is built. The image has it in the label [`LABEL`].
    #[must_use]
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        for part in [&self.base, &self.text] {
            hash.update(part.as_bytes());
            hash.update([0]);
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// What a build of it costs, for people; none if it is not known.
    #[must_use]
    pub fn cost(&self) -> Option<String> {
        let (fetched, stored) = self.megabytes?;
        Some(format!(
            "its build fetches about {fetched} MB, and its image takes about {stored} MB beside the base image"
        ))
    }
}

/// A runtime of this version.
#[must_use]
pub fn find(runtime: &str) -> Option<&'static Runtime> {
    RUNTIMES.iter().find(|known| known.name == runtime)
}

/// True if the base image serves as this runtime until its own image is built.
#[must_use]
pub fn is_in_base(runtime: &str) -> bool {
    IN_BASE.contains(&runtime)
}

/// True for the name of a runtime on Alpine, which no Boxfile of this version makes.
#[must_use]
pub fn is_alpine(runtime: &str) -> bool {
    runtime.strip_suffix(ALPINE).is_some_and(|plain| find(plain).is_some())
}

/// The name that the image of a runtime has in the store.
#[must_use]
pub fn image_name(runtime: &str) -> String {
    format!("localhost/icebox-{runtime}:latest")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_runtime_is_a_boxfile_on_the_base_image() {
        for runtime in RUNTIMES {
            let Runtime { name, boxfile: text, fetched_mb, stored_mb } = runtime;
            let read = icebox_boxfile::Boxfile::read(name, text);
            assert!(read.is_ok(), "{name}: {:?}", read.err());
            assert!(
                text.contains("\nFROM icebox/base\n")
                    && image_name(name).parse::<icebox_rootfs::oci::Reference>().is_ok()
                    && fetched_mb > 0
                    && stored_mb > 0,
                "{name}"
            );
            assert_eq!(find(name), Some(&runtime));
        }
        assert_eq!(find("node-alpine"), None);
        assert!(is_alpine("node-alpine") && !is_alpine("alpine") && !is_alpine("mine-alpine"));
        assert!(is_in_base("node") && !is_in_base("rust"));
    }

    #[test]
    fn another_text_or_base_is_another_image() {
        let recipe = |text: &str, base: &str| Recipe {
            name: "x".to_owned(),
            text: text.to_owned(),
            base: base.to_owned(),
            megabytes: None,
        };
        let digest = recipe("FROM a", "b").digest();
        assert_eq!(digest, recipe("FROM a", "b").digest());
        assert_ne!(digest, recipe("FROM b", "b").digest());
        assert_ne!(digest, recipe("FROM a", "c").digest());
    }
}
