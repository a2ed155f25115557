//! Checking the file system of a volume that is not attached.
//!
//! The kernel marks an ext4 file system in which it has found errors (a write that the host's disk refused, for
//! example), and keeps the mark until e2fsck has run. Such a volume can be mounted, but its errors would spread.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::{At, Result, Step};
use crate::tool::Tool;

const SUPERBLOCK_OFFSET: u64 = 1024;
/// `s_state` in the superblock: 16 bits, little endian.
const STATE_OFFSET: u64 = SUPERBLOCK_OFFSET + 0x3A;
/// `EXT4_ERROR_FS`: errors were found.
const STATE_ERRORS: u16 = 2;
/// Exit codes of e2fsck up to this one: nothing was wrong (0), errors were corrected (1, 2).
const CORRECTED_MAX: i32 = 2;
/// Exit code of e2fsck: errors are left that it corrects only with confirmation.
const UNCORRECTED: i32 = 4;
const E2FSCK: Tool = Tool {
    program: "e2fsck",
    missing: "there is no e2fsck on this machine; install the package e2fsprogs",
    step: Step::CheckVolume,
};

/// When a file system is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// If the kernel has marked it.
    IfMarked,
    /// In any case.
    Always,
}

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checked {
    /// Nothing wrong.
    Clean,
    /// Errors were found and corrected.
    Repaired,
}

/// Checks the ext4 in `path` and corrects errors. Its lock must be held.
pub(crate) fn check(image: &File, path: &Path, check: Check) -> Result<Checked> {
    let marked = is_marked(image).at(Step::CheckVolume, path)?;
    if check == Check::IfMarked && !marked {
        return Ok(Checked::Clean);
    }
    // Replays the journal and makes the safe corrections. Without errors this suffices and reads only a few blocks.
    match repair(&[], path)? {
        Checked::Clean if marked => Ok(Checked::Repaired),
        checked => Ok(checked),
    }
}

/// Checks every structure of the ext4 in `path`, which resize2fs requires.
pub(crate) fn check_whole(path: &Path) -> Result<Checked> {
    repair(&["-f"], path)
}

fn repair(more: &[&str], path: &Path) -> Result<Checked> {
    let run = |how| E2FSCK.output(E2FSCK.command().args(more).arg(how).arg(path), path);
    let mut output = run("-p")?;
    let mut corrected = output.status.code() != Some(0);
    if output.status.code() == Some(UNCORRECTED) {
        corrected = true;
        output = run("-y")?;
    }
    match output.status.code() {
        Some(code) if code <= CORRECTED_MAX && corrected => Ok(Checked::Repaired),
        Some(0) => Ok(Checked::Clean),
        _ => Err(E2FSCK.failed(&output, path)),
    }
}

fn is_marked(image: &File) -> io::Result<bool> {
    let mut state = [0; 2];
    image.read_exact_at(&mut state, STATE_OFFSET)?;
    Ok(u16::from_le_bytes(state) & STATE_ERRORS != 0)
}
