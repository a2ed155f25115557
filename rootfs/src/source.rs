//! The content of a volume at one point in time, for a copy.
//!
//! A running box has its ext4 mounted from a loop device. [`Source::flush`] writes out all that is dirty in it, through
//! the block device: nothing is mounted, and no path in the box is opened. Between a flush and the copy, the caller keeps
//! the processes of the box from running, so nothing becomes dirty.
//!
//! Invariants: a copy is what a power cut at one moment would have left, with everything flushed before it. A reflink is
//! atomic: the host's file system keeps writes to the image out meanwhile. A copy block by block is taken only if the
//! kernel's counters say that nothing was written to the loop device between its first and its last block. (Metadata that
//! is written in place while the journal's tail moves would otherwise be missing from both.) So the ext4 is never frozen,
//! and there is no freeze that could outlive the process which asked for it.
//!
//! Leaves out: stopping the processes of a box, and names of copies (`snapshot`).

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::fsync;

use crate::block::BOOT_BLOCK_BYTES;
use crate::clone::{CloneMethod, clone_into};
use crate::error::{At, Cause, Error, Result, Step};
use crate::fit;
use crate::loops::{self, Attached};
use crate::sys::loopdev;
use crate::tool::Tool;
use crate::volume::Volume;

/// Attempts at a copy during which nothing is written.
const COPY_ATTEMPTS_MAX: u32 = 5;
/// Those of a device that is read by e2image: sectors written, requests in flight, completed discards. e2image flushes the device,
/// and the kernel counts an empty flush as a write without sectors.
const COUNTERS_OF_DEVICE: [usize; 3] = [6, 8, 11];
/// Block devices by their numbers: a name may be a link, or a node that is named otherwise than the device.
const BLOCK_DEVICES: &str = "/sys/dev/block";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

const E2IMAGE: Tool = Tool {
    program: "e2image",
    missing: "there is no e2image on this machine; install the package e2fsprogs",
    step: Step::CopyVolume,
};
/// Places in the file `stat` of a block device (Documentation/block/stat.rst): completed writes, requests in flight,
/// completed discards, completed flushes. Kernels before 5.5 lack the last.
const COUNTERS: [usize; 4] = [4, 8, 11, 15];

/// The image of a volume, to be copied.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    image: File,
    /// The loop device of an attached volume. While it is open, it is not detached and not given to another file.
    device: Option<Attached>,
    /// The image is a block device itself.
    is_device: bool,
}

impl Volume {
    /// The volume of a box that runs. Its file system is mounted and stays so.
    ///
    /// # Errors
    /// `NotFound` if it is not attached.
    pub fn live_source(&self) -> Result<Source> {
        let path = self.path().to_owned();
        let image = File::open(&path).at(Step::CopyVolume, &path)?;
        if self.devices.is_some() {
            let device = Some(Attached::direct(&path).at(Step::CopyVolume, &path)?);
            return Ok(Source { path, image, device, is_device: true });
        }
        let metadata = image.metadata().at(Step::CopyVolume, &path)?;
        let device = loops::find(&metadata).at(Step::CopyVolume, &path)?;
        if device.is_none() {
            let missing = io::Error::new(io::ErrorKind::NotFound, "it is not attached to a loop device");
            return Err(missing).at(Step::CopyVolume, &path);
        }
        Ok(Source { path, image, device, is_device: false })
    }

    /// The mark of the image ([`Source::mark`]), whatever uses it.
    pub fn mark(&self) -> Result<String> {
        if self.devices.is_some() {
            return mark_of_device(self.path());
        }
        let image = File::open(self.path()).at(Step::MeasureVolume, self.path())?;
        mark_of(&image, self.path())
    }

    /// The volume of a box without processes. It is not attached meanwhile; waits for an attachment that is just ending.
    pub fn resting_source(&self) -> Result<Source> {
        let path = self.path().to_owned();
        Ok(Source { image: self.lock_backing()?, path, device: None, is_device: self.devices.is_some() })
    }
}

impl Source {
    /// Writes out what is dirty in the file system of a running box. The first flush takes as long as there is much to
    /// write; one right after it hardly any time.
    pub fn flush(&self) -> Result<()> {
        let Some(attached) = &self.device else { return Ok(()) };
        let (fd, device) = (attached.as_fd(), &attached.device);
        loopdev::flush(fd).at(Step::FlushVolume, device)?;
        // The ioctl does not tell of errors: this does, and makes the host's disk flush its cache.
        fsync(fd).at(Step::FlushVolume, device)
    }

    /// When the image was last written. It is the same as long as nothing reaches the image.
    pub fn mark(&self) -> Result<String> {
        if self.is_device {
            return mark_of_device(&self.path);
        }
        mark_of(&self.image, &self.path)
    }

    /// Flushes and copies into an empty file. The processes of the box stand still.
    pub(crate) fn copy_into(&self, target: &File) -> Result<CloneMethod> {
        for _ in 0..COPY_ATTEMPTS_MAX {
            self.flush()?;
            let before = self.counters()?;
            target.set_len(0).at(Step::CopyVolume, &self.path)?;
            let method = match self.is_device {
                true => copy_device(&self.path, target)?,
                false => clone_into(&self.image, target).at(Step::CopyVolume, &self.path)?,
            };
            if method == CloneMethod::Reflink || self.counters()? == before {
                return Ok(method);
            }
        }
        Err(Error::new(Step::CopyVolume, self.path.display().to_string(), Cause::Written))
    }

    /// The counters that every change of the image by its loop device moves.
    fn counters(&self) -> Result<Vec<u64>> {
        match &self.device {
            Some(attached) if self.is_device => counters(&attached.device, &COUNTERS_OF_DEVICE),
            Some(attached) => counters(&attached.device, &COUNTERS),
            None => Ok(Vec::new()),
        }
    }
}

fn counters(device: &Path, places: &[usize]) -> Result<Vec<u64>> {
    let number = fs::metadata(device).at(Step::CopyVolume, device)?.rdev();
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let path = Path::new(BLOCK_DEVICES).join(format!("{major}:{minor}/stat"));
    let text = fs::read_to_string(&path).at(Step::CopyVolume, &path)?;
    Ok(counters_of(&text, places))
}

/// Copies the blocks that the file system of a device has in use; the others become holes. It is flushed, and nothing writes
/// to it.
fn copy_device(path: &Path, target: &File) -> Result<CloneMethod> {
    let to = format!("/proc/{}/fd/{}", std::process::id(), target.as_raw_fd());
    // It would take a mounted file system only by force: whether it stands still is our affair.
    E2IMAGE.run(E2IMAGE.command().args(["-r", "-a", "-f"]).arg(path).arg(to), path)?;
    let bytes = fit::file_system_bytes(target).at(Step::CopyVolume, path)?;
    target.set_len(bytes).at(Step::CopyVolume, path)?;
    // The boot block has the header of the device, which is no part of the file system.
    target.write_all_at(&[0; BOOT_BLOCK_BYTES as usize], 0).at(Step::CopyVolume, path)?;
    Ok(CloneMethod::SparseCopy)
}

/// What has been written to a device since the machine was started, and which start that was.
fn mark_of_device(path: &Path) -> Result<String> {
    let boot = Path::new(BOOT_ID);
    let boot_id = fs::read_to_string(boot).at(Step::MeasureVolume, boot)?;
    Ok(format!("{}:{:?}", boot_id.trim(), counters(path, &COUNTERS_OF_DEVICE)?))
}

fn mark_of(image: &File, path: &Path) -> Result<String> {
    let metadata = image.metadata().at(Step::MeasureVolume, path)?;
    Ok(format!("{}:{}.{:09}", metadata.ino(), metadata.mtime(), metadata.mtime_nsec()))
}

fn counters_of(stat: &str, places: &[usize]) -> Vec<u64> {
    let all: Vec<u64> = stat.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect();
    places.iter().filter_map(|place| all.get(*place).copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_moves_a_counter() {
        let line = "    2064       12    58098      419     5244    10317  2160224    20965        0     2904    22633       67        0 10543240       10     2863     1238\n";
        assert_eq!(counters_of(line, &COUNTERS), [5244, 0, 67, 2863]);
        assert_eq!(counters_of("1 2 3 4 5 6 7 8 9 10 11\n", &COUNTERS), [5, 9]);
    }

    #[test]
    fn a_volume_that_is_not_attached_is_no_live_source() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.img");
        fs::write(&path, b"content").unwrap();
        let volume = Volume::new(path);
        assert_eq!(volume.live_source().unwrap_err().kind(), crate::error::ErrorKind::NotFound);
        let mark = volume.mark().unwrap();
        assert_eq!(volume.resting_source().unwrap().mark().unwrap(), mark);
        let target = tempfile::tempfile().unwrap();
        volume.resting_source().unwrap().copy_into(&target).unwrap();
        assert_eq!(target.metadata().unwrap().len(), 7);
        assert_eq!(volume.mark().unwrap(), mark, "a copy is no change");
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(1);
        File::options().write(true).open(volume.path()).unwrap().set_modified(later).unwrap();
        assert_ne!(volume.mark().unwrap(), mark);
    }
}
