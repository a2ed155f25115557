//! Disk space that the database keeps for itself.
//!
//! Owns: the blocks allocated ahead for the write-ahead log, the file `icebox.reserve`, and the decision which writes
//! are accepted while the disk is full. Boxes write to the same file system and may fill it at any time, so the space
//! must be allocated before it is needed.
//!
//! The log (`icebox.db-wal`) has blocks beyond its end, so that appending needs no free space. Usually the log is
//! short, since SQLite checkpoints it into the database and restarts it. That fails when the database has to grow on a
//! full disk; then the log grows instead. Its first half takes every write, its second half only writes that end a box
//! or free space. `icebox.reserve` is for the start of the daemon, when SQLite makes its shared-memory file anew.
//!
//! Leaves out: the check for a new box (`boxes::space`).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use rustix::fs::{FallocateFlags, fallocate};

use crate::error::Error;

/// Blocks of the write-ahead log.
const LOG_BYTES: u64 = 16 << 20;
/// Above this size, the log is for essential writes only.
const LOG_ORDINARY_BYTES_MAX: u64 = LOG_BYTES / 2;
/// With less than this left of the log, the reserve file is freed for it.
const LOG_LEFT_BYTES_MIN: u64 = 1 << 20;
/// Size of the reserve file.
const RESERVE_BYTES: u64 = 4 << 20;
/// The reserve file is freed in pieces: boxes may take a part of what is freed before SQLite does.
const RESERVE_PIECE_BYTES: u64 = 512 << 10;
/// With less free space than this, the disk counts as full here.
const FREE_BYTES_MIN: u64 = 8 << 20;
/// A frame of the log: a page and its header.
const FRAME_BYTES: u64 = 4096 + 24;

/// The space of one database.
#[derive(Debug)]
pub(super) struct Space {
    dir: PathBuf,
    log: PathBuf,
    reserve: PathBuf,
    /// Log and reserve have all their blocks.
    whole: bool,
    /// The last answer of [`Space::room`], so that a change is reported once.
    full: bool,
}

/// The writes that are accepted now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// All writes.
    All,
    /// Writes that end a box or free space.
    Essential,
}

/// Free bytes of the file system of `path`, without those that are reserved for root.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let found = rustix::fs::statvfs(path)?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

impl Space {
    /// The space of the database in `dir`. Allocates nothing.
    pub(super) fn new(dir: &Path) -> Self {
        let (log, reserve) = (dir.join("icebox.db-wal"), dir.join("icebox.reserve"));
        Self { dir: dir.to_owned(), log, reserve, whole: false, full: false }
    }

    /// Calls `open`. On a full disk it frees a piece of the reserve file and calls it again, until it succeeds or the
    /// reserve file is used up.
    pub(super) fn open_with<T>(&self, mut open: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
        loop {
            match open() {
                Err(error) if self.is_full() && self.free_a_piece() => {
                    tracing::warn!(error = error.chain(), "the disk is full: the database uses its reserve");
                }
                done => return done,
            }
        }
    }

    /// Allocates missing blocks. Without free space they stay missing.
    pub(super) fn fill(&mut self) {
        let filled = allocate(&self.log, LOG_BYTES, FallocateFlags::KEEP_SIZE)
            .and_then(|()| allocate(&self.reserve, RESERVE_BYTES, FallocateFlags::empty()));
        self.whole = match filled {
            Ok(()) => true,
            // A file system that cannot preallocate: writes may fail, and a retry does not help.
            Err(cause) if cause.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                tracing::warn!("the file system of the data directory cannot reserve space for the database");
                true
            }
            Err(cause) => {
                tracing::warn!(%cause, "cannot reserve disk space for the database");
                false
            }
        };
    }

    /// The writes that are accepted in the next commit. Checks the free space each time: space that comes back is used
    /// at once.
    pub(super) fn room(&mut self, connection: &Connection) -> Room {
        if !self.is_full() {
            if !self.whole || self.full {
                self.fill();
            }
            if std::mem::replace(&mut self.full, false) {
                tracing::info!("the disk has free space again");
            }
            return Room::All;
        }
        if !std::mem::replace(&mut self.full, true) {
            tracing::error!(dir = %self.dir.display(), "the disk is full: the database writes to its reserve");
        }
        let used = self.log_used(connection);
        if used + LOG_LEFT_BYTES_MIN > LOG_BYTES {
            self.give_reserve_to_log(used);
        }
        if used > LOG_ORDINARY_BYTES_MAX { Room::Essential } else { Room::All }
    }

    fn is_full(&self) -> bool {
        free_bytes(&self.dir).is_ok_and(|free| free < FREE_BYTES_MIN)
    }

    /// Bytes of the log that cannot be overwritten yet.
    fn log_used(&self, connection: &Connection) -> u64 {
        let moved = connection
            .query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| Ok((row.get::<_, i64>(1)?, row.get::<_, i64>(2)?)));
        match moved {
            Ok((frames, moved)) if frames == moved => 0,
            Ok((frames, _)) => u64::try_from(frames).unwrap_or(0) * FRAME_BYTES,
            // The database cannot grow.
            Err(_) => std::fs::metadata(&self.log).map_or(0, |found| found.len()),
        }
    }

    fn give_reserve_to_log(&mut self, used: u64) {
        while self.free_a_piece() {}
        self.whole = false;
        if let Err(cause) = allocate(&self.log, used + LOG_LEFT_BYTES_MIN, FallocateFlags::KEEP_SIZE) {
            tracing::error!(%cause, "the database has used up its reserve of disk space");
        }
    }

    /// Returns true if there was one.
    fn free_a_piece(&self) -> bool {
        let Ok(file) = OpenOptions::new().write(true).open(&self.reserve) else { return false };
        let size = file.metadata().map_or(0, |found| found.len());
        size > 0 && file.set_len(size.saturating_sub(RESERVE_PIECE_BYTES)).is_ok()
    }
}

/// Ensures that the file has blocks for `bytes`.
fn allocate(path: &Path, bytes: u64, flags: FallocateFlags) -> io::Result<()> {
    let file: File = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    if file.metadata()?.blocks() * 512 >= bytes {
        return Ok(());
    }
    Ok(fallocate(&file, flags, 0, bytes)?)
}

/// The error of SQLite for a full disk.
pub(super) fn disk_full() -> rusqlite::Error {
    let text = "the reserve of disk space is for deleting boxes".to_owned();
    rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL), Some(text))
}

/// True if SQLite had no space. Earlier data on disk is intact then.
pub(super) fn is_disk_full(cause: &rusqlite::Error) -> bool {
    cause.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Cause;

    #[test]
    fn the_reserve_is_allocated_once_and_freed_in_pieces() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut space = Space::new(dir.path());
        space.fill();
        let blocks = |path: &Path| std::fs::metadata(path).expect("a file").blocks() * 512;
        assert!(space.whole && blocks(&space.log) >= LOG_BYTES && blocks(&space.reserve) >= RESERVE_BYTES);
        assert_eq!(std::fs::metadata(&space.log).expect("a file").len(), 0, "the log is empty all the same");
        let mut pieces = 0;
        while space.free_a_piece() {
            pieces += 1;
        }
        assert_eq!(pieces, RESERVE_BYTES / RESERVE_PIECE_BYTES);
        assert!(!Space::new(&dir.path().join("none")).free_a_piece());
    }

    #[test]
    fn a_failure_on_a_disk_with_free_space_is_not_tried_again() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut calls = 0;
        let done: Result<(), Error> = Space::new(dir.path()).open_with(|| {
            calls += 1;
            Err(Error::new("open", "", Cause::Invalid("for the test")))
        });
        assert!(done.is_err() && calls == 1);
    }
}
