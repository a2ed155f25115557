//! Small operations on names: describe, make a directory, rename.

use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::path;
use crate::error::{Error, ErrorKind};
use crate::protocol::{EntryKind, FileStat};

pub(super) fn stat(path: &str, follow: bool) -> Result<FileStat, Error> {
    let failed = |e: Errno| Error::io("describe file", path, e);
    let mut flags = OFlags::PATH;
    flags.set(OFlags::NOFOLLOW, !follow);
    let fd = path::open(&path::absolute(path)?, flags).map_err(failed)?;
    let stat = rustix::fs::fstat(&fd).map_err(failed)?;
    Ok(FileStat {
        kind: match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => EntryKind::File,
            FileType::Directory => EntryKind::Directory,
            FileType::Symlink => EntryKind::Symlink,
            _ => EntryKind::Other,
        },
        size: u64::try_from(stat.st_size).unwrap_or(0),
        modified: modified(&stat),
        inode: stat.st_ino,
        mode: stat.st_mode & 0o7777,
    })
}

/// Time of the last change of content. Widths differ between machines, hence the conversions.
pub(super) fn modified(stat: &Stat) -> (i64, u32) {
    let nanos = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
    (stat.st_mtime, nanos)
}

pub(super) fn mkdir(path: &str, parents: bool) -> Result<(), Error> {
    let step = "make directory";
    let folder = &path::absolute(path)?;
    if parents {
        return match path::make_directory(folder) {
            Ok(made) => path::flush_directory(made).map(|_| ()).map_err(|e| Error::io(step, path, e)),
            Err(Errno::NOTDIR) if rustix::fs::lstat(folder).is_ok() => {
                Err(Error::new(ErrorKind::AlreadyExists, step, path))
            }
            Err(e) => Err(Error::io(step, path, e)),
        };
    }
    let made = || {
        rustix::fs::mkdir(folder, Mode::from_raw_mode(0o755))?;
        flush_parent(folder)
    };
    made().map_err(|e| Error::io(step, path, e))
}

pub(super) fn rename(from: &str, to: &str) -> Result<(), Error> {
    let (source, target) = (path::absolute(from)?, path::absolute(to)?);
    // The root, `.` and `..` have no name that could be changed.
    path::split(&source)?;
    path::split(&target)?;
    let renamed = || {
        rustix::fs::rename(&source, &target)?;
        // One change of the journal: the old name goes with it.
        flush_parent(&target)
    };
    renamed().map_err(|e| Error::io("rename", format_args!("{from} to {to}"), e))
}

/// Makes a change of a name durable. The change is already done, so a parent that is gone meanwhile is no error.
fn flush_parent(path: &Path) -> Result<(), Errno> {
    match path::open_directory(path.parent().unwrap_or(Path::new("/"))) {
        Ok(parent) => path::flush_directory(parent).map(|_| ()),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => Ok(()),
        Err(e) => Err(e),
    }
}
