//! Changing the size of the ext4 in a copy that no box uses yet.

use std::fs::{File, OpenOptions};
use std::path::Path;

use crate::check::check_whole;
use crate::error::{At, Cause, Error, Result, Step};
use crate::tool::Tool;

/// resize2fs names this when the files do not fit.
const DOES_NOT_FIT: [&str; 2] = ["smaller than minimum", "No space left"];

const RESIZE2FS: Tool = Tool {
    program: "resize2fs",
    missing: "there is no resize2fs on this machine; install the package e2fsprogs",
    step: Step::ResizeCopy,
};

/// Gives the image the length `bytes`, and its file system with it. Its lock need not be held: the name is unfinished.
pub(crate) fn fit(image: &File, path: &Path, bytes: u64) -> Result<()> {
    let length = image.metadata().at(Step::ResizeCopy, path)?.len();
    if length == bytes {
        return Ok(());
    }
    check_whole(path)?;
    if length < bytes {
        set_length(path, bytes)?;
    }
    let kib = format!("{}K", bytes / 1024);
    let output = RESIZE2FS.output(RESIZE2FS.command().arg(path).arg(kib), path)?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        if length > bytes && DOES_NOT_FIT.iter().any(|words| text.contains(words)) {
            return Err(Error::new(Step::ResizeCopy, path.display().to_string(), Cause::TooSmall));
        }
        return Err(RESIZE2FS.failed(&output, path));
    }
    if length > bytes {
        set_length(path, bytes)?;
    }
    Ok(())
}

fn set_length(path: &Path, bytes: u64) -> Result<()> {
    let file = OpenOptions::new().write(true).open(path).at(Step::ResizeCopy, path)?;
    file.set_len(bytes).at(Step::ResizeCopy, path)
}
