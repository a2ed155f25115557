//! Writing a file: a new file beside the target, flushed, then renamed over it.
//!
//! Invariants: a reader sees the old file or the whole new one. The new one has the mode of the old one (without set-id
//! bits) but is the user's own; hard links to the old one keep the old content. A target that the user could not
//! write to is refused even where the rename would work. A power cut leaves the old file or the whole new one; after
//! the answer, the new one.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::SystemTime;

use rustix::fs::{Access, AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::channel::Channel;
use super::path;
use crate::error::{Error, ErrorKind};
use crate::protocol::{Answer, FrameType};

/// Mode of new files.
const FILE_MODE: u32 = 0o644;
/// Names tried for the file beside.
const NAME_TRIES_MAX: u32 = 16;

/// A file under a name of its own until it is renamed; removed when dropped before.
#[derive(Debug)]
struct Beside {
    directory: OwnedFd,
    name: String,
    file: OwnedFd,
    placed: bool,
}

pub(super) fn write(channel: &mut Channel, path: &str) -> Result<(), Error> {
    let failed = |e: Errno| Error::io("write file", path, e);
    let target = path::follow(&path::absolute(path)?).map_err(failed)?;
    let (parent, name) = path::split(&target)?;
    let directory =
        path::make_directory(parent).map_err(|e| Error::io("make parent directory", parent.display(), e))?;
    let mode = mode_for(&directory, name, path)?;
    let mut beside = Beside::create(directory).map_err(failed)?;
    channel.answer(Ok(Answer::Done))?;
    loop {
        let Some(frame) = channel.receive()? else {
            // The client cancelled: nothing is visible.
            return Ok(());
        };
        match frame.kind {
            FrameType::Data => beside.append(&frame.payload).map_err(failed)?,
            FrameType::End => break,
            other => {
                let what = format!("{other:?}");
                return Err(Error::new(ErrorKind::InvalidInput, "unexpected frame", what));
            }
        }
    }
    beside.place(name, mode).map_err(failed)?;
    channel.answer(Ok(Answer::Done))
}

fn mode_for(directory: &OwnedFd, name: &OsStr, path: &str) -> Result<u32, Error> {
    let step = "write file";
    let stat = match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(FILE_MODE),
        Err(e) => return Err(Error::io(step, path, e)),
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        FileType::Directory => return Err(Error::new(ErrorKind::IsADirectory, step, path)),
        _ => {
            let step = "write what is no regular file";
            return Err(Error::new(ErrorKind::InvalidInput, step, path));
        }
    }
    rustix::fs::accessat(directory, name, Access::WRITE_OK, AtFlags::empty()).map_err(|e| Error::io(step, path, e))?;
    Ok(stat.st_mode & 0o777)
}

impl Beside {
    fn create(directory: OwnedFd) -> Result<Self, Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let mut last = Errno::EXIST;
        for attempt in 0..NAME_TRIES_MAX {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            let nanos = now.map_or(0, |d| d.as_nanos());
            let name = format!(".icebox-{}-{nanos:x}-{attempt}", std::process::id());
            let flags = flags | OFlags::CLOEXEC;
            match rustix::fs::openat(&directory, &name, flags, Mode::from_raw_mode(0o600)) {
                Ok(file) => {
                    return Ok(Self { directory, name, file, placed: false });
                }
                Err(Errno::EXIST) => last = Errno::EXIST,
                Err(e) => return Err(e),
            }
        }
        Err(last)
    }

    fn append(&mut self, mut bytes: &[u8]) -> Result<(), Errno> {
        while !bytes.is_empty() {
            match rustix::io::write(&self.file, bytes) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn place(&mut self, name: &OsStr, mode: u32) -> Result<(), Errno> {
        rustix::fs::fchmod(&self.file, Mode::from_raw_mode(mode))?;
        // Before the rename: otherwise the new name could be on disk before the content.
        path::flush(&self.file)?;
        let directory = self.directory.as_fd();
        rustix::fs::renameat(directory, &self.name, directory, name)?;
        self.placed = true;
        if !path::flush_directory(directory)? {
            // A rename changes the file's own record too, so that flushing this takes the name along on the file
            // systems that volumes have.
            path::flush(&self.file)?;
        }
        Ok(())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if !self.placed {
            // A file that is already gone is fine.
            let _ = rustix::fs::unlinkat(&self.directory, &self.name, AtFlags::empty());
        }
    }
}
