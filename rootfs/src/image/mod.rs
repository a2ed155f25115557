//! The read-only layers below every box: the Debian base image and the layer with our own tools.
//!
//! Layout of an image directory: `bookworm-<recipe8>/{rootfs/,manifest.json}` and `tools-<sha8>/usr/local/bin/sudo`.
//! Invariants: what has its final name is complete and was made durable first; names that begin with `.tmp-` are
//! unfinished and are removed by the next build. One build at a time, kept by an `flock` on `lock`.

mod build;
mod debootstrap;
mod finish;
mod mirror;
mod tools;
mod tree;

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{At, Cause, Error, Result, Step};

pub use build::build;
pub use tools::tools_layer;

/// A base image that is complete.
#[derive(Debug, Clone)]
pub struct BaseImage {
    /// The image's own directory.
    pub dir: PathBuf,
    /// The root file system in it, to be used as the lowest layer.
    pub rootfs: PathBuf,
    /// What is known about it.
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
    /// The tree is made ours.
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

/// What a build tells while it works.
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

/// The base image of the current recipe, if it was built.
pub fn find(image_dir: &Path) -> Result<Option<BaseImage>> {
    let recipe = build::recipe();
    let dir = image_dir.join(format!("{}-{recipe}", build::SUITE));
    let path = dir.join("manifest.json");
    let text = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.at(Step::FindImage, &path)?,
    };
    let manifest: Manifest = serde_json::from_slice(&text)
        .map_err(|error| Error::new(Step::FindImage, path.display().to_string(), Cause::Json(error)))?;
    let rootfs = dir.join("rootfs");
    if manifest.recipe != recipe || !rootfs.is_dir() {
        return Err(Error::new(Step::FindImage, dir.display().to_string(), Cause::Corrupt));
    }
    Ok(Some(BaseImage { dir, rootfs, manifest }))
}
