//! Processes that the kernel kills for want of memory after the end of their run: those it left in the background.
//!
//! Invariants:
//! - A leaf that its run leaves behind with processes in it is in the table of `ended` until it is removed. Without such a
//!   leaf a look costs no system call.
//! - Each killed process is told once: by the end of its run, or by a look. The count of those told is in the leaf's note
//!   as well, so that the next process that looks goes on from there.
//! - What the sweep removes is told by the next look.
//!
//! Leaves out: how often to look. In a frozen box nothing allocates memory, so there is nothing to look for.

use std::os::fd::AsFd;

use icebox_runtime::cgroup::{self, set_leaf_note};

use super::BoxHandle;
use super::ended::{LateKills, Leaf};
use super::held::Held;
use super::leaf_pool::Note;
use crate::error::Error;

impl Held {
    /// Looks at a leaf from now on. Of the kills in it so far the run's end tells.
    pub(super) fn keep_ended(&self, name: &str, run: u64, told: u64) {
        let mut state = self.ended.lock();
        state.leaves.insert(name.to_owned(), Leaf { run, told });
        self.note_told(name, run, told);
    }

    /// A leaf is removed. It had this note, and this is the last count of kills in it.
    pub(super) fn removed_ended(&self, name: &str, note: Note, oom_kills: u64) {
        let mut state = self.ended.lock();
        let leaf = state.leaves.remove(name).unwrap_or(Leaf { run: note.run, told: note.told_kills });
        if let Some(late) = leaf.late(oom_kills) {
            state.of_removed.push(late);
        }
    }

    /// Writes down how many kills are told. Without the note they are told once more by another process.
    fn note_told(&self, name: &str, run: u64, told: u64) {
        if told == 0 {
            return;
        }
        let written = self.note_of(name).and_then(|note| {
            let note = Note { told_kills: told, ..note.unwrap_or(Note::first(run)) };
            let leaf = self.leaves().open_leaf(name)?;
            let directory = leaf.as_ref().and_then(|leaf| leaf.unified_fd());
            directory.map_or(Ok(()), |directory| set_leaf_note(directory.as_fd(), &note.text()))
        });
        if let Err(error) = written {
            tracing::debug!(run, %error, "the kills in the background that are told are not written down");
        }
    }

    fn look_at_ended(&self, in_flight: &impl Fn(u64) -> bool) -> cgroup::Result<Vec<LateKills>> {
        // Held until all is told: another look at the same time would tell it too.
        let mut state = self.ended.lock();
        let mut all = std::mem::take(&mut state.of_removed);
        let names = state.turn();
        for name in &names {
            let Some(leaf) = state.leaves.get_mut(name) else { continue };
            if in_flight(leaf.run) {
                continue;
            }
            match self.leaves().leaf_oom_kills(name) {
                Ok(Some(kills)) => {
                    if let Some(late) = leaf.late(kills) {
                        leaf.told = kills;
                        let run = leaf.run;
                        self.note_told(name, run, kills);
                        all.push(late);
                    }
                }
                Ok(None) => {
                    state.leaves.remove(name);
                }
                // What was found is told; the error comes again at the next look.
                Err(error) if all.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        // The smallest name after the last one.
        state.next = names.last().map(|name| format!("{name}\0")).unwrap_or_default();
        Ok(all)
    }
}

impl BoxHandle {
    /// The processes that the kernel has killed for want of memory after the end of their run. Each is returned once.
    /// `in_flight` says of a run's number whether the run has not been [`finish`](Self::finish)ed yet: the end of such a run
    /// tells of those in it. Costs no system call if no ended run has left processes behind.
    ///
    /// # Errors
    /// The cgroup cannot be read.
    pub fn late_kills(&self, in_flight: impl Fn(u64) -> bool) -> Result<Vec<LateKills>, Error> {
        // A box that is not held has no such leaf: none has been found or made.
        let Some(held) = self.inner.held.get() else { return Ok(Vec::new()) };
        held.look_at_ended(&in_flight).map_err(self.fail("read kills in the background"))
    }
}
