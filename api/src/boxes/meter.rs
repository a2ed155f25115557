//! Reading a box's counters into the ledger.
//!
//! Invariants: sample numbers go up by one per sample and box; an unchanged reading is not written, except at a
//! transition; storage is written when it or the boot has changed.

use std::sync::{Mutex, MutexGuard, PoisonError};

use icebox_shim::ErrorKind;
use icebox_shim::handle::BoxHandle;

use crate::clock::{self, Moment};
use crate::db::StoredSample;
use crate::ledger::{Fold, Generation, Sample, Usage};

/// The in-memory part of the ledger of one box.
#[derive(Debug)]
pub struct Meter {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    fold: Fold,
    storage: Option<(String, u64)>,
}

/// A reading of a box's CPU counter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counter {
    /// Generation of the counter; 0 if the box has none.
    pub cgroup_inode: u64,
    /// CPU microseconds.
    pub cpu_usec: u64,
}

/// Reads the CPU counter of a box. A box without a cgroup has none.
#[must_use]
pub(super) fn counter(box_id: &str, handle: &BoxHandle) -> Counter {
    match handle.cpu() {
        Ok(reading) => Counter { cgroup_inode: reading.cgroup_inode, cpu_usec: reading.cpu_usec },
        Err(error) => {
            if error.kind() != ErrorKind::NotFound {
                tracing::warn!(box_id, error = error.report(), "cannot read the counters of a box");
            }
            Counter::default()
        }
    }
}

/// Policy for a reading that equals the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// Write it: a transition has happened.
    Always,
    /// Write it only if a counter has changed.
    IfChanged,
}

impl Meter {
    /// Continues an existing ledger.
    #[must_use]
    pub fn new(samples: &[Sample]) -> Self {
        let mut fold = Fold::default();
        for sample in samples {
            fold.push(sample);
        }
        Self { state: Mutex::new(State { fold, storage: None }) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The usage of the box until now.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.lock().fold.usage(Some(&Moment::now()))
    }

    /// Reads the CPU counter, and adds the reading and `storage_bytes` to the ledger in memory. The caller puts the
    /// result on disk. Without a cgroup only storage is written.
    pub fn read(
        &self,
        box_id: &str,
        handle: &BoxHandle,
        storage_bytes: Option<u64>,
        write: Write,
        reason: &'static str,
    ) -> Option<StoredSample> {
        self.lock().add(box_id, counter(box_id, handle), storage_bytes, write, reason)
    }

    /// Like [`Meter::read`], with an existing reading.
    pub fn note(&self, box_id: &str, counter: Counter, write: Write, reason: &'static str) -> Option<StoredSample> {
        self.lock().add(box_id, counter, None, write, reason)
    }

    /// The last sample of a deleted box: it occupies no storage from now on.
    #[must_use]
    pub fn close(&self, box_id: &str) -> StoredSample {
        let mut state = self.lock();
        let now = Moment::now();
        let sample = Sample {
            generation: Generation { boot_id: now.boot_id, cgroup_inode: 0 },
            sequence: state.fold.next_sequence(),
            wall_ms: now.wall_ms,
            boottime_ms: now.boottime_ms,
            cpu_usec: 0,
            storage_bytes: Some(0),
        };
        state.fold.push(&sample);
        StoredSample { box_id: box_id.to_owned(), sample, reason: "close" }
    }
}

impl State {
    fn add(
        &mut self,
        box_id: &str,
        Counter { cgroup_inode, cpu_usec }: Counter,
        storage_bytes: Option<u64>,
        write: Write,
        reason: &'static str,
    ) -> Option<StoredSample> {
        let generation = Generation { boot_id: clock::boot_id().to_owned(), cgroup_inode };
        let news = |bytes: &u64| self.storage.as_ref() != Some(&(generation.boot_id.clone(), *bytes));
        let storage_bytes = storage_bytes.filter(news);
        let known = self.fold.counter(&generation);
        // A reading may be recorded after a later one (the clock reads many boxes first and records them then). In the
        // ledger a counter only grows.
        let cpu_usec = known.map_or(cpu_usec, |known| known.max(cpu_usec));
        let same_cpu = cgroup_inode == 0 || known == Some(cpu_usec);
        let worth_it = storage_bytes.is_some() || !same_cpu || (write == Write::Always && cgroup_inode != 0);
        if !worth_it {
            return None;
        }
        let now = Moment::now();
        let sample = Sample {
            generation,
            sequence: self.fold.next_sequence(),
            wall_ms: now.wall_ms,
            boottime_ms: now.boottime_ms,
            cpu_usec,
            storage_bytes,
        };
        if let Some(bytes) = storage_bytes {
            self.storage = Some((sample.generation.boot_id.clone(), bytes));
        }
        self.fold.push(&sample);
        Some(StoredSample { box_id: box_id.to_owned(), sample, reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State { fold: Fold::default(), storage: None }
    }

    #[test]
    fn readings_that_say_nothing_new_are_not_written_except_at_transitions() {
        let mut state = state();
        assert!(state.add("b", Counter { cgroup_inode: 7, cpu_usec: 10 }, None, Write::IfChanged, "tick").is_some());
        assert!(state.add("b", Counter { cgroup_inode: 7, cpu_usec: 10 }, None, Write::IfChanged, "tick").is_none());
        assert!(state.add("b", Counter { cgroup_inode: 7, cpu_usec: 10 }, None, Write::Always, "freeze").is_some());
        assert!(state.add("b", Counter { cgroup_inode: 7, cpu_usec: 11 }, None, Write::IfChanged, "tick").is_some());
        let last = state
            .add("b", Counter { cgroup_inode: 9, cpu_usec: 0 }, None, Write::IfChanged, "tick")
            .expect("a new generation");
        assert_eq!(last.sample.sequence, 3);
    }

    #[test]
    fn a_reading_that_was_overtaken_does_not_turn_the_counter_back() {
        let mut state = state();
        let mut add = |cpu_usec, write| state.add("b", Counter { cgroup_inode: 7, cpu_usec }, None, write, "x");
        assert!(add(20, Write::IfChanged).is_some());
        assert!(add(10, Write::IfChanged).is_none());
        assert_eq!(add(10, Write::Always).expect("a transition").sample.cpu_usec, 20);
    }

    #[test]
    fn storage_is_written_when_it_changes_and_alone_when_there_is_no_cgroup() {
        let mut state = state();
        assert!(state.add("b", Counter { cgroup_inode: 0, cpu_usec: 0 }, None, Write::Always, "x").is_none());
        assert!(
            state.add("b", Counter { cgroup_inode: 0, cpu_usec: 0 }, Some(5), Write::IfChanged, "storage").is_some()
        );
        assert!(
            state.add("b", Counter { cgroup_inode: 0, cpu_usec: 0 }, Some(5), Write::IfChanged, "storage").is_none()
        );
        assert!(
            state.add("b", Counter { cgroup_inode: 0, cpu_usec: 0 }, Some(6), Write::IfChanged, "storage").is_some()
        );
    }
}
