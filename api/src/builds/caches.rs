//! What `RUN --mount=type=cache` keeps between builds.
//!
//! A cache is an image of the store without a name, whose layers have its files at the path where they were mounted last. One
//! small file per cache names the image; it is new whenever the cache was used. So pruning images prunes caches, a crash
//! leaves the cache as it was before the command, and a cache that is gone is an empty one.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use icebox_rootfs::images::{Image, Images};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::cache::told;
use super::notes::write_note;

/// A cache as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    /// Its name.
    pub(super) id: String,
    /// The id of the image.
    pub(super) image: String,
    /// Where its files are in the image.
    pub(super) target: PathBuf,
}

/// The caches of a data directory.
#[derive(Debug, Clone)]
pub(super) struct Caches {
    dir: PathBuf,
    /// Most bytes of all of them.
    bytes_max: u64,
}

/// A cache that was dropped because all of them are too large.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Dropped {
    pub(super) kept: Kept,
    pub(super) bytes: u64,
}

impl Caches {
    /// The caches in a directory, which is made if it is missing.
    pub(super) fn open(dir: PathBuf, bytes_max: u64) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        Ok(Self { dir, bytes_max })
    }

    pub(super) fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    fn path(&self, id: &str) -> PathBuf {
        let digest = Sha256::digest(id.as_bytes());
        self.dir.join(digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    }

    /// The cache with a name and its image, if both are still there.
    pub(super) fn get(&self, id: &str, images: &Images) -> Result<Option<(Kept, Image)>, String> {
        let path = self.path(id);
        let Some(kept) = read(&path).map_err(|error| format!("the cache '{id}' cannot be read: {error}"))? else {
            return Ok(None);
        };
        let image = images.by_id(&kept.image).map_err(|error| told(&error))?;
        // Its time says when it was used.
        let used = File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        used.map_err(|error| format!("the cache '{id}' cannot be marked as used: {error}"))?;
        Ok(image.map(|image| (kept, image)))
    }

    /// Notes what a cache is now.
    pub(super) fn put(&self, kept: &Kept) -> Result<(), String> {
        let text = serde_json::to_vec(kept).map_err(io::Error::from);
        let written = text.and_then(|text| write_note(&self.path(&kept.id), &text));
        written.map_err(|error| format!("the cache '{}' cannot be noted: {error}", kept.id))
    }

    /// The next build finds the cache empty.
    pub(super) fn forget(&self, id: &str) -> Result<(), String> {
        match fs::remove_file(self.path(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(format!("the cache '{id}' cannot be removed: {error}"))
            }
            _ => Ok(()),
        }
    }

    /// The images of all caches.
    pub(super) fn images(&self) -> io::Result<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        for entry in fs::read_dir(&self.dir)? {
            found.extend(read(&entry?.path())?.map(|kept| kept.image));
        }
        Ok(found)
    }

    /// Drops caches until the others have no more than the bound: first those that are too large by themselves, then those that
    /// were not used for the longest time.
    pub(super) fn bound(&self, images: &Images) -> Result<Vec<Dropped>, String> {
        let unreadable = |error: io::Error| format!("the caches of builds cannot be read: {error}");
        let mut known = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let Some(kept) = read(&entry.path()).map_err(unreadable)? else { continue };
            let image = images.by_id(&kept.image).map_err(|error| told(&error))?;
            let used = entry.metadata().and_then(|facts| facts.modified()).map_err(unreadable)?;
            known.push((used, Dropped { kept, bytes: image.map_or(0, |image| image.size_bytes) }));
        }
        known.sort_by_key(|(used, cache)| (cache.bytes <= self.bytes_max, *used));
        let mut total: u64 = known.iter().map(|(_, cache)| cache.bytes).sum();
        let mut dropped = Vec::new();
        for (_, cache) in known {
            if total <= self.bytes_max {
                break;
            }
            total -= cache.bytes;
            self.forget(&cache.kept.id)?;
            dropped.push(cache);
        }
        Ok(dropped)
    }

    /// Removes the notes of caches whose images are gone.
    pub(super) fn sweep(&self, images: &Images) -> io::Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let lives = read(&path)?.is_some_and(|kept| images.by_id(&kept.image).is_ok_and(|image| image.is_some()));
            if !lives {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

/// A note. One that a crash has cut, and one that is not there, are none.
fn read(path: &Path) -> io::Result<Option<Kept>> {
    match fs::read(path) {
        Ok(text) => Ok(serde_json::from_slice(&text).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// A store with an image of one file of each of these sizes.
    fn store(dir: &Path, sizes: &[usize]) -> (Images, Vec<String>) {
        let images = Images::open(&dir.join("images")).expect("a store");
        let ids = sizes.iter().map(|size| {
            let root = dir.join(format!("root-{size}"));
            fs::create_dir_all(&root).expect("a directory");
            fs::write(root.join("file"), vec![7; *size]).expect("a file");
            images.import_dir(&root, None, None).expect("an image")[0].id.clone()
        });
        let ids = ids.collect();
        (images, ids)
    }

    #[test]
    fn a_cache_is_kept_as_long_as_its_image() {
        let dir = tempfile::tempdir().expect("a directory");
        let (images, ids) = store(dir.path(), &[1]);
        let caches = Caches::open(dir.path().join("caches"), 1 << 20).expect("caches");
        assert_eq!(caches.get("a/b", &images), Ok(None));
        let kept = Kept { id: "a/b".into(), image: ids[0].clone(), target: "/t".into() };
        caches.put(&kept).expect("noted");
        let found = caches.get("a/b", &images).expect("a look").expect("a cache");
        assert_eq!((found.0, found.1.id), (kept, ids[0].clone()));
        images.prune(false).expect("pruned");
        assert_eq!(caches.get("a/b", &images), Ok(None));
        caches.sweep(&images).expect("swept");
        assert_eq!(fs::read_dir(dir.path().join("caches")).expect("a directory").count(), 0);
        fs::write(caches.path("cut"), "{").expect("a note that was cut");
        assert_eq!(caches.get("cut", &images), Ok(None));
    }

    #[test]
    fn the_cache_that_was_used_longest_ago_goes_first() {
        let dir = tempfile::tempdir().expect("a directory");
        let (images, ids) = store(dir.path(), &[10_000, 20_000, 30_000]);
        let bytes = |at: usize| images.by_id(&ids[at]).expect("a look").expect("an image").size_bytes;
        let caches = Caches::open(dir.path().join("caches"), bytes(1) + bytes(2)).expect("caches");
        for (at, id) in ids.iter().enumerate() {
            let kept = Kept { id: at.to_string(), image: id.clone(), target: "/t".into() };
            caches.put(&kept).expect("noted");
            let used = SystemTime::now() - Duration::from_secs(100 * (at as u64 + 1));
            File::open(caches.path(&kept.id)).and_then(|file| file.set_modified(used)).expect("a time");
        }
        // The last was used longest ago until now.
        caches.get("2", &images).expect("a look").expect("a cache");
        let dropped: Vec<String> = caches.bound(&images).expect("bounded").into_iter().map(|one| one.kept.id).collect();
        assert_eq!(dropped, ["1"]);
        assert!(caches.get("0", &images).expect("a look").is_some());
        assert_eq!(caches.bound(&images), Ok(Vec::new()));
        // One that is too large does not take the others with it.
        let caches = Caches::open(dir.path().join("caches"), bytes(0)).expect("caches");
        let dropped: Vec<String> = caches.bound(&images).expect("bounded").into_iter().map(|one| one.kept.id).collect();
        assert_eq!(dropped, ["2"]);
        assert!(caches.get("0", &images).expect("a look").is_some());
    }
}
