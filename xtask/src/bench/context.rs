//! What every benchmark gets: where the binaries and the image are, how many rounds, and small helpers.

use std::path::{Path, PathBuf};

use crate::error::{Cause, Error, Result, While};

/// Rounds that are run and thrown away first: caches fill, templates are made.
pub(super) const WARM_UP_ROUNDS: usize = 2;

/// What each benchmark gets.
#[derive(Clone)]
pub(super) struct Context {
    pub(super) bin_dir: PathBuf,
    pub(super) image_dir: PathBuf,
    pub(super) scratch: PathBuf,
    pub(super) rounds: Option<usize>,
    pub(super) boxes: usize,
}

impl Context {
    pub(super) fn binary(&self, name: &str) -> Result<PathBuf> {
        let path = self.bin_dir.join(name);
        if path.is_file() { Ok(path) } else { Err(failed("find", shown(&path), "no such binary")) }
    }
}

/// An error with a reason in words.
pub(super) fn failed(doing: &'static str, subject: impl ToString, reason: impl ToString) -> Error {
    Error::new(doing, subject.to_string(), Cause::Unexpected(reason.to_string()))
}

pub(super) fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// Makes a directory and its parents.
pub(super) fn make_dir(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).or_fail("make", shown(path))
}
