//! Snapshots whose content was compared with its digest in this process.
//!
//! A comparison reads the whole content, so it is done once per process and file: as long as inode, length and change
//! time are those of the comparison, the content is too. Every write moves the change time, no system call sets it, and
//! the directory is root's. So the comparison covers what happened while no daemon ran (a failing disk, a file put there
//! by hand, a backup restored by half); a disk that fails later gives I/O errors rather than other bytes.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use crate::digest::digest;
use crate::error::{At, Cause, Error, Result, Step};

/// The state of a file whose content has this digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    device: u64,
    inode: u64,
    pub(crate) length: u64,
    changed: (i64, i64),
    pub(crate) digest: String,
}

/// By id.
#[derive(Debug, Default)]
pub(crate) struct Verified(Mutex<HashMap<String, Seen>>);

impl Verified {
    pub(crate) fn lock(&self) -> MutexGuard<'_, HashMap<String, Seen>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The state of the file, if its content has this digest.
pub(crate) fn state_of(file: &File, path: &Path, digest: &str) -> Result<Seen> {
    let metadata = file.metadata().at(Step::VerifySnapshot, path)?;
    if !metadata.is_file() {
        let why = Cause::Invalid("it is not a regular file");
        return Err(Error::new(Step::VerifySnapshot, path.display().to_string(), why));
    }
    Ok(Seen {
        device: metadata.dev(),
        inode: metadata.ino(),
        length: metadata.len(),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
        digest: digest.to_owned(),
    })
}

/// Reads the whole content.
pub(crate) fn look(file: &File, path: &Path) -> Result<Seen> {
    let before = state_of(file, path, "")?;
    let digest = digest(file).at(Step::VerifySnapshot, path)?;
    let seen = state_of(file, path, &digest)?;
    if (Seen { digest: String::new(), ..seen.clone() }) != before {
        return Err(Error::new(Step::VerifySnapshot, path.display().to_string(), Cause::Corrupt));
    }
    Ok(seen)
}
