//! Host uid ranges: 65536 ids per box, never shared by two boxes of this host.
//!
//! The ids from 2^19 upwards are cut into blocks of 2^24 ids (256 ranges). A daemon owns a block by an exclusive
//! `flock` on `/run/icebox-uid/<block>.lock`, whose content names its data directory. The lock ends with the daemon,
//! its boxes do not: so a block with a foreign name is not taken even when it is unlocked, unless that data directory
//! is gone. A daemon that stops removes its name from the blocks in which none of its boxes, running or not, has a
//! range. Ids on disk are box-relative, so a stopped box can get another range at its next start.
//!
//! A released range rests for a day before it is used again: remains of an earlier box (a file, a key, a message queue)
//! must not meet its successor.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{FlockOperation, flock};

use crate::error::{Cause, Error};

pub(super) const RANGE_IDS: u32 = 1 << 16;
/// The first id of the first block: above the ids that distributions assign to users and services.
const FIRST_ID: u32 = 1 << 19;
const BLOCK_IDS: u32 = 1 << 24;
const RANGES_PER_BLOCK: u32 = BLOCK_IDS / RANGE_IDS;
/// The last block ends below 2^32 - 1.
const BLOCKS_MAX: u32 = 255;
/// One daemon takes no more than this many blocks (16384 boxes) merely to let ranges rest.
const BLOCKS_PER_DAEMON_MAX: usize = 64;
const REST_MS: i64 = 24 * 3600 * 1000;
/// Longest path.
const OWNER_BYTES_MAX: u64 = 4096;
/// Directory of the lock files, shared by the daemons of a host.
pub const REGISTRY_DIR: &str = "/run/icebox-uid";

/// The ranges of this daemon.
#[derive(Debug)]
pub struct UidRanges {
    registry: PathBuf,
    owner: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Blocks of this daemon, each with the file that holds its lock.
    blocks: BTreeMap<u32, File>,
    used: BTreeSet<u32>,
    /// Ranges at rest, with the time since when.
    rest: BTreeMap<u32, i64>,
}

impl UidRanges {
    /// The ranges of the daemon with this data directory; `registry` is [`REGISTRY_DIR`] outside of tests.
    pub fn open(registry: &Path, data_dir: &Path, rest: Vec<(u32, i64)>) -> Result<Self, Error> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(registry)
            .map_err(|cause| Error::new("make the uid registry", registry.display().to_string(), cause))?;
        let state = State { rest: rest.into_iter().collect(), ..State::default() };
        Ok(Self { registry: registry.to_owned(), owner: data_dir.display().to_string(), state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims the range that a box has already. `false` if its block belongs to another daemon.
    pub fn keep(&self, uid_base: u32) -> Result<bool, Error> {
        let Some(block) = block_of(uid_base) else { return Ok(false) };
        let mut state = self.lock();
        if !state.blocks.contains_key(&block) && !self.take_block(&mut state, block, true)? {
            return Ok(false);
        }
        state.rest.remove(&uid_base);
        Ok(state.used.insert(uid_base))
    }

    /// An unused range, rested if possible.
    pub fn take(&self, now_ms: i64) -> Result<u32, Error> {
        let mut state = self.lock();
        loop {
            if let Some(uid_base) = state.free_range(now_ms) {
                state.rest.remove(&uid_base);
                state.used.insert(uid_base);
                return Ok(uid_base);
            }
            if state.blocks.len() < BLOCKS_PER_DAEMON_MAX && self.take_any_block(&mut state)? {
                continue;
            }
            // No fresh range is left: take the one that has rested longest.
            let oldest = state.rest.iter().filter(|(base, _)| state.is_ours(**base)).min_by_key(|(_, since)| **since);
            let Some(uid_base) = oldest.map(|(base, _)| *base) else {
                return Err(Error::new("find a uid range", "", Cause::Exhausted("uid range")));
            };
            state.rest.remove(&uid_base);
            state.used.insert(uid_base);
            return Ok(uid_base);
        }
    }

    /// Releases a range.
    pub fn give_back(&self, uid_base: u32, now_ms: i64) {
        let mut state = self.lock();
        state.used.remove(&uid_base);
        state.rest.insert(uid_base, now_ms);
    }

    /// Releases a range that was never used.
    pub(super) fn forget(&self, uid_base: u32) {
        self.lock().used.remove(&uid_base);
    }

    /// Removes this daemon's name from the blocks that none of its boxes uses.
    pub fn release_unused_blocks(&self) {
        let mut state = self.lock();
        let used: BTreeSet<u32> = state.used.iter().filter_map(|base| block_of(*base)).collect();
        state.blocks.retain(|block, file| {
            if used.contains(block) {
                return true;
            }
            // At worst the name stays and its owner finds the block again.
            if let Err(cause) = file.set_len(0) {
                tracing::warn!(block, %cause, "cannot release a block of uids");
            }
            false
        });
    }

    /// Blocks of data directories that are gone, with their paths.
    pub(super) fn stray_blocks(&self) -> Vec<(u32, String)> {
        let stray = |block: u32| {
            let file = File::open(self.registry.join(format!("{block}.lock"))).ok()?;
            let owner = owner_of_block(&file)?;
            (!owner.is_empty() && !Path::new(&owner).exists()).then_some((block, owner))
        };
        let taken: BTreeSet<u32> = self.lock().blocks.keys().copied().collect();
        (0..BLOCKS_MAX).filter(|block| !taken.contains(block)).filter_map(stray).collect()
    }

    /// Removes the name of a block whose data directory is gone. One that is locked is left alone.
    pub(super) fn release_stray_block(&self, block: u32) -> Result<(), Error> {
        let path = self.registry.join(format!("{block}.lock"));
        let failed = |cause: Cause| Error::new("release a block of uids", path.display().to_string(), cause);
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(|cause| failed(cause.into()))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| failed(Cause::Invalid("a running daemon has it")))?;
        match owner_of_block(&file) {
            Some(owner) if !owner.is_empty() && !Path::new(&owner).exists() => {
                file.set_len(0).map_err(|cause| failed(cause.into()))
            }
            _ => Ok(()),
        }
    }

    fn take_any_block(&self, state: &mut State) -> Result<bool, Error> {
        // First the blocks with our name or without a name.
        for block in 0..BLOCKS_MAX {
            if !state.blocks.contains_key(&block) && self.take_block(state, block, false)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes a block if it is unlocked and has our name, no name, or an owner whose data directory is gone.
    fn take_block(&self, state: &mut State, block: u32, warn: bool) -> Result<bool, Error> {
        let path = self.registry.join(format!("{block}.lock"));
        let failed = |cause: Cause| Error::new("take a block of uids", path.display().to_string(), cause);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|cause| failed(cause.into()))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                if warn {
                    tracing::warn!(block, "a block of uids that our boxes use is locked by another daemon");
                }
                return Ok(false);
            }
            Err(cause) => return Err(failed(cause.into())),
        }
        // An unreadable name counts as a foreign one.
        let Some(name) = owner_of_block(&file) else { return Ok(false) };
        if !(name.is_empty() || name == self.owner || !Path::new(&name).exists()) {
            return Ok(false);
        }
        if name != self.owner {
            file.set_len(0)
                .and_then(|()| file.rewind())
                .and_then(|()| file.write_all(self.owner.as_bytes()))
                .map_err(|cause| failed(cause.into()))?;
        }
        state.blocks.insert(block, file);
        Ok(true)
    }
}

/// The data directory that a block names; `None` if it cannot be read.
fn owner_of_block(file: &File) -> Option<String> {
    let mut name = String::new();
    file.take(OWNER_BYTES_MAX).read_to_string(&mut name).ok()?;
    Some(name)
}

impl State {
    fn is_ours(&self, uid_base: u32) -> bool {
        block_of(uid_base).is_some_and(|block| self.blocks.contains_key(&block))
    }

    fn free_range(&self, now_ms: i64) -> Option<u32> {
        let rested = |base: &u32| self.rest.get(base).is_none_or(|since| now_ms - since >= REST_MS);
        self.blocks
            .keys()
            .flat_map(|block| (0..RANGES_PER_BLOCK).map(move |n| FIRST_ID + block * BLOCK_IDS + n * RANGE_IDS))
            .find(|base| !self.used.contains(base) && rested(base))
    }
}

fn block_of(uid_base: u32) -> Option<u32> {
    let block = uid_base.checked_sub(FIRST_ID)? / BLOCK_IDS;
    (block < BLOCKS_MAX && (uid_base - FIRST_ID).is_multiple_of(RANGE_IDS)).then_some(block)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: i64 = REST_MS;

    fn ranges(registry: &Path, data_dir: &Path) -> UidRanges {
        UidRanges::open(registry, data_dir, Vec::new()).expect("a registry")
    }

    #[test]
    fn daemons_never_share_a_range() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (one, two) = (tempfile::tempdir().expect("one"), tempfile::tempdir().expect("two"));
        let (first, second) = (ranges(dir.path(), one.path()), ranges(dir.path(), two.path()));
        let mut all = BTreeSet::new();
        for _ in 0..300 {
            assert!(all.insert(first.take(0).expect("a range")));
            assert!(all.insert(second.take(0).expect("a range")));
        }
        assert!(all.iter().all(|base| *base >= FIRST_ID && base.is_multiple_of(RANGE_IDS)));
    }

    #[test]
    fn the_boxes_of_a_daemon_that_is_down_keep_their_ranges() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (one, two) = (tempfile::tempdir().expect("one"), tempfile::tempdir().expect("two"));
        let range = ranges(dir.path(), one.path()).take(0).expect("a range"); // and the daemon is killed
        let other = ranges(dir.path(), two.path());
        assert!(!other.keep(range).expect("an answer"));
        for _ in 0..300 {
            assert_ne!(other.take(0).expect("a range"), range);
        }
        let again = ranges(dir.path(), one.path());
        assert!(again.keep(range).expect("an answer"));
        assert_ne!(again.take(0).expect("a range"), range);
    }

    #[test]
    fn blocks_of_vanished_or_stopped_daemons_are_used_again() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let other = tempfile::tempdir().expect("other");
        let gone = tempfile::tempdir().expect("gone");
        let range = ranges(dir.path(), gone.path()).take(0).expect("a range");
        drop(gone);
        assert_eq!(ranges(dir.path(), other.path()).take(0).expect("a range"), range);

        let stopped = ranges(dir.path(), other.path());
        let range = stopped.take(0).expect("a range");
        stopped.give_back(range, 0);
        stopped.release_unused_blocks();
        let third = tempfile::tempdir().expect("third");
        assert_eq!(ranges(dir.path(), third.path()).take(0).expect("a range"), range);
    }

    #[test]
    fn a_range_rests_for_a_day() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let data = tempfile::tempdir().expect("data");
        let ranges = ranges(dir.path(), data.path());
        let first = ranges.take(0).expect("a range");
        ranges.give_back(first, 1000);
        assert_ne!(ranges.take(2000).expect("a range"), first);
        assert_eq!(ranges.take(1000 + DAY_MS).expect("a range"), first);
    }

    #[test]
    fn the_last_block_stays_below_the_invalid_id() {
        let last = u64::from(FIRST_ID) + u64::from(BLOCKS_MAX) * u64::from(BLOCK_IDS);
        assert!(last < u64::from(u32::MAX));
        assert_eq!(block_of(FIRST_ID - 1), None);
        assert_eq!(block_of(FIRST_ID + 1), None);
        assert_eq!(block_of(FIRST_ID + BLOCK_IDS), Some(1));
    }
}
