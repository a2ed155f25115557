//! The tiers, and what each needs in its environment.

use clap::ValueEnum;

use crate::places::{self, Places};

/// A group of tests with the same needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tier {
    /// Needs no privileges
    Unit,
    /// Needs root: mounts, loop devices, cgroups, namespaces
    Privileged,
    /// Needs the binaries and the base image: whole boxes over HTTP, and icerun
    Boxes,
    /// Privileged and boxes again, in a guest with pure cgroup v2
    Vm,
    /// Each task's packages on a Debian 12 that has nothing else
    Bare,
}

/// The crate with the tests of whole boxes.
pub(super) const BOXES_PACKAGE: &str = "icebox-tests";
impl Tier {
    /// Its name, as on the command line.
    pub(super) fn name(self) -> &'static str {
        match self {
            Tier::Unit => "unit",
            Tier::Privileged => "privileged",
            Tier::Boxes => "boxes",
            Tier::Vm => "vm",
            Tier::Bare => "bare",
        }
    }

    /// Whether the tier has tests of one of these packages (none named: all are).
    pub(super) fn has_any_of(self, packages: &[String]) -> bool {
        packages.is_empty()
            || self == Tier::Vm
            || self != Tier::Bare && packages.iter().any(|package| (package == BOXES_PACKAGE) == (self == Tier::Boxes))
    }

    /// Environment that the tier's tests read.
    pub(super) fn environment(self, places: &Places) -> Vec<(&'static str, std::path::PathBuf)> {
        if self != Tier::Boxes {
            return Vec::new();
        }
        vec![
            ("ICEBOX_BIN_DIR", places.bin()),
            ("ICEBOX_IMAGE_DIR", places::image_dir()),
            ("ICEBOX_SDK_DIR", places.sdk()),
            ("ICEBOX_TEST_DIR", test_dir(&places.target)),
        ]
    }
}

/// Where tests keep files: on the disk of the build, since volumes need a real file system.
fn test_dir(target: &std::path::Path) -> std::path::PathBuf {
    target.join("tmp")
}
