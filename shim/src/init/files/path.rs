//! Paths as clients give them.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::{Error, ErrorKind};
use crate::names;

/// The kernel's PATH_MAX, without the NUL.
const PATH_BYTES_MAX: usize = 4095;
/// Symbolic links followed by hand, as many as the kernel follows.
const LINKS_MAX: usize = 40;
/// Mode of directories that are made on the way.
const DIRECTORY_MODE: u32 = 0o755;

/// An absolute path, without slashes at its end. Bytes that are no UTF-8 come as [`names`] says.
pub(super) fn absolute(path: &str) -> Result<PathBuf, Error> {
    let step = "read path";
    if !path.starts_with('/') || path.contains('\0') {
        return Err(Error::new(ErrorKind::InvalidInput, step, path));
    }
    let bytes = names::to_bytes(path);
    if bytes.len() > PATH_BYTES_MAX {
        let shown: String = path.chars().take(64).collect();
        return Err(Error::new(ErrorKind::InvalidInput, step, shown));
    }
    let end = bytes.iter().rposition(|byte| *byte != b'/').map_or(1, |last| last + 1);
    Ok(PathBuf::from(OsStr::from_bytes(bytes.get(..end).unwrap_or_default())))
}

/// The directory of a path and the name in it. The root, `.` and `..` are no names.
pub(super) fn split(path: &Path) -> Result<(&Path, &OsStr), Error> {
    // `Path::file_name` would look through a final `.`, so bytes decide.
    let bytes = path.as_os_str().as_bytes();
    let bad = || Error::new(ErrorKind::InvalidInput, "read path", path.display());
    let slash = bytes.iter().rposition(|b| *b == b'/').ok_or_else(bad)?;
    let (parent, name) = bytes.split_at(slash);
    let name = name.get(1..).unwrap_or_default();
    if matches!(name, b"" | b"." | b"..") {
        return Err(bad());
    }
    let parent = if parent.is_empty() { b"/" } else { parent };
    Ok((Path::new(OsStr::from_bytes(parent)), OsStr::from_bytes(name)))
}

/// Opens without following magic links (`/proc/self/fd/…`).
pub(super) fn open(path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(rustix::fs::CWD, path, flags, Mode::empty(), resolve)
}

/// Opens a directory to work below it.
pub(super) fn open_directory(path: &Path) -> Result<OwnedFd, Errno> {
    open(path, OFlags::PATH | OFlags::DIRECTORY)
}

/// Opens a directory, making it and what is above it where missing.
pub(super) fn make_directory(path: &Path) -> Result<OwnedFd, Errno> {
    match open_directory(path) {
        Err(Errno::NOENT) => {}
        result => return result,
    }
    let mut prefix = PathBuf::from("/");
    for part in path.components().skip(1) {
        prefix.push(part);
        match rustix::fs::mkdir(&prefix, Mode::from_raw_mode(DIRECTORY_MODE)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e),
        }
    }
    open_directory(path)
}

/// Writes everything of an open file to disk.
pub(super) fn flush(file: impl AsFd) -> Result<(), Errno> {
    match rustix::fs::fsync(file) {
        // The file system has no storage to flush to.
        Err(Errno::INVAL | Errno::ROFS | Errno::OPNOTSUPP) => Ok(()),
        result => result,
    }
}

/// Makes changes of names in a directory durable, and the directory itself. The journal of the volume keeps the order
/// of changes, so new parents are durable then too. `false` for a directory that the user may change but not open.
pub(super) fn flush_directory(directory: impl AsFd) -> Result<bool, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::openat(directory, ".", flags, Mode::empty()) {
        Ok(open) => flush(open).map(|()| true),
        Err(Errno::ACCESS) => Ok(false),
        Err(e) => Err(e),
    }
}

/// The end of a path after its final symbolic links, the last of which may dangle: the file that an editor would write.
pub(super) fn follow(path: &Path) -> Result<PathBuf, Errno> {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        match rustix::fs::readlink(&path, Vec::new()) {
            Ok(link) => {
                let link = OsStr::from_bytes(link.as_bytes());
                let parent = path.parent().unwrap_or(Path::new("/"));
                path = parent.join(link);
            }
            // Not a link, or nothing there.
            Err(Errno::INVAL | Errno::NOENT) => return Ok(path),
            Err(e) => return Err(e),
        }
    }
    Err(Errno::LOOP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_absolute_and_bounded() {
        assert_eq!(absolute("/a//").unwrap(), Path::new("/a"));
        assert_eq!(absolute("///").unwrap(), Path::new("/"));
        for bad in ["", "a", "./a", "/a\0b"] {
            assert!(absolute(bad).is_err(), "{bad:?}");
        }
        assert!(absolute(&format!("/{}", "a".repeat(5000))).is_err());
    }

    #[test]
    fn names_are_names() {
        let parts = |path| split(Path::new(path)).map(|(parent, name)| (parent.to_owned(), name.to_owned()));
        assert_eq!(parts("/a/b").unwrap(), ("/a".into(), "b".into()));
        assert_eq!(parts("/a").unwrap(), ("/".into(), "a".into()));
        for bad in ["/", "/a/.", "/a/..", "/.."] {
            assert!(parts(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn links_are_followed_to_the_end_and_loops_end() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::os::unix::fs::symlink("b", at("a")).unwrap();
        std::os::unix::fs::symlink(at("c"), at("b")).unwrap();
        assert_eq!(follow(&at("a")).unwrap(), at("c"));
        std::os::unix::fs::symlink("y", at("x")).unwrap();
        std::os::unix::fs::symlink("x", at("y")).unwrap();
        assert_eq!(follow(&at("x")), Err(Errno::LOOP));
    }
}
