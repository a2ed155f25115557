//! Formatting a pool.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use super::settings::{PoolSettings, TEMP_HINT, bytes_of, wanted_bytes};
use crate::error::{At, Cause, Error, Result, Step};
use crate::files;
use crate::sys::fiemap;
use crate::tool::Tool;

/// What the pool takes of its disk from the first moment on: mkfs.xfs allocates the log.
const LOG_BYTES: u64 = 64 << 20;

/// A pool of at least this size has its log written when it is made.
const WRITTEN_LOG_POOL_BYTES_MIN: u64 = 32 << 30;
/// Written at once.
const PIECE_BYTES: u64 = 1 << 20;

/// The log is as small as mkfs.xfs allows, and is allocated by it: a write to it never needs space of the file system
/// around the pool. That matters, since XFS shuts down if a write to its log fails, while it repeats every other write
/// of metadata until there is space. The reverse map is off: no part of it is needed here, and it costs writes.
const OPTIONS: &[&str] =
    &["-q", "-s", "size=4096", "-m", "crc=1,reflink=1,rmapbt=0", "-l", "size=64m", "-L", "icebox-pool"];

pub(super) const MKFS: Tool = Tool {
    program: "mkfs.xfs",
    missing: "there is no mkfs.xfs on this machine; install the package xfsprogs",
    step: Step::MakePool,
};

/// Makes the file `path`. It has its name only when it is formatted and on disk.
pub(super) fn make(data_dir: &Path, path: &Path, settings: &PoolSettings) -> Result<()> {
    let free = bytes_of(data_dir).at(Step::MakePool, data_dir)?.free;
    if free < LOG_BYTES + settings.margin {
        let why = Cause::Invalid("the disk has no space for the log of a pool (64 MiB)");
        return Err(Error::new(Step::MakePool, path.display().to_string(), why));
    }
    let temp = files::temp_path(data_dir, TEMP_HINT);
    let made = make_as(data_dir, &temp, path, settings);
    if made.is_err() {
        let _ = fs::remove_file(&temp);
    }
    made
}

fn make_as(data_dir: &Path, temp: &Path, path: &Path, settings: &PoolSettings) -> Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temp).at(Step::MakePool, temp)?;
    file.set_len(wanted_bytes(data_dir, settings)?).at(Step::MakePool, temp)?;
    format(temp, false)?;
    // From here on, a block that is said to be unwritten is.
    file.sync_all().at(Step::MakePool, temp)?;
    if file.metadata().at(Step::MakePool, temp)?.len() >= WRITTEN_LOG_POOL_BYTES_MIN {
        write_log(&file).at(Step::MakePool, temp)?;
    }
    file.sync_all().at(Step::MakePool, temp)?;
    fs::rename(temp, path).at(Step::MakePool, path)?;
    files::sync_dir(data_dir).at(Step::MakePool, data_dir)
}

/// Writes zeroes to the blocks that mkfs.xfs has only allocated, which are its log. Each first write to such a block makes the file
/// system around the pool commit its journal once more, so without this the first 64 MiB of the log make flushes in boxes
/// cost a third more. It is not done for a pool so small that it is a trial.
fn write_log(file: &File) -> io::Result<()> {
    let zeroes = vec![0; PIECE_BYTES as usize];
    let unwritten = match fiemap::unwritten(file.as_fd()) {
        // Not all file systems tell.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOTTY)) => return Ok(()),
        other => other?,
    };
    unwritten.into_iter().try_for_each(|Range { start, end }| {
        (start..end)
            .step_by(PIECE_BYTES as usize)
            .try_for_each(|position| file.write_all_at(&zeroes[..PIECE_BYTES.min(end - position) as usize], position))
    })
}

/// Formats a file or a device. Without `force`, mkfs.xfs itself refuses one that has a signature.
pub(super) fn format(path: &Path, force: bool) -> Result<()> {
    let mut command = MKFS.command();
    command.args(OPTIONS);
    if force {
        command.arg("-f");
    }
    MKFS.run(command.arg(path), path).map(|_| ())
}
