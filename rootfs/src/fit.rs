//! Changing the size of an ext4 that no box uses: in a copy, and in a volume whose growth was cut short.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::check::check_whole;
use crate::error::{At, Cause, Error, Result, Step};
use crate::tool::Tool;

/// resize2fs names this when the files do not fit.
const DOES_NOT_FIT: [&str; 2] = ["smaller than minimum", "No space left"];

const SUPERBLOCK_OFFSET: u64 = 1024;
/// `s_blocks_count_lo`: 32 bits, little endian.
const BLOCKS_LOW_OFFSET: u64 = SUPERBLOCK_OFFSET + 0x4;
/// `s_blocks_count_hi`.
const BLOCKS_HIGH_OFFSET: u64 = SUPERBLOCK_OFFSET + 0x150;
/// Blocks of our file systems.
const BLOCK_BYTES: u64 = 4096;

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

/// Makes the file system as large as its image, whose lock is held.
pub(crate) fn fill(image: &File, path: &Path) -> Result<()> {
    let length = image.metadata().at(Step::GrowVolume, path)?.len();
    if file_system_bytes(image).at(Step::GrowVolume, path)? >= length {
        return Ok(());
    }
    check_whole(path)?;
    let tool = Tool { step: Step::GrowVolume, ..RESIZE2FS };
    tool.run(tool.command().arg(path), path).map(|_| ())
}

/// Makes the file system of a device that nothing has mounted at least so large; the device is.
pub(crate) fn fill_to(device: &Path, bytes: u64) -> Result<()> {
    let opened = File::open(device).at(Step::GrowVolume, device)?;
    if file_system_bytes(&opened).at(Step::GrowVolume, device)? >= bytes {
        return Ok(());
    }
    drop(opened);
    check_whole(device)?;
    let tool = Tool { step: Step::GrowVolume, ..RESIZE2FS };
    tool.run(tool.command().arg(device).arg(format!("{}K", bytes / 1024)), device).map(drop)
}

/// The size of the file system, which its superblock has.
pub(crate) fn file_system_bytes(image: &File) -> io::Result<u64> {
    let read = |offset| {
        let mut bytes = [0; 4];
        image.read_exact_at(&mut bytes, offset).map(|()| u64::from(u32::from_le_bytes(bytes)))
    };
    Ok((read(BLOCKS_HIGH_OFFSET)? << 32 | read(BLOCKS_LOW_OFFSET)?) * BLOCK_BYTES)
}

fn set_length(path: &Path, bytes: u64) -> Result<()> {
    let file = OpenOptions::new().write(true).open(path).at(Step::ResizeCopy, path)?;
    file.set_len(bytes).at(Step::ResizeCopy, path)
}
