//! Which layer a step with a key has made.
//!
//! One small file per key names an image of the store without a name, whose topmost layer is that of the step. The image
//! may be pruned at any time: then the step is made again.

use std::path::PathBuf;
use std::{fs, io};

use icebox_boxfile::Key;
use icebox_rootfs::images::Images;
use serde::{Deserialize, Serialize};

use super::notes::write_note;

/// An error with its causes, for the client.
pub(super) fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    text
}

/// A layer, and the image of which it is the topmost one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Layer {
    /// The digest of its archive.
    pub(super) diff_id: String,
    /// The id of the image.
    pub(super) image: String,
}

#[derive(Debug, Clone)]
pub(super) struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// The cache in a directory, which is made if it is missing.
    pub(super) fn open(dir: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        Ok(Self { dir })
    }

    /// The layer of a key, if its image is still there.
    pub(super) fn get(&self, key: Key, images: &Images) -> Result<Option<Layer>, String> {
        let text = match fs::read(self.dir.join(key.to_string())) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("the build cache cannot be read: {error}")),
        };
        // A file that a crash has cut is no entry.
        let Ok(layer) = serde_json::from_slice::<Layer>(&text) else { return Ok(None) };
        let image = images.by_id(&layer.image).map_err(|error| told(&error))?;
        let whole = image.is_some_and(|image| image.diff_ids.last() == Some(&layer.diff_id));
        let there = whole && images.layer(&layer.diff_id).map_err(|error| told(&error))?.is_some();
        Ok(there.then_some(layer))
    }

    /// Notes a layer.
    pub(super) fn put(&self, key: Key, layer: &Layer) -> Result<(), String> {
        let text = serde_json::to_vec(layer).map_err(io::Error::from);
        let written = text.and_then(|text| write_note(&self.dir.join(key.to_string()), &text));
        written.map_err(|error| format!("the build cache cannot be written: {error}"))
    }

    /// The directory of what is known about URLs.
    pub(super) fn urls(&self) -> PathBuf {
        self.dir.with_extension("urls")
    }

    /// Removes the entries whose images are gone.
    pub(super) fn sweep(&self, images: &Images) -> io::Result<()> {
        self.dead(images)?.iter().try_for_each(fs::remove_file)
    }

    /// The entries whose images are gone.
    pub(super) fn dead(&self, images: &Images) -> io::Result<Vec<PathBuf>> {
        let mut dead = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let layer = fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Layer>(&text).ok());
            if !layer.is_some_and(|layer| images.by_id(&layer.image).is_ok_and(|image| image.is_some())) {
                dead.push(path);
            }
        }
        Ok(dead)
    }
}
