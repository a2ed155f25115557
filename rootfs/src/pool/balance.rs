//! The balance between a sparse pool and the file system around it.
//!
//! The pool's file is sparse and may be larger than what is free around it. If XFS could count on all of it, a write to
//! the pool could find no space below: an I/O error in the middle of a file system instead of "no space left". So one
//! file of the pool, the balloon, takes the blocks that have nothing behind them. It is preallocated and never written,
//! hence occupies nothing outside. Then the free space of the pool is at most that of the disk less a margin. What
//! volumes write takes as much from both, so this stays true between two calls; the margin is for what others write.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::settings::bytes_of;
use crate::error::{At, Result, Step};

const FILE: &str = "balloon";
/// Blocks of the pool.
const BLOCK_BYTES: u64 = 4096;
/// The balloon is let out only if the pool lacks at least this part of what the disk has.
const LACK_DIVISOR: u64 = 16;
/// The balloon is blown up when the pool has this part of the margin too much.
const EXCESS_DIVISOR: u64 = 4;
/// The balloon grows in about so many pieces.
const PIECES: u64 = 32;
/// The least of a piece.
const PIECE_BYTES_MIN: u64 = 16 << 20;

#[derive(Debug)]
pub(super) struct Balloon {
    outer: PathBuf,
    root: PathBuf,
    margin: u64,
    /// One adjustment at a time.
    adjusting: Mutex<()>,
}

impl Balloon {
    pub(super) fn new(outer: &Path, root: &Path, margin: u64) -> Self {
        Self { outer: outer.to_owned(), root: root.to_owned(), margin, adjusting: Mutex::default() }
    }

    /// Adjusts the balloon to the free space of the disk.
    pub(super) fn balance(&self) -> Result<()> {
        let _guard = self.adjusting.lock().unwrap_or_else(PoisonError::into_inner);
        let outer = bytes_of(&self.outer).at(Step::BalancePool, &self.outer)?;
        let inner = bytes_of(&self.root).at(Step::BalancePool, &self.root)?;
        let wanted = outer.free.saturating_sub(self.margin);
        let path = self.root.join(FILE);
        let excess = inner.free > wanted + self.margin / EXCESS_DIVISOR;
        let lack = inner.free + wanted / LACK_DIVISOR < wanted;
        if !excess && !lack {
            return Ok(());
        }
        let file = open(&path).at(Step::BalancePool, &path)?;
        let size = file.metadata().at(Step::BalancePool, &path)?.size();
        if excess {
            return grow(&file, size, inner.free - wanted).at(Step::BalancePool, &path);
        }
        let rest = size.saturating_sub(wanted - inner.free);
        if rest == size { Ok(()) } else { file.set_len(rest).at(Step::BalancePool, &path) }
    }

    /// The blocks that it has.
    pub(super) fn bytes(&self) -> Result<u64> {
        let path = self.root.join(FILE);
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            other => other.map(|metadata| metadata.blocks() * 512).at(Step::BalancePool, &path),
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Takes `more` bytes. XFS keeps some free blocks for itself, so less than that may be had; the pieces that were had stay.
fn grow(file: &File, size: u64, more: u64) -> io::Result<()> {
    let piece = (more / PIECES).max(PIECE_BYTES_MIN).next_multiple_of(BLOCK_BYTES);
    let (mut position, end) = (size, size + more / BLOCK_BYTES * BLOCK_BYTES);
    while position < end {
        let length = piece.min(end - position);
        match fallocate(file, FallocateFlags::empty(), position, length) {
            Ok(()) => position += length,
            Err(Errno::NOSPC) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
