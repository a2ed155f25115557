//! What the store of images holds without an owner: unfinished directories, layers, pins, and adapted layers.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::place::{self, ADAPTED, Images};
use super::remove::OWNER;
use crate::error::{At, Result, Step};
use crate::files;

/// Something without an owner.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct StrayImage {
    /// What it is.
    pub kind: StrayImageKind,
    /// Its path in the image directory.
    pub name: String,
    /// Bytes that it occupies.
    pub bytes: u64,
}

/// Kinds of what the store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StrayImageKind {
    /// An unfinished import whose maker has ended.
    Unfinished,
    /// A layer that no image has.
    Layer,
    /// An adapted layer whose image is gone.
    Adapted,
    /// Pins of a data directory that is gone.
    Pins,
}

impl Images {
    /// What no image, no import under way and no data directory owns.
    pub fn strays(&self) -> Result<Vec<StrayImage>> {
        let lock = self.lock()?;
        Ok(self.strays_on(&lock)?.into_iter().map(|(stray, _)| stray).collect())
    }

    /// Removes those of them that are in the list and still have no owner. Returns what was removed.
    pub fn remove_strays(&self, listed: &[StrayImage]) -> Result<Vec<StrayImage>> {
        let lock = self.lock()?;
        let mut removed = Vec::new();
        for (stray, path) in self.strays_on(&lock)? {
            let is_listed = listed.iter().any(|one| (one.kind, &one.name) == (stray.kind, &stray.name));
            if !is_listed {
                continue;
            }
            // Its name goes at once: half a layer must never stand under it.
            let gone = files::temp_path(&self.layers_dir(), "gone");
            fs::rename(&path, &gone).at(Step::SweepImages, &path)?;
            place::remove(&gone).at(Step::SweepImages, &gone)?;
            removed.push(stray);
        }
        Ok(removed)
    }

    fn strays_on(&self, lock: &super::lock::Lock) -> Result<Vec<(StrayImage, PathBuf)>> {
        let mut found = Vec::new();
        let mut add = |kind, path: PathBuf| {
            let name = path.strip_prefix(&self.dir).unwrap_or(&path).display().to_string();
            found.push((StrayImage { kind, name, bytes: allocated(&path) }, path));
        };
        self.dead_temps(lock)?.into_iter().for_each(|path| add(StrayImageKind::Unfinished, path));
        for id in self.unmarked_layers(lock)? {
            add(StrayImageKind::Layer, self.layer_dir(&id));
        }
        let images: BTreeSet<String> = self.ids()?.into_iter().collect();
        for path in entries(&self.dir.join(ADAPTED))? {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let hex = |id: &String| id.strip_prefix(place::ID_PREFIX).unwrap_or(id).to_owned();
            if !images.iter().any(|id| name.strip_prefix(&hex(id)).is_some_and(|rest| rest.starts_with('-'))) {
                add(StrayImageKind::Adapted, path);
            }
        }
        for path in self.pin_dirs()? {
            let Ok(owner) = fs::read(path.join(OWNER)) else { continue };
            if !Path::new(OsStr::from_bytes(&owner)).is_dir() {
                add(StrayImageKind::Pins, path);
            }
        }
        found.sort();
        Ok(found)
    }
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    if !dir.is_dir() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(dir).at(Step::FindImage, dir)?;
    entries.map(|entry| Ok(entry.at(Step::FindImage, dir)?.path())).collect()
}

/// Bytes that a file or tree occupies. What vanishes meanwhile counts nothing.
pub fn allocated(path: &Path) -> u64 {
    let Ok(metadata) = path.symlink_metadata() else { return 0 };
    let inside = match metadata.is_dir() {
        true => fs::read_dir(path).into_iter().flatten().flatten().map(|entry| allocated(&entry.path())).sum(),
        false => 0,
    };
    inside + metadata.blocks() * 512
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_owner_is_found_and_removed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let images = Images::open(dir.path()).unwrap();
        let held = images.temp("import").unwrap();
        let hex = "ab".repeat(32);
        let layer = dir.path().join("layers").join(&hex);
        let adapted = dir.path().join("adapted").join(format!("{hex}-1"));
        let dead = dir.path().join("layers/.tmp-import-1-0");
        let pins = dir.path().join("pins/0123");
        let foreign = dir.path().join("layers/notes");
        for path in [&layer, &adapted, &dead, &pins, &foreign] {
            fs::create_dir_all(path).unwrap();
        }
        fs::write(layer.join("file"), vec![1; 10_000]).unwrap();
        fs::write(pins.join(OWNER), "/nonexistent/data").unwrap();
        let mine = dir.path().join("pins/4567");
        fs::create_dir_all(&mine).unwrap();
        fs::write(mine.join(OWNER), dir.path().as_os_str().as_bytes()).unwrap();
        let found = images.strays().unwrap();
        let kinds: Vec<_> = found.iter().map(|stray| stray.kind).collect();
        use StrayImageKind::{Adapted, Layer, Pins, Unfinished};
        assert_eq!(kinds, [Unfinished, Layer, Adapted, Pins]);
        assert!(found[1].bytes >= 10_000, "{found:?}");
        // Only what was shown goes.
        assert_eq!(images.remove_strays(&found[1..2]).unwrap(), found[1..2]);
        assert!(!layer.exists() && adapted.exists() && dead.exists());
        images.remove_strays(&found).unwrap();
        assert!(images.strays().unwrap().is_empty());
        assert!(held.path().exists() && mine.exists() && foreign.exists());
    }
}
