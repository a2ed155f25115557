//! One box's disk: its image file and its attachment to a loop device.
//!
//! Invariant: a volume is attached at most once. Two loop devices on one image would corrupt it, so attaching takes an
//! exclusive `flock` on the very open file that the loop driver keeps: the lock lasts exactly as long as the device is
//! attached, whichever process dies, and is released when the last mount is gone and all data is written.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use rustix::fs::fstatfs;

use crate::check::{self, Check, Checked};
use crate::error::{At, Cause, Error, Result, Step};
use crate::files;
use crate::sys::loopdev;

/// Most attempts to attach: another process may take the free device first.
const ATTACH_ATTEMPTS_MAX: u32 = 64;
/// The ext4 inside has blocks of this size, and so may the device: no partial block writes on the host.
const LOOP_BLOCK_BYTES: u32 = 4096;
/// How long attaching waits for the previous attachment to end: a box that was just killed is still being unmounted.
const ATTACH_WAIT: Duration = Duration::from_secs(5);
/// `flock` has no time-out of its own, so the wait asks this often.
const LOCK_POLL: Duration = Duration::from_millis(2);
/// Major number of loop devices, fixed by the kernel's device list.
const LOOP_MAJOR: u64 = 7;
const XFS_SUPER_MAGIC: i64 = 0x5846_5342;

/// The image file of one box.
#[derive(Debug, Clone)]
pub struct Volume {
    path: PathBuf,
}

impl Volume {
    pub(crate) fn new(path: PathBuf) -> Self {
        Volume { path }
    }

    /// The image file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that the volume really occupies on the host, metadata included.
    pub fn allocated_bytes(&self) -> Result<u64> {
        let metadata = fs::metadata(&self.path).at(Step::MeasureVolume, &self.path)?;
        Ok(metadata.blocks() * 512)
    }

    /// Makes the image file and its name survive a power loss. What a running box has not yet flushed is its own
    /// affair; this is for the moment between creating a volume and calling it durable.
    pub fn sync(&self) -> Result<()> {
        let parent = self.path.parent().unwrap_or(Path::new("/"));
        File::open(&self.path).and_then(|file| file.sync_all()).at(Step::SyncVolume, &self.path)?;
        files::sync_dir(parent).at(Step::SyncVolume, parent)
    }

    /// True if the volume is attached (for a box that is mounted or about to be).
    pub fn in_use(&self) -> Result<bool> {
        let file = File::open(&self.path).at(Step::LockVolume, &self.path)?;
        Ok(!files::try_lock(&file).at(Step::LockVolume, &self.path)?)
    }

    /// Checks the file system and corrects errors. Waits as [`Volume::attach`] does for a previous attachment to end.
    pub fn check(&self, check: Check) -> Result<Checked> {
        let image = self.lock_backing()?;
        check::check(&image, &self.path, check)
    }

    /// Attaches the volume to a free loop device that clears itself after its last user. Waits up to 5 s for a
    /// previous attachment that is just being unmounted.
    pub fn attach(&self) -> Result<Attached> {
        let backing = self.lock_backing()?;
        let control = open_device(Path::new("/dev/loop-control"))
            .map_err(|error| missing_driver(error, Path::new("/dev/loop-control")))?;
        let mut flags = loopdev::LO_FLAGS_AUTOCLEAR;
        if direct_io_is_safe(&backing).at(Step::AttachLoop, &self.path)? {
            flags |= loopdev::LO_FLAGS_DIRECT_IO;
        }
        // No other thread of this process takes the free device between LOOP_CTL_GET_FREE and LOOP_CONFIGURE.
        static ATTACHING: Mutex<()> = Mutex::new(());
        let _guard = ATTACHING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut last = io::Error::from_raw_os_error(libc::EBUSY);
        for _ in 0..ATTACH_ATTEMPTS_MAX {
            match self.attach_once(&control, &backing, flags)? {
                Attempt::Done(attached) => return Ok(attached),
                Attempt::Raced(error) => last = error,
            }
            thread::yield_now();
        }
        Err(last).at(Step::AttachLoop, &self.path)
    }

    /// Opens the image and takes its lock, waiting for the previous attachment to go.
    fn lock_backing(&self) -> Result<File> {
        let file = OpenOptions::new().read(true).write(true).open(&self.path).at(Step::LockVolume, &self.path)?;
        let deadline = Instant::now() + ATTACH_WAIT;
        while !files::try_lock(&file).at(Step::LockVolume, &self.path)? {
            if Instant::now() >= deadline {
                return Err(Error::new(Step::LockVolume, self.path.display().to_string(), Cause::InUse));
            }
            thread::sleep(LOCK_POLL);
        }
        Ok(file)
    }

    fn attach_once(&self, control: &OwnedFd, backing: &File, flags: u32) -> Result<Attempt> {
        let number = match loopdev::get_free(control.as_fd()) {
            Ok(number) => number,
            Err(error) if is_errno(&error, &[libc::ENOSPC, libc::ENODEV, libc::EMFILE]) => {
                return Err(Error::new(Step::AttachLoop, self.path.display().to_string(), Cause::NoLoopDevice));
            }
            Err(error) => return Err(error).at(Step::AttachLoop, Path::new("/dev/loop-control")),
        };
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = match open_loop(&path, number) {
            Ok(device) => device,
            Err(error) if is_errno(&error, &[libc::ENXIO, libc::EBUSY]) => {
                return Ok(Attempt::Raced(error));
            }
            Err(error) => return Err(error).at(Step::AttachLoop, &path),
        };
        let name = self.path.as_os_str().as_bytes();
        let configure = |block| loopdev::configure(device.as_fd(), backing.as_fd(), block, flags, name);
        let configured = match configure(LOOP_BLOCK_BYTES) {
            // The host file system has larger sectors; the driver then chooses the block size.
            Err(error) if is_errno(&error, &[libc::EINVAL]) => configure(0),
            other => other,
        };
        match configured {
            Ok(()) => {}
            Err(error) if is_errno(&error, &[libc::EBUSY, libc::ENXIO]) => {
                return Ok(Attempt::Raced(error));
            }
            Err(error) => return Err(error).at(Step::AttachLoop, &path),
        }
        let set = loopdev::flags(device.as_fd()).at(Step::AttachLoop, &path)?;
        let direct_io = set & loopdev::LO_FLAGS_DIRECT_IO != 0;
        Ok(Attempt::Done(Attached { device: path, direct_io, fd: device }))
    }
}

enum Attempt {
    Done(Attached),
    Raced(io::Error),
}

/// A volume attached to a loop device. Keep it until the box has mounted the device: when the last open file and the
/// last mount of the device are gone, the kernel detaches it.
#[derive(Debug)]
pub struct Attached {
    /// The block device, `/dev/loopN`.
    pub device: PathBuf,
    /// True if the device bypasses the host's page cache.
    pub direct_io: bool,
    fd: OwnedFd,
}

impl AsFd for Attached {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn is_errno(error: &io::Error, numbers: &[i32]) -> bool {
    error.raw_os_error().is_some_and(|number| numbers.contains(&number))
}

fn open_device(path: &Path) -> io::Result<OwnedFd> {
    Ok(OpenOptions::new().read(true).write(true).open(path)?.into())
}

/// Opens a loop device and makes its node where /dev is no devtmpfs.
fn open_loop(path: &Path, number: u32) -> io::Result<OwnedFd> {
    match open_device(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mode = Mode::S_IRUSR | Mode::S_IWUSR;
            match mknod(path, SFlag::S_IFBLK, mode, makedev(LOOP_MAJOR, u64::from(number))) {
                Ok(()) | Err(nix::errno::Errno::EEXIST) => open_device(path),
                Err(errno) => Err(errno.into()),
            }
        }
        other => other,
    }
}

fn missing_driver(error: io::Error, path: &Path) -> Error {
    let cause = if is_errno(&error, &[libc::ENOENT, libc::ENXIO, libc::ENODEV]) {
        Cause::Missing(
            "the loop driver is not there; load it with `modprobe loop`, or give this container /dev/loop-control",
        )
    } else {
        Cause::Io(error)
    };
    Error::new(Step::AttachLoop, path.display().to_string(), cause)
}

/// Direct I/O spares the second copy in the page cache. Not on XFS: there a volume may share blocks with its template,
/// and racing direct writes to shared blocks can reach the *source* (CVE-2026-64600), so the page cache stays between.
fn direct_io_is_safe(backing: &File) -> io::Result<bool> {
    Ok(fstatfs(backing)?.f_type as i64 != XFS_SUPER_MAGIC)
}
