//! Locks and unfinished directories.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::place::{self, Images, MANIFESTS};
use crate::error::{At, Result, Step};
use crate::files;

/// The lock of the store. It is held for changes of names only, which are quick. (The lock of base images is another one:
/// it is held for as long as a build takes.)
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

/// An unfinished directory. Its maker holds a lock on it for life, so that a sweep tells the living from the dead.
#[derive(Debug)]
pub(super) struct Temp {
    path: PathBuf,
    _held: File,
}

impl Temp {
    /// Makes one in `dir`. The lock keeps a sweep from coming between its creation and its own lock.
    fn new(dir: &Path, hint: &str, _lock: &Lock) -> Result<Self> {
        let path = files::temp_path(dir, hint);
        DirBuilder::new().mode(0o755).create(&path).at(Step::StoreImage, &path)?;
        let held = File::open(&path).at(Step::StoreImage, &path)?;
        rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).at(Step::StoreImage, &path)?;
        Ok(Self { path, _held: held })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        // What is left is swept later.
        let _ = place::remove(&self.path);
    }
}

impl Images {
    /// Takes the lock, waiting for its holder.
    pub(super) fn lock(&self) -> Result<Lock> {
        let path = self.dir.join("store.lock");
        let file = files::open_lock(&path).at(Step::LockImages, &path)?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).at(Step::LockImages, &path)?;
        Ok(Lock { _file: file })
    }

    /// Makes an unfinished directory beside the layers. Those of dead makers are swept, so that its name is free.
    pub(super) fn temp(&self, hint: &str) -> Result<Temp> {
        let lock = self.lock()?;
        self.sweep(&lock)?;
        Temp::new(&self.layers_dir(), hint, &lock)
    }

    /// Unfinished directories of layers whose makers live.
    pub(super) fn living_temps(&self, _lock: &Lock) -> Result<Vec<PathBuf>> {
        Ok(self.temps()?.into_iter().filter(|(_, alive)| *alive).map(|(path, _)| path).collect())
    }

    /// Removes unfinished directories and files whose makers are dead; returns their number.
    pub(super) fn sweep(&self, lock: &Lock) -> Result<usize> {
        let dead = self.dead_temps(lock)?;
        for path in &dead {
            place::remove(path).at(Step::SweepImages, path)?;
        }
        Ok(dead.len())
    }

    /// Unfinished directories and files whose makers are dead. A file is written by the holder of the lock only, so each
    /// one that is there now has a dead maker.
    pub(super) fn dead_temps(&self, _lock: &Lock) -> Result<Vec<PathBuf>> {
        let mut dead: Vec<_> = self.temps()?.into_iter().filter(|(_, alive)| !alive).map(|(path, _)| path).collect();
        let mut places = vec![self.dir.clone(), self.dir.join(MANIFESTS)];
        places.extend(self.pin_dirs()?);
        for place in places {
            dead.extend(files::unfinished_files(&place).at(Step::SweepImages, &place)?);
        }
        Ok(dead)
    }

    fn temps(&self) -> Result<Vec<(PathBuf, bool)>> {
        let mut temps = Vec::new();
        let dir = self.layers_dir();
        for entry in fs::read_dir(&dir).at(Step::SweepImages, &dir)? {
            let entry = entry.at(Step::SweepImages, &dir)?;
            if !entry.file_name().as_encoded_bytes().starts_with(files::TEMP_PREFIX.as_bytes()) {
                continue;
            }
            let path = entry.path();
            let alive = match File::open(&path) {
                Ok(held) => !files::try_lock(&held).at(Step::SweepImages, &path)?,
                Err(_) => true,
            };
            temps.push((path, alive));
        }
        Ok(temps)
    }
}
