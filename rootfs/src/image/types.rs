//! The facts about a base image, and the progress of its build.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A base image that is complete.
#[derive(Debug, Clone)]
pub struct BaseImage {
    /// The image's own directory.
    pub dir: PathBuf,
    /// The root file system in it, to be used as the lowest layer.
    pub rootfs: PathBuf,
    /// The facts about it.
    pub manifest: Manifest,
}

/// `manifest.json` of a base image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Hash of everything that decides what the image contains, as in its directory's name.
    pub recipe: String,
    /// The Debian suite.
    pub suite: String,
    /// Seconds since 1970 when it was made.
    pub created_unix: u64,
    /// Bytes that its files occupy.
    pub size_bytes: u64,
    /// Name and version of every package in it.
    pub packages: Vec<Package>,
}

/// One Debian package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// A part of the work that a build does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// Another process builds in the same directory.
    Waiting,
    /// Packages come from the mirror.
    Retrieving,
    /// The first packages are laid out.
    Extracting,
    /// Packages are unpacked.
    Unpacking,
    /// Packages are configured.
    Configuring,
    /// The tree is adapted for boxes.
    Finishing,
    /// The tree is written to disk for good.
    Saving,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Waiting => "waiting for another build",
            Phase::Retrieving => "fetching packages",
            Phase::Extracting => "extracting the first packages",
            Phase::Unpacking => "unpacking packages",
            Phase::Configuring => "configuring packages",
            Phase::Finishing => "finishing the image",
            Phase::Saving => "saving the image",
        })
    }
}

/// A build's progress report.
#[derive(Debug, Clone)]
pub struct Progress {
    /// The part of the work.
    pub phase: Phase,
    /// How many items of this phase have begun.
    pub done: u32,
    /// How many there will be, once known.
    pub total: Option<u32>,
    /// The item, for people.
    pub detail: String,
}

impl BaseImage {
    /// Its id: the name of its directory.
    #[must_use]
    pub fn id(&self) -> String {
        self.dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}
