//! The new root as a descriptor, and paths below it. Every path is resolved from the root's descriptor with `RESOLVE_IN_ROOT`, so a symbolic
//! link in the image can never lead out of it, and everything afterwards is done on the descriptor that was found: no
//! path is looked at twice (CVE-2021-30465, CVE-2019-19921).

use std::{
    ffi::OsStr,
    io,
    os::fd::OwnedFd,
    path::{Component, Path, PathBuf},
};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, mknodat, openat, openat2};

const RESOLVE_RETRIES_MAX: usize = 128;

/// The root of the container to be, seen from outside it.
pub(super) struct RootfsFd {
    root: OwnedFd,
}

impl RootfsFd {
    pub(super) fn new(root: OwnedFd) -> Self {
        Self { root }
    }

    pub(super) fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// The object at `path`, following links within the root.
    pub(super) fn resolve(&self, path: &Path) -> io::Result<OwnedFd> {
        self.open(path, OFlags::PATH, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
    }

    /// The object at `path`, refusing any link: for `/proc` and `/sys`, which decide what the kernel shows.
    pub(super) fn resolve_no_links(&self, path: &Path) -> io::Result<OwnedFd> {
        self.open(path, OFlags::PATH, ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS)
    }

    fn open(&self, path: &Path, flags: OFlags, resolve: ResolveFlags) -> io::Result<OwnedFd> {
        for _ in 0..RESOLVE_RETRIES_MAX {
            match openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                // The kernel could not prove that the walk stayed inside because of a rename elsewhere.
                Err(rustix::io::Errno::AGAIN) => {}
                other => return Ok(other?),
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    /// The directory at `path`, made with its parents where missing.
    pub(super) fn make_dir(&self, path: &Path, mode: Mode) -> io::Result<OwnedFd> {
        let mut so_far = PathBuf::from("/");
        let mut at = self.resolve(&so_far)?;
        for part in parts(path)? {
            so_far.push(part);
            at = match self.resolve(&so_far) {
                Ok(next) => next,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    match mkdirat(&at, part, mode) {
                        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                        Err(error) => return Err(error.into()),
                    }
                    self.resolve(&so_far)?
                }
                Err(error) => return Err(error),
            };
        }
        Ok(at)
    }

    /// The file at `path`, made empty with its parents where missing.
    pub(super) fn make_file(&self, path: &Path) -> io::Result<OwnedFd> {
        match self.resolve(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let (dir, name) = self.parent(path)?;
                match mknodat(&dir, name, FileType::RegularFile, Mode::from_raw_mode(0o644), 0) {
                    Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                self.resolve(path)
            }
            other => other,
        }
    }

    /// The parent directory of `path`, made where missing, and the last name.
    pub(super) fn parent<'p>(&self, path: &'p Path) -> io::Result<(OwnedFd, &'p OsStr)> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let dir = self.make_dir(path.parent().unwrap_or(Path::new("/")), Mode::from_raw_mode(0o755))?;
        Ok((dir, name))
    }
}

fn parts(path: &Path) -> io::Result<Vec<&OsStr>> {
    path.components()
        .filter_map(|part| match part {
            Component::RootDir | Component::CurDir => None,
            Component::Normal(name) => Some(Ok(name)),
            Component::ParentDir | Component::Prefix(_) => Some(Err(io::ErrorKind::InvalidInput.into())),
        })
        .collect()
}

/// True if the descriptor is a directory.
pub(super) fn is_dir(fd: &OwnedFd) -> io::Result<bool> {
    Ok(FileType::from_raw_mode(fstat(fd)?.st_mode) == FileType::Directory)
}

/// Opens a directory that an `O_PATH` descriptor names, for use as the anchor of `*at` calls and as a mount target.
pub(super) fn reopen_dir(fd: &OwnedFd) -> io::Result<OwnedFd> {
    Ok(openat(fd, ".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Removes a name below a directory descriptor, if it is there.
pub(super) fn unlink_if_there(dir: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
