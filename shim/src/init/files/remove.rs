//! Removing a file, or a directory with everything in it.
//!
//! Invariants: below the first directory every path is a single name and no step follows a link, so a directory that a
//! process replaces by a link during the work is harmless; the number of open directories is bounded for trees of any
//! depth: a directory that lies too deep is moved up to the top directory and removed from there.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::path;
use crate::error::{Error, ErrorKind};

/// Directories open at one time.
const DEPTH_MAX: usize = 64;
/// Subdirectories remembered per directory and pass.
const BATCH_MAX: usize = 1024;
/// Most passes over a directory that other processes keep filling.
const LOOKS_MAX: u32 = 16;

/// A directory being emptied.
#[derive(Debug)]
struct Level {
    fd: OwnedFd,
    name: CString,
    /// Subdirectories still to be removed.
    pending: Vec<CString>,
    looks: u32,
}

pub(super) fn remove(path: &str, recursive: bool) -> Result<(), Error> {
    let failed = |e: Errno| Error::io("remove", path, e);
    let target = path::absolute(path)?;
    let (parent, name) = path::split(&target)?;
    let parent = path::open_directory(parent).map_err(failed)?;
    match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR) if recursive => {}
        Err(Errno::ISDIR) => return Err(Error::new(ErrorKind::IsADirectory, "remove", path)),
        result => return result.and_then(|()| path::flush_directory(&parent).map(|_| ())).map_err(failed),
    }
    let name = CString::new(std::os::unix::ffi::OsStrExt::as_bytes(name)).map_err(|_| failed(Errno::INVAL))?;
    remove_tree(parent.as_fd(), name).and_then(|()| path::flush_directory(&parent).map(|_| ())).map_err(failed)
}

fn remove_tree(parent: BorrowedFd<'_>, name: CString) -> Result<(), Errno> {
    let mut levels = vec![Level::open(parent, name)?];
    let mut moved = 0_u64;
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.pending.pop() {
            if levels.len() < DEPTH_MAX {
                descend(&mut levels, name)?;
            } else {
                move_up(&levels, &name, &mut moved)?;
            }
            continue;
        }
        if level.look()? {
            continue;
        }
        let Some(empty) = levels.pop() else { break };
        let above = levels.last().map_or(parent, |level| level.fd.as_fd());
        match rustix::fs::unlinkat(above, &empty.name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            // Filled again meanwhile: another pass, a bounded number of times.
            Err(Errno::NOTEMPTY | Errno::EXIST) if empty.looks < LOOKS_MAX => levels.push(empty),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn descend(levels: &mut Vec<Level>, name: CString) -> Result<(), Errno> {
    let Some(level) = levels.last() else {
        return Ok(());
    };
    match Level::open(level.fd.as_fd(), name.clone()) {
        Ok(below) => levels.push(below),
        Err(Errno::NOENT) => {}
        // It was replaced by a non-directory, which is removed too.
        Err(Errno::NOTDIR | Errno::LOOP) => {
            rustix::fs::unlinkat(&level.fd, &name, AtFlags::empty())?;
        }
        Err(e) => return Err(e),
    }
    Ok(())
}

/// Moves a directory that lies too deep into the top one, where the next pass finds it.
fn move_up(levels: &[Level], name: &CStr, moved: &mut u64) -> Result<(), Errno> {
    let (Some(top), Some(level)) = (levels.first(), levels.last()) else {
        return Ok(());
    };
    loop {
        *moved += 1;
        let pid = std::process::id();
        let new = CString::new(format!(".icebox-remove-{pid}-{moved}")).map_err(|_| Errno::INVAL)?;
        let flags = RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(&level.fd, name, &top.fd, &new, flags) {
            Err(Errno::EXIST) => {}
            Err(Errno::NOENT) => return Ok(()),
            result => return result,
        }
    }
}

impl Level {
    fn open(parent: BorrowedFd<'_>, name: CString) -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let fd = rustix::fs::openat(parent, &name, flags | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { fd, name, pending: Vec::new(), looks: 0 })
    }

    /// Removes non-directories and remembers directories. True if there is more to do.
    fn look(&mut self) -> Result<bool, Errno> {
        let mut gone = false;
        let mut directory = Dir::read_from(&self.fd)?;
        directory.rewind();
        while let Some(found) = directory.read() {
            let found = found?;
            let name = found.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let kind = match found.file_type() {
                FileType::Unknown => {
                    let stat = rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW);
                    stat.map_or(FileType::Unknown, |s| FileType::from_raw_mode(s.st_mode))
                }
                known => known,
            };
            if kind == FileType::Directory {
                self.pending.push(name.to_owned());
                if self.pending.len() >= BATCH_MAX {
                    break;
                }
                continue;
            }
            match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => gone = true,
                Err(Errno::ISDIR) => self.pending.push(name.to_owned()),
                Err(e) => return Err(e),
            }
        }
        self.looks += 1;
        // A pass that removed an entry is followed by another, since removing may hide entries from a reader.
        Ok(!self.pending.is_empty() || (gone && self.looks < LOOKS_MAX))
    }
}
