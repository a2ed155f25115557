//! Formatting a pool.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::settings::{PoolSettings, TEMP_HINT, bytes_of, wanted_bytes};
use crate::error::{At, Cause, Error, Result, Step};
use crate::files;
use crate::tool::Tool;

/// What the pool takes of its disk from the first moment on: mkfs.xfs allocates the log.
const LOG_BYTES: u64 = 64 << 20;

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
    file.sync_all().at(Step::MakePool, temp)?;
    fs::rename(temp, path).at(Step::MakePool, path)?;
    files::sync_dir(data_dir).at(Step::MakePool, data_dir)
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
