//! Where the parts of the store are.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{At, Result, Step};
use crate::files;

pub(super) const LAYERS: &str = "layers";
pub(super) const MANIFESTS: &str = "manifests";
pub(super) const PINS: &str = "pins";
pub(super) const ADAPTED: &str = "adapted";
/// What an id of an image begins with.
pub(super) const ID_PREFIX: &str = "sha256:";

/// The images of an image directory. Cheap to clone; may be open in several processes.
#[derive(Debug, Clone)]
pub struct Images {
    pub(super) dir: PathBuf,
}

impl Images {
    /// The store in this image directory, which is made if it is missing.
    pub fn open(image_dir: &Path) -> Result<Self> {
        let images = Self { dir: image_dir.to_owned() };
        for dir in [images.dir.clone(), images.layers_dir(), images.dir.join(MANIFESTS)] {
            // Boxes of every range of ids read their layers through it.
            files::make_dirs(&dir, 0o755).at(Step::StoreImage, &dir)?;
        }
        Ok(images)
    }

    /// The image directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn layers_dir(&self) -> PathBuf {
        self.dir.join(LAYERS)
    }

    pub(super) fn layer_dir(&self, diff_id: &str) -> PathBuf {
        self.layers_dir().join(diff_id.strip_prefix(ID_PREFIX).unwrap_or(diff_id))
    }

    pub(super) fn manifest_path(&self, id: &str) -> PathBuf {
        self.dir.join(MANIFESTS).join(format!("{}.json", id.strip_prefix(ID_PREFIX).unwrap_or(id)))
    }
}

/// `sha256:` and 64 lower-case hexadecimal digits: safe as a name of a file.
pub(super) fn is_image_id(id: &str) -> bool {
    id.strip_prefix(ID_PREFIX).is_some_and(|hex| {
        hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    })
}

/// Removes a directory or a file that may be gone already.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(facts) if facts.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
