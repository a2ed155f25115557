//! The lock file by which processes keep their box awake.
//!
//! A process that must run, though it uses little CPU, holds a lock on `/run/icebox/keep`: flock(2) or a record lock
//! of fcntl(2), shared or not. The kernel releases it when the process ends, so no clean-up is needed. Leaves out: when
//! to ask (the daemon asks before it freezes a box that looks idle).

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::error::Error;

/// The file's name, beside the socket of sudo.
const NAME: &str = "keep";
/// Most bytes read of the list of locks.
const LOCKS_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// The file, held open: a later file of the same name does not count.
#[derive(Debug)]
pub(crate) struct KeepFile {
    /// Device and inode as the kernel's list of locks writes them.
    id: String,
    _file: OwnedFd,
}

impl KeepFile {
    /// Makes it, open to every user of the box.
    pub(crate) fn make(directory: &Path) -> Result<Self, Error> {
        let path = directory.join(NAME);
        let failed =
            |e: rustix::io::Errno| Error::io("make the file for locks that keep the box awake", path.display(), e);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o666)).map_err(failed)?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(0o666)).map_err(failed)?;
        let stat = rustix::fs::fstat(&file).map_err(failed)?;
        let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
        Ok(Self { id: format!("{major:02x}:{minor:02x}:{}", stat.st_ino), _file: file })
    }

    /// True if a process holds a lock on it. Read from the kernel's list, since an attempt to lock would disturb
    /// processes that take the lock at this moment.
    pub(crate) fn is_locked(&self) -> bool {
        let mut text = String::new();
        let read = File::open("/proc/locks").and_then(|file| file.take(LOCKS_BYTES_MAX).read_to_string(&mut text));
        read.is_ok() && holds(&text, &self.id)
    }
}

/// A line: `1: FLOCK ADVISORY WRITE 17 00:2f:5 0 EOF`. One of a process that still waits has `->` after the number.
fn holds(locks: &str, id: &str) -> bool {
    locks.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1).peekable();
        fields.peek() != Some(&"->") && fields.any(|field| field == id)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_one_that_is_held() {
        let locks = "1: POSIX  ADVISORY  READ 17 00:2f:5 0 EOF\n1: -> FLOCK  ADVISORY  WRITE 18 00:2f:6 0 EOF\n";
        assert!(holds(locks, "00:2f:5"));
        assert!(!holds(locks, "00:2f:6") && !holds(locks, "00:2f:50") && !holds("", "00:2f:5"));
    }

    #[test]
    fn a_lock_is_seen_while_its_holder_has_it() {
        let directory = tempfile::tempdir().unwrap();
        let keep = KeepFile::make(directory.path()).unwrap();
        assert!(!keep.is_locked());
        let holder = File::open(directory.path().join(NAME)).unwrap();
        holder.lock_shared().unwrap();
        assert!(keep.is_locked());
        drop(holder);
        assert!(!keep.is_locked());
    }
}
