//! Finding the devices at the start, and what each of them is.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::header::{self, Header, Use};
use super::program::Program;
use super::settings::{BlockSettings, BlockSource, Refused, expand};
use super::slots::{Slot, Slots, State};
use crate::device::{self, Content};
use crate::error::{At, Cause, Error, Result, Step};

/// Bytes at the start of a device that must be zero if nothing is on it.
const START_BYTES: usize = 1 << 20;

/// What a device is.
#[derive(Debug)]
pub(super) enum Found {
    /// Ours, with this header.
    Ours(Header),
    /// Nothing that is known is on it.
    Empty,
    /// It is not ours to touch.
    Foreign(String),
}

/// Looks at a device.
pub(super) fn look(path: &Path, owner: &str) -> Result<Found> {
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Found::Foreign("there is no such device".to_owned()));
        }
        found => found.at(Step::ProbeDevice, path)?,
    };
    if !metadata.file_type().is_block_device() {
        return Ok(Found::Foreign("it is not a block device".to_owned()));
    }
    match header::read(path).at(Step::ProbeDevice, path)? {
        Some(header) if header.owner == owner => return Ok(Found::Ours(header)),
        Some(_) => return Ok(Found::Foreign("it belongs to another installation of Icebox".to_owned())),
        None => {}
    }
    match device::content(path)? {
        Content::Empty if is_in_use(path).at(Step::ProbeDevice, path)? => {
            Ok(Found::Foreign("it is in use by something else".to_owned()))
        }
        Content::Empty => Ok(Found::Empty),
        content => Ok(Found::Foreign(device::foreign(Step::ProbeDevice, path, &content).cause().to_string())),
    }
}

/// True if the device is mounted, or part of something else: the kernel lets one user have it for itself.
pub(super) fn is_in_use(path: &Path) -> io::Result<bool> {
    match OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(path) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(true),
        opened => opened.map(|_| false),
    }
}

/// True if the first megabyte is zero.
pub(super) fn starts_with_zeroes(path: &Path) -> io::Result<bool> {
    let mut bytes = vec![0; START_BYTES];
    let device = OpenOptions::new().read(true).open(path)?;
    device.read_exact_at(&mut bytes, 0)?;
    Ok(bytes.iter().all(|byte| *byte == 0))
}

/// All devices as they are now. Those that a crash has left half made or half wiped are to be wiped.
pub(super) fn all(settings: &BlockSettings, owner: &str) -> Result<(Slots, Vec<Refused>)> {
    let (mut slots, mut refused) = (Slots::new(), Vec::new());
    for (name, path) in paths(&settings.source, &mut refused)? {
        // A device that fails takes the others with it no more than a foreign one does.
        match examine(&path, name.is_none(), settings.force, owner) {
            Ok(Ok((state, bytes))) => drop(slots.insert(path, Slot { bytes, name, state })),
            Ok(Err(why)) => refused.push(Refused { path, why }),
            Err(error) => refused.push(Refused { path, why: format!("{error}: {}", error.cause()) }),
        }
    }
    give_way(&mut slots, owner)?;
    Ok((slots, refused))
}

/// The state and the size of a device, or why it is not used.
fn examine(path: &Path, is_listed: bool, force: bool, owner: &str) -> Result<Result<(State, u64), String>> {
    let state = match look(path, owner)? {
        Found::Ours(Header { state: Use::Disk, id, generation, .. }) => State::Disk { id, generation },
        Found::Ours(Header { state: Use::Free, .. }) if is_listed => State::Free,
        Found::Ours(_) => State::Wiping { trouble: None },
        // The program made it, and a crash came before anything was written to it.
        Found::Empty if !is_listed => State::Wiping { trouble: None },
        Found::Empty => claim(path, owner)?,
        Found::Foreign(_) if force && is_listed && can_be_forced(path) => claim(path, owner)?,
        Found::Foreign(why) => return Ok(Err(why)),
    };
    Ok(Ok((state, device::bytes(path)?)))
}

/// A new device of the list: from here on it is ours, and it is free when it has been overwritten.
fn claim(path: &Path, owner: &str) -> Result<State> {
    mark(path, owner, Use::Wiping)?;
    Ok(State::Wiping { trouble: None })
}

/// Writes a header without a box.
pub(super) fn mark(path: &Path, owner: &str, state: Use) -> Result<()> {
    let header = Header { owner: owner.to_owned(), state, generation: 0, id: String::new() };
    header.write(path).at(Step::WipeDevice, path)
}

fn can_be_forced(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device()) && is_in_use(path).is_ok_and(|used| !used)
}

/// Of two disks of one box the later one counts. A crash came between its completion and the end of the earlier one.
fn give_way(slots: &mut Slots, owner: &str) -> Result<()> {
    let mut latest = BTreeMap::new();
    for slot in slots.values() {
        if let State::Disk { id, generation } = &slot.state {
            let most = latest.entry(id.clone()).or_insert(*generation);
            *most = (*most).max(*generation);
        }
    }
    for (path, slot) in slots {
        if let State::Disk { id, generation } = &slot.state
            && latest.get(id) != Some(generation)
        {
            mark(path, owner, Use::Wiping)?;
            slot.state = State::Wiping { trouble: None };
        }
    }
    Ok(())
}

/// Names, for a program, and paths, each device once.
fn paths(source: &BlockSource, refused: &mut Vec<Refused>) -> Result<Vec<(Option<String>, PathBuf)>> {
    let patterns = match source {
        BlockSource::Program(words) => {
            let listed = Program(words.clone()).list()?;
            return Ok(listed.into_iter().map(|(name, path)| (Some(name), path)).collect());
        }
        BlockSource::List(patterns) => patterns,
    };
    let (mut found, mut seen) = (Vec::new(), Vec::new());
    for pattern in patterns {
        let expanded = expand(pattern).map_err(|error| Error::new(Step::OpenDevices, pattern, Cause::Io(error)))?;
        if expanded.is_empty() {
            refused.push(Refused { path: pattern.into(), why: "no device has such a name".to_owned() });
        }
        for path in expanded {
            // Two names may be one device.
            let number = fs::metadata(&path).ok().map(|found| found.rdev());
            if number.is_none() || !seen.contains(&number) {
                seen.push(number);
                found.push((None, path));
            }
        }
    }
    Ok(found)
}
