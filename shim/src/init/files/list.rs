//! Listing a directory, or the one entry of a file.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, OFlags, Stat};
use rustix::io::Errno;

use super::channel::Channel;
use super::path;
use crate::error::{Error, ErrorKind};
use crate::names;
use crate::protocol::{Answer, Entry, FileEntry, FrameType, encode};

/// Longer listings are refused.
const LIST_ENTRIES_MAX: usize = 100_000;
/// Names and paths in one frame: as JSON each byte may become six, and the frame's limit is 1 MiB.
const BATCH_TEXT_BYTES: usize = 64 * 1024;

pub(super) fn list(channel: &mut Channel, path: &str) -> Result<(), Error> {
    let folder = &path::absolute(path)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK;
    let entries = match path::open(folder, flags) {
        Ok(fd) => entries(folder, Dir::new(fd), path)?,
        Err(Errno::NOTDIR) => vec![single(folder, path)?],
        Err(e) => return Err(Error::io("list directory", path, e)),
    };
    channel.answer(Ok(Answer::List))?;
    let mut batch = Vec::new();
    let mut text = 0;
    for entry in entries {
        text += entry.name.len() + entry.path.len();
        batch.push(entry);
        if text >= BATCH_TEXT_BYTES {
            send(channel, &mut batch)?;
            text = 0;
        }
    }
    send(channel, &mut batch)?;
    channel.send(FrameType::End, &[])
}

fn send(channel: &mut Channel, batch: &mut Vec<FileEntry>) -> Result<(), Error> {
    if batch.is_empty() {
        return Ok(());
    }
    let item = encode(&Entry::Files(std::mem::take(batch)))?;
    channel.send(FrameType::Item, &item)
}

fn single(file: &Path, path: &str) -> Result<FileEntry, Error> {
    let stat = rustix::fs::lstat(file).map_err(|e| Error::io("list file", path, e))?;
    let (parent, name) = path::split(file)?;
    Ok(entry(parent, name, &stat))
}

fn entries(folder: &Path, directory: Result<Dir, Errno>, path: &str) -> Result<Vec<FileEntry>, Error> {
    let failed = |e: Errno| Error::io("list directory", path, e);
    let mut directory = directory.map_err(failed)?;
    let mut all = Vec::new();
    while let Some(found) = directory.read() {
        let found = found.map_err(failed)?;
        let name = found.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        if all.len() >= LIST_ENTRIES_MAX {
            return Err(Error::new(ErrorKind::TooLarge, "list directory", path));
        }
        let fd = directory.fd().map_err(failed)?;
        // An entry that was removed meanwhile, or that the user may not stat, is not listed.
        let Ok(stat) = rustix::fs::statat(fd, name, AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        all.push((name.to_bytes().to_vec(), stat));
    }
    all.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    Ok(all.iter().map(|(name, stat)| entry(folder, OsStr::from_bytes(name), stat)).collect())
}

fn entry(parent: &Path, name: &OsStr, stat: &Stat) -> FileEntry {
    FileEntry {
        name: names::to_text(name.as_bytes()),
        path: names::to_text(parent.join(name).as_os_str().as_bytes()),
        size: u64::try_from(stat.st_size).unwrap_or(0),
        is_dir: FileType::from_raw_mode(stat.st_mode) == FileType::Directory,
        modified: super::change::modified(stat),
    }
}
