//! Giving devices back, on a thread of its own: one of the list is overwritten until it reads as zeroes, one of the program
//! is deleted by it.
//!
//! The header says "wiping" until the rest is zero, so a crash at any moment only means that it is done again. A device that is
//! still mounted is waited for. What fails is tried again later; `icebox df` shows it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::header::{Header, Use};
use super::slots::{Shared, State};
use crate::device;
use crate::error::{At, Cause, Error, Result, Step};

/// Zeroed at once: a daemon that ends waits for no more than this.
const PIECE_BYTES: u64 = 64 << 20;
/// Bytes with the header, which are written last: those of the largest sector.
const START_BYTES: u64 = 4096;
/// A device that is still mounted is looked at again after so long.
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// After an error.
const TROUBLE_PAUSE: Duration = Duration::from_secs(10);

/// Works until nothing can be asked for any more.
pub(super) fn work(shared: &Weak<Shared>, jobs: &Receiver<PathBuf>) {
    let mut waiting: Vec<(PathBuf, Instant)> = Vec::new();
    loop {
        let next = waiting.iter().map(|(_, at)| *at).min();
        let job = match next {
            None => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => jobs.recv_timeout(at.saturating_duration_since(Instant::now())),
        };
        match job {
            Ok(path) => waiting.push((path, Instant::now())),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let now = Instant::now();
        let due: Vec<_> = waiting.extract_if(.., |(_, at)| *at <= now).collect();
        for (path, _) in due {
            let Some(shared) = shared.upgrade() else { return };
            if let Some(pause) = give_back(&shared, &path) {
                waiting.push((path, Instant::now() + pause));
            }
        }
    }
}

/// Returns when to try again, if it must be.
fn give_back(shared: &Arc<Shared>, path: &Path) -> Option<Duration> {
    let name = shared.slots().get(path).map(|slot| slot.name.clone())?;
    let done = match &name {
        Some(name) => delete(shared, name, path),
        None => wipe(shared, path),
    };
    let mut slots = shared.slots();
    match done {
        Ok(()) if name.is_some() => drop(slots.remove(path)),
        Ok(()) => {
            if let Some(slot) = slots.get_mut(path) {
                slot.state = State::Free;
                slot.bytes = device::bytes(path).unwrap_or(slot.bytes);
            }
        }
        Err(error) if matches!(error.cause(), Cause::InUse) => return Some(BUSY_PAUSE),
        Err(error) => {
            if let Some(slot) = slots.get_mut(path) {
                slot.state = State::Wiping { trouble: Some(format!("{error}: {}", error.cause())) };
            }
            return Some(TROUBLE_PAUSE);
        }
    }
    None
}

fn delete(shared: &Shared, name: &str, path: &Path) -> Result<()> {
    drop(exclusively(path)?);
    shared.program().map_or(Ok(()), |program| program.delete(name))
}

fn wipe(shared: &Shared, path: &Path) -> Result<()> {
    let device = exclusively(path)?;
    let bytes = device::bytes(path)?;
    zero(&device, START_BYTES.min(bytes), bytes).at(Step::WipeDevice, path)?;
    device.sync_all().at(Step::WipeDevice, path)?;
    let free = Header { owner: shared.owner.clone(), state: Use::Free, generation: 0, id: String::new() };
    let mut start = vec![0; usize::try_from(START_BYTES.min(bytes)).unwrap_or(0)];
    let header = free.encode();
    let length = start.len().min(header.len());
    start[..length].copy_from_slice(&header[..length]);
    device.write_all_at(&start, 0).and_then(|()| device.sync_all()).at(Step::WipeDevice, path)
}

/// Opens a device that nothing has mounted, and keeps others from doing so.
fn exclusively(path: &Path) -> Result<File> {
    match OpenOptions::new().read(true).write(true).custom_flags(libc::O_EXCL).open(path) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            Err(Error::new(Step::WipeDevice, path.display().to_string(), Cause::InUse))
        }
        opened => opened.at(Step::WipeDevice, path),
    }
}

/// Makes the bytes zero: by what the device offers for it, which gives the blocks back where it can, else by writing.
fn zero(device: &File, from: u64, to: u64) -> io::Result<()> {
    let mut offset = from;
    while offset < to {
        let length = PIECE_BYTES.min(to - offset);
        match fallocate(device, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, length) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP | Errno::NODEV | Errno::INVAL) => {
                fallocate(device, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, offset, length)?;
            }
            Err(errno) => return Err(errno.into()),
        }
        offset += length;
    }
    Ok(())
}
