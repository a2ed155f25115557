//! Where an entry goes: a directory tree that is only reached through descriptors below its root.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, statat, unlinkat};
use rustix::io::Errno;

use super::fault::{Fault, refuse};
use super::limits::Limits;
use crate::image::tree::remove_children;

/// Directories that stay open: archives list a directory's files one after the other.
const OPEN_DIRS_MAX: usize = 32;
/// Directories that the archive did not list.
const IMPLIED_MAX: usize = 20_000;
/// Attempts of a lookup: a concurrent rename anywhere makes the kernel give up (EAGAIN).
const RESOLVE_ATTEMPTS_MAX: u32 = 32;
/// Longest name of a file (NAME_MAX of Linux).
const NAME_BYTES_MAX: usize = 255;

/// The tree of a layer that is being unpacked.
pub(super) struct Place {
    root: Rc<OwnedFd>,
    open: Vec<(Vec<u8>, Rc<OwnedFd>)>,
    /// Directories that the archive has not listed (yet).
    pub(super) implied: std::collections::BTreeSet<Vec<u8>>,
}

/// A path of an archive: its parts, none of them empty, `.` or `..`.
pub(super) fn parts<'p>(path: &'p [u8], limits: &Limits) -> Result<Vec<&'p [u8]>, Fault> {
    if path.len() > limits.path_bytes {
        refuse!("its path has {} bytes; at most {} are allowed", path.len(), limits.path_bytes);
    }
    let mut parts = Vec::new();
    for part in path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")) {
        if part == b".." {
            refuse!("its path leads upwards with '..'");
        }
        if part.contains(&0) {
            refuse!("its path has a NUL byte");
        }
        if part.len() > NAME_BYTES_MAX {
            refuse!("a part of its path has {} bytes; at most {NAME_BYTES_MAX} are allowed", part.len());
        }
        parts.push(part);
    }
    if parts.len() > limits.depth {
        refuse!("it lies {} directories deep; at most {} are allowed", parts.len(), limits.depth);
    }
    Ok(parts)
}

impl Place {
    pub(super) fn open(root: &Path) -> Result<Self, Fault> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
        let root = Rc::new(openat(CWD, root, flags, Mode::empty())?);
        Ok(Self { root, open: Vec::new(), implied: std::collections::BTreeSet::from([Vec::new()]) })
    }

    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The directory of these parts; missing ones are made, if `make`.
    pub(super) fn dir(&mut self, parts: &[&[u8]], make: bool) -> Result<Rc<OwnedFd>, Fault> {
        if parts.is_empty() {
            return Ok(Rc::clone(&self.root));
        }
        let path = parts.join(&b'/');
        if let Some((_, fd)) = self.open.iter().rev().find(|(known, _)| *known == path) {
            return Ok(Rc::clone(fd));
        }
        let fd = match self.lookup(&path) {
            Ok(fd) => Rc::new(fd),
            Err(Errno::NOENT) if make => {
                let (name, above) = (parts[parts.len() - 1], &parts[..parts.len() - 1]);
                let parent = self.dir(above, true)?;
                mkdirat(&*parent, name, Mode::from_raw_mode(0o755))?;
                if self.implied.len() >= IMPLIED_MAX {
                    refuse!("the archive has more than {IMPLIED_MAX} directories that it does not list");
                }
                self.implied.insert(path.clone());
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                Rc::new(openat(&*parent, name, flags, Mode::empty())?)
            }
            Err(Errno::LOOP) => refuse!("its path leads through a symbolic link"),
            // Without following it, a link is not a directory either.
            Err(Errno::NOTDIR) => refuse!("its path leads through something that is not a directory"),
            Err(errno) => return Err(errno.into()),
        };
        if self.open.len() >= OPEN_DIRS_MAX {
            self.open.remove(0);
        }
        self.open.push((path, Rc::clone(&fd)));
        Ok(fd)
    }

    fn lookup(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
        for _ in 0..RESOLVE_ATTEMPTS_MAX {
            match openat2(&*self.root, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN) => {}
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }

    /// Removes what stands at `name`, with everything below. Open directories may be gone with it.
    pub(super) fn remove(&mut self, dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
        match unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR) => {}
            Err(errno) => return Err(errno.into()),
        }
        self.open.clear();
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        remove_children(openat(dir, name, flags, Mode::empty())?.as_fd(), 0)?;
        Ok(unlinkat(dir, name, AtFlags::REMOVEDIR)?)
    }
}

/// What stands at a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum There {
    Nothing,
    Dir,
    /// A file that hides what lower layers have at its path (a character device 0:0).
    Whiteout,
    Other(FileType),
}

pub(super) fn look(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<There> {
    match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(There::Nothing),
        Err(errno) => Err(errno.into()),
        Ok(stat) => Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => There::Dir,
            FileType::CharacterDevice if stat.st_rdev == 0 => There::Whiteout,
            other => There::Other(other),
        }),
    }
}
