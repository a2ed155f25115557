//! Finding base images that were built.

use std::fs;
use std::io;
use std::path::Path;

use super::build::{SUITE, recipe};
use super::types::{BaseImage, Manifest};
use crate::error::{At, Cause, Error, Result, Step};
use crate::files;

/// The base image of the current recipe, if it was built.
pub fn find(image_dir: &Path) -> Result<Option<BaseImage>> {
    by_id(image_dir, &format!("{SUITE}-{}", recipe()))
}

/// All base images, of this recipe and of others.
pub(crate) fn list(image_dir: &Path) -> Result<Vec<BaseImage>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(image_dir).at(Step::FindImage, image_dir)? {
        let entry = entry.at(Step::FindImage, image_dir)?;
        if let Some(id) = entry.file_name().to_str()
            && id.contains('-')
        {
            found.extend(by_id(image_dir, id)?);
        }
    }
    Ok(found)
}

/// Removes a base image. Its name goes first.
pub(crate) fn remove(image_dir: &Path, id: &str) -> Result<()> {
    let Some(image) = by_id(image_dir, id)? else { return Ok(()) };
    let gone = files::temp_path(image_dir, "gone");
    fs::rename(&image.dir, &gone).at(Step::RemoveImage, &image.dir)?;
    files::sync_dir(image_dir).at(Step::RemoveImage, image_dir)?;
    fs::remove_dir_all(&gone).at(Step::RemoveImage, &gone)
}

/// The base image with this id (see [`BaseImage::id`]), if it is there. Images of earlier recipes stay for their boxes.
pub fn by_id(image_dir: &Path, id: &str) -> Result<Option<BaseImage>> {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if id.is_empty() || !id.chars().all(good) {
        return Ok(None);
    }
    let dir = image_dir.join(id);
    let path = dir.join("manifest.json");
    let text = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.at(Step::FindImage, &path)?,
    };
    let manifest: Manifest = serde_json::from_slice(&text)
        .map_err(|error| Error::new(Step::FindImage, path.display().to_string(), Cause::Json(error)))?;
    let rootfs = dir.join("rootfs");
    if format!("{}-{}", manifest.suite, manifest.recipe) != id || !rootfs.is_dir() {
        return Err(Error::new(Step::FindImage, dir.display().to_string(), Cause::Corrupt));
    }
    Ok(Some(BaseImage { dir, rootfs, manifest }))
}
