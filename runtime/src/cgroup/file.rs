//! A cgroup directory held open, and its control files, always reached by the directory's fd.
//!
//! A control file takes one `write(2)` per command and reports the outcome by its errno, so each write is one call.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::{Errno, retry_on_intr};

use super::error::{Error, Result};

/// The most we read of one control file; `cgroup.procs` of a group at its process limit needs far less.
const FILE_BYTES_MAX: usize = 4 << 20;
/// The most child cgroups we list of one directory.
const CHILDREN_MAX: usize = 65_536;

const DIR_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

/// An open cgroup directory and, for messages only, its path.
#[derive(Debug)]
pub(super) struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

impl Dir {
    /// Opens the root of a hierarchy, by its mount point.
    pub(super) fn root(path: &Path) -> std::result::Result<Self, Errno> {
        let fd = rustix::fs::open(path, DIR_FLAGS, Mode::empty())?;
        Ok(Self { fd, path: path.to_path_buf() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(super) fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Opens a cgroup below: `relative` may have several parts, or none for a second handle on this one.
    /// The kernel is told not to leave this directory (`RESOLVE_BENEATH`), though the path was checked before.
    pub(super) fn below(&self, relative: &str) -> std::result::Result<Self, Errno> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let name = if relative.is_empty() { "." } else { relative };
        let fd = retry_on_intr(|| rustix::fs::openat2(&self.fd, name, DIR_FLAGS, Mode::empty(), resolve))?;
        let path = if relative.is_empty() { self.path.clone() } else { self.path.join(relative) };
        Ok(Self { fd, path })
    }

    /// Makes the child `name` unless it is there, and opens it. Says whether it was made by this call.
    pub(super) fn make(&self, name: &str) -> Result<(Self, bool)> {
        let subject = self.path.join(name);
        let fresh = match rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(e) => return Err(Error::errno("create", subject, e)),
        };
        let dir = self.below(name).map_err(|e| Error::errno("open", subject, e))?;
        Ok((dir, fresh))
    }

    /// Removes the empty child `name`.
    pub(super) fn rmdir(&self, name: &str) -> std::result::Result<(), Errno> {
        rustix::fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR)
    }

    pub(super) fn inode(&self) -> Result<u64> {
        let stat = rustix::fs::fstat(&self.fd).map_err(|e| Error::errno("stat", &self.path, e))?;
        Ok(stat.st_ino)
    }

    /// Opens a control file.
    pub(super) fn open(&self, file: &str, access: OFlags) -> std::result::Result<OwnedFd, Errno> {
        let flags = access | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        retry_on_intr(|| rustix::fs::openat(&self.fd, file, flags, Mode::empty()))
    }

    /// The whole text of a control file.
    pub(super) fn read(&self, file: &str) -> Result<String> {
        let fail = |e| Error::errno("read", self.path.join(file), e);
        let fd = self.open(file, OFlags::RDONLY).map_err(fail)?;
        read_all(fd.as_fd()).map_err(fail)
    }

    /// One command to a control file.
    pub(super) fn write(&self, file: &str, value: &str) -> Result<()> {
        let fail = |e| Error::errno("write", self.path.join(file), e).detail(format!("value {value:?}"));
        let fd = self.open(file, OFlags::WRONLY).map_err(fail)?;
        match retry_on_intr(|| rustix::io::write(&fd, value.as_bytes())) {
            Ok(n) if n == value.len() => Ok(()),
            Ok(_) => Err(fail(Errno::IO)),
            Err(e) => Err(fail(e)),
        }
    }

    pub(super) fn has(&self, file: &str) -> bool {
        rustix::fs::statat(&self.fd, file, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// The names of the child cgroups.
    pub(super) fn children(&self) -> Result<Vec<String>> {
        let fail = |e| Error::errno("list", &self.path, e);
        let mut names = Vec::new();
        // A fresh open file description: all listings would share the offset of the held one.
        let fresh = self.below("").map_err(fail)?;
        for entry in rustix::fs::Dir::new(fresh.fd).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let name = entry.file_name().to_bytes();
            if entry.file_type() != FileType::Directory || name == b"." || name == b".." {
                continue;
            }
            let name = std::str::from_utf8(name)
                .map_err(|_| Error::invalid("list", &self.path, "a child's name is not UTF-8"))?;
            if names.len() == CHILDREN_MAX {
                return Err(Error::invalid("list", &self.path, "too many children"));
            }
            names.push(name.to_owned());
        }
        Ok(names)
    }
}

/// Reads a control file from its start, independent of earlier reads.
pub(super) fn read_all(fd: BorrowedFd<'_>) -> std::result::Result<String, Errno> {
    let mut text = Vec::new();
    let mut chunk = [0_u8; 4096];
    loop {
        let n = retry_on_intr(|| rustix::io::pread(fd, &mut chunk, text.len() as u64))?;
        text.extend_from_slice(&chunk[..n]);
        // The kernel fills the buffer as long as the next line fits (seq_file): half an empty buffer is the end.
        if n < chunk.len() / 2 {
            break;
        }
        if text.len() > FILE_BYTES_MAX {
            return Err(Errno::FBIG);
        }
    }
    String::from_utf8(text).map_err(|_| Errno::ILSEQ)
}
