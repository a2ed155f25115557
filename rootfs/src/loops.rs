//! Attaching a file to a free loop device, and finding the device of an attached file.
//!
//! Invariant: a device is attached in one atomic step and detaches itself after its last user, so a process that is
//! killed at any point leaves none behind.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::error::{At, Cause, Error, Result, Step};
use crate::sys::loopdev;

/// Most attempts to attach: another process may take the free device first.
const ATTACH_ATTEMPTS_MAX: u32 = 64;
/// Devices that are taken by their number before the kernel is asked for the first free one again: so many are made at
/// most beyond those in use.
const GUESSES_MAX: u32 = 64;
/// The file systems inside have blocks of this size, and so may the device: no partial block writes on the host.
const LOOP_BLOCK_BYTES: u32 = 4096;
/// What the kernel reads ahead on a device that uses the page cache, in sectors: 512 KiB. Reading passes two page caches. With
/// the usual 128 KiB the lower one idles half of the time; with more than 512 KiB its own reading ahead no longer finds a
/// sequence (docs/storage.md has the figures).
const READ_AHEAD_SECTORS: u32 = 1024;
/// Major number of loop devices, fixed by the kernel's device list.
const LOOP_MAJOR: u64 = 7;
const CONTROL: &str = "/dev/loop-control";

/// Attaches `backing`, whose path is `path`. The caller holds the lock of the file; the device keeps it.
pub(crate) fn attach(backing: &File, path: &Path, direct_io: bool) -> Result<Attached> {
    let control = open_device(Path::new(CONTROL)).map_err(|error| missing_driver(error, Path::new(CONTROL)))?;
    let mut flags = loopdev::LO_FLAGS_AUTOCLEAR;
    if direct_io {
        flags |= loopdev::LO_FLAGS_DIRECT_IO;
    }
    // No other thread of this process takes the free device between the choice of its number and LOOP_CONFIGURE.
    static NUMBERS: Mutex<Numbers> = Mutex::new(Numbers { next: None, guesses: 0 });
    let mut numbers = NUMBERS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let mut last = io::Error::from_raw_os_error(libc::EBUSY);
    for _ in 0..ATTACH_ATTEMPTS_MAX {
        let number = match numbers.take(&control) {
            Ok(number) => number,
            Err(error) if is_errno(&error, &[libc::ENOSPC, libc::ENODEV, libc::EMFILE]) => {
                return Err(Error::new(Step::AttachLoop, path.display().to_string(), Cause::NoLoopDevice));
            }
            Err(error) => return Err(error).at(Step::AttachLoop, Path::new(CONTROL)),
        };
        match attach_to(number, backing.as_fd(), path, flags)? {
            Attempt::Done(attached) => {
                numbers.next = number.checked_add(1);
                return Ok(attached);
            }
            Attempt::Raced(error) => last = error,
        }
        thread::yield_now();
    }
    Err(last).at(Step::AttachLoop, path)
}

/// Numbers of devices that may be free.
///
/// LOOP_CTL_GET_FREE looks at each device before the first free one, so each box would make the next one dearer. The one
/// after the last that was attached is usually free, or does not exist yet.
struct Numbers {
    /// The one to try next.
    next: Option<u32>,
    /// How often it was tried since the kernel was asked.
    guesses: u32,
}

impl Numbers {
    /// A number to try. One that turns out to be in use is not tried twice.
    fn take(&mut self, control: &OwnedFd) -> io::Result<u32> {
        if let Some(next) = self.next.take().filter(|_| self.guesses < GUESSES_MAX) {
            match loopdev::add(control.as_fd(), next) {
                Err(error) if !is_errno(&error, &[libc::EEXIST]) => {}
                _ => {
                    self.guesses += 1;
                    return Ok(next);
                }
            }
        }
        self.guesses = 0;
        loopdev::get_free(control.as_fd())
    }
}

/// The device that has this file behind it, opened: it stays attached while the result is kept.
pub(crate) fn find(file: &Metadata) -> io::Result<Option<Attached>> {
    for entry in fs::read_dir("/sys/block")? {
        let name = entry?.file_name();
        let Some(number) = name.to_str().and_then(|name| name.strip_prefix("loop")?.parse().ok()) else { continue };
        if !Path::new("/sys/block").join(&name).join("loop/backing_file").exists() {
            continue;
        }
        let path = PathBuf::from(format!("/dev/loop{number}"));
        // It may have been detached since.
        let Ok(fd) = open_loop(&path, number) else { continue };
        let Ok(status) = loopdev::status(fd.as_fd()) else { continue };
        if (status.device, status.inode) == (file.dev(), file.ino()) {
            let direct_io = status.flags & loopdev::LO_FLAGS_DIRECT_IO != 0;
            return Ok(Some(Attached { device: path, direct_io, fd }));
        }
    }
    Ok(None)
}

fn attach_to(number: u32, backing: BorrowedFd<'_>, file_path: &Path, flags: u32) -> Result<Attempt> {
    let path = PathBuf::from(format!("/dev/loop{number}"));
    let device = match open_loop(&path, number) {
        Ok(device) => device,
        Err(error) if is_errno(&error, &[libc::ENXIO, libc::EBUSY]) => {
            return Ok(Attempt::Raced(error));
        }
        Err(error) => return Err(error).at(Step::AttachLoop, &path),
    };
    let name = file_path.as_os_str().as_bytes();
    let configure = |block| loopdev::configure(device.as_fd(), backing, block, flags, name);
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
    let set = loopdev::status(device.as_fd()).at(Step::AttachLoop, &path)?;
    let direct_io = set.flags & loopdev::LO_FLAGS_DIRECT_IO != 0;
    if !direct_io {
        // A device without it is only slower.
        let _ = loopdev::set_read_ahead(device.as_fd(), READ_AHEAD_SECTORS);
    }
    Ok(Attempt::Done(Attached { device: path, direct_io, fd: device }))
}

enum Attempt {
    Done(Attached),
    Raced(io::Error),
}

/// A file attached to a loop device, or a disk that is a device itself. Keep it until the device is mounted: when the last open file and the last mount of
/// the device are gone, the kernel detaches it.
#[derive(Debug)]
pub struct Attached {
    /// The block device, `/dev/loopN` with a file.
    pub device: PathBuf,
    /// True if the device bypasses the host's page cache.
    pub direct_io: bool,
    fd: OwnedFd,
}

impl Attached {
    /// A block device that is a disk itself, with no loop device.
    pub(crate) fn direct(device: &Path) -> io::Result<Attached> {
        Ok(Attached { device: device.to_owned(), direct_io: true, fd: open_device(device)? })
    }

    /// Makes the device as large as its file is now.
    pub(crate) fn resize_to_file(&self) -> io::Result<()> {
        loopdev::set_capacity(self.fd.as_fd())
    }
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
