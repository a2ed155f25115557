//! The leaves of a box that have outlived their run, and the kills in them that are not told yet.
//!
//! Leaves out: reading them (`late_kills`).

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::leaf_pool::Note;

/// Most leaves of a box that one look reads. The next look goes on from there.
const LOOKED_AT_MAX: usize = 64;

/// Processes of an ended run that the kernel has killed for want of memory since the end of the run, or the last look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LateKills {
    /// Number of the run.
    pub run: u64,
    /// Number of the processes.
    pub processes: u64,
}

/// The leaves that have outlived their run.
#[derive(Debug, Default)]
pub(super) struct Ended(Mutex<State>);

#[derive(Debug, Default)]
pub(super) struct State {
    /// By the names of the leaves.
    pub(super) leaves: BTreeMap<String, Leaf>,
    /// Of leaves that are gone.
    pub(super) of_removed: Vec<LateKills>,
    /// The name from which the next look goes on.
    pub(super) next: String,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Leaf {
    pub(super) run: u64,
    /// Kills in it that are told.
    pub(super) told: u64,
}

impl Leaf {
    /// The kills beyond those that are told.
    pub(super) fn late(self, oom_kills: u64) -> Option<LateKills> {
        let processes = oom_kills.saturating_sub(self.told);
        (processes > 0).then_some(LateKills { run: self.run, processes })
    }
}

impl Ended {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A leaf that exists. The run that has it may not have ended yet.
    pub(super) fn found(&self, name: &str, note: Note) {
        let leaf = Leaf { run: note.run, told: note.told_kills };
        self.lock().leaves.entry(name.to_owned()).or_insert(leaf);
    }
}

impl State {
    /// The names of the leaves to look at now.
    pub(super) fn turn(&self) -> Vec<String> {
        let names = self.leaves.range(self.next.clone()..).chain(self.leaves.range(..self.next.clone()));
        names.map(|(name, _)| name.clone()).take(LOOKED_AT_MAX).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_are_those_beyond_the_told_ones() {
        let leaf = Leaf { run: 7, told: 2 };
        assert_eq!(leaf.late(2), None);
        assert_eq!(leaf.late(5), Some(LateKills { run: 7, processes: 3 }));
    }

    #[test]
    fn a_look_reads_a_part_and_the_next_one_goes_on() {
        let mut state = State::default();
        for run in 0..100 {
            state.leaves.insert(format!("run-{run:03}"), Leaf { run, told: 0 });
        }
        let first = state.turn();
        state.next = format!("{}\0", first.last().unwrap());
        let second = state.turn();
        assert_eq!((first.len(), second.len()), (LOOKED_AT_MAX, LOOKED_AT_MAX));
        assert_eq!((second[0].as_str(), second[36].as_str()), ("run-064", "run-000"));
    }
}
