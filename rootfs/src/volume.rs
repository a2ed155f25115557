//! One box's disk: its image file and its attachment to a loop device, or the block device that it is (`block`).
//!
//! Invariant: a volume is attached at most once. Two loop devices on one image would corrupt it, so attaching takes an
//! exclusive `flock` on the very open file that the loop driver keeps: the lock lasts exactly as long as the device is
//! attached, whichever process dies, and is released when the last mount is gone and all data is written. A block device is
//! mounted at most once by the kernel's own rule (`O_EXCL`); nothing else is between it and its file system.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::fstatfs;

use crate::block::{Devices, is_at_rest};
use crate::check::{self, Check, Checked};
use crate::error::{At, Cause, Error, Result, Step};
use crate::files;
use crate::fit;
use crate::loops::{self, Attached};

/// How long attaching waits for the previous attachment to end: a box that was just killed is still being unmounted.
pub(crate) const ATTACH_WAIT: Duration = Duration::from_secs(5);
/// `flock` has no time-out of its own, so the wait asks this often.
pub(crate) const LOCK_POLL: Duration = Duration::from_millis(2);
const XFS_SUPER_MAGIC: i64 = 0x5846_5342;

/// The disk of one box.
#[derive(Debug, Clone)]
pub struct Volume {
    path: PathBuf,
    /// Those that it is one of, if it is a block device.
    pub(crate) devices: Option<Arc<Devices>>,
}

impl Volume {
    pub(crate) fn new(path: PathBuf) -> Self {
        Volume { path, devices: None }
    }

    pub(crate) fn on_device(path: PathBuf, devices: Arc<Devices>) -> Self {
        Volume { path, devices: Some(devices) }
    }

    /// The image file, or the device.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that the volume really occupies on the host, metadata included. A device is counted with the size of its file system:
    /// no other box has any of it.
    pub fn allocated_bytes(&self) -> Result<u64> {
        if self.devices.is_some() {
            return self.size_bytes();
        }
        let metadata = fs::metadata(&self.path).at(Step::MeasureVolume, &self.path)?;
        Ok(metadata.blocks() * 512)
    }

    /// Makes the image file and its name survive a power loss. What a running box has not yet flushed is its own
    /// affair; this is for the moment between creating a volume and calling it durable.
    pub fn sync(&self) -> Result<()> {
        if self.devices.is_some() {
            // It has no name that could be lost.
            return File::open(&self.path).and_then(|file| file.sync_all()).at(Step::SyncVolume, &self.path);
        }
        let parent = self.path.parent().unwrap_or(Path::new("/"));
        File::open(&self.path).and_then(|file| file.sync_all()).at(Step::SyncVolume, &self.path)?;
        files::sync_dir(parent).at(Step::SyncVolume, parent)
    }

    /// True if the volume is attached (for a box that is mounted or about to be).
    pub fn in_use(&self) -> Result<bool> {
        if self.devices.is_some() {
            return Ok(!is_at_rest(&self.path).at(Step::LockVolume, &self.path)?);
        }
        let file = File::open(&self.path).at(Step::LockVolume, &self.path)?;
        Ok(!files::try_lock(&file).at(Step::LockVolume, &self.path)?)
    }

    /// Checks the file system, corrects errors, and completes a growth of an image that was cut short. (That of a device is completed by
    /// [`Volume::grow`]: it may be smaller than its device.) Waits as [`Volume::attach`] does for a previous attachment to end.
    pub fn check(&self, check: Check) -> Result<Checked> {
        let image = self.lock_backing()?;
        let checked = check::check(&image, &self.path, check)?;
        if self.devices.is_none() {
            fit::fill(&image, &self.path)?;
        }
        Ok(checked)
    }

    /// Attaches the volume to a free loop device that clears itself after its last user. Waits up to 5 s for a
    /// previous attachment that is just being unmounted.
    pub fn attach(&self) -> Result<Attached> {
        self.attach_locked(&self.lock_backing()?)
    }

    /// Attaches the image, whose lock is held.
    pub(crate) fn attach_locked(&self, backing: &File) -> Result<Attached> {
        if self.devices.is_some() {
            return Attached::direct(&self.path).at(Step::AttachLoop, &self.path);
        }
        let direct_io = direct_io_is_safe(backing).at(Step::AttachLoop, &self.path)?;
        loops::attach(backing, &self.path, direct_io)
    }

    /// Opens the image and takes its lock, or sees that nothing has its device mounted, waiting for the previous attachment to go.
    pub(crate) fn lock_backing(&self) -> Result<File> {
        let file = OpenOptions::new().read(true).write(true).open(&self.path).at(Step::LockVolume, &self.path)?;
        let deadline = Instant::now() + ATTACH_WAIT;
        // The tools for file systems want a device for themselves, so it is not held: the caller starts no box meanwhile.
        let is_free = || if self.devices.is_some() { is_at_rest(&self.path) } else { files::try_lock(&file) };
        while !is_free().at(Step::LockVolume, &self.path)? {
            if Instant::now() >= deadline {
                return Err(Error::new(Step::LockVolume, self.path.display().to_string(), Cause::InUse));
            }
            thread::sleep(LOCK_POLL);
        }
        Ok(file)
    }
}

/// Direct I/O spares the second copy in the page cache. Not on XFS: there a volume may share blocks with its template,
/// and racing direct writes to shared blocks can reach the *source* (CVE-2026-64600), so the page cache stays between.
fn direct_io_is_safe(backing: &File) -> io::Result<bool> {
    Ok(fstatfs(backing)?.f_type as i64 != XFS_SUPER_MAGIC)
}
