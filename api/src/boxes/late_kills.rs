//! Telling of background processes that the kernel has killed for want of memory. (How they are found:
//! `icebox_shim::handle`.)

use icebox_shim::handle::LateKills;

use super::{Boxes, Entry};
use crate::events::Fact;

impl Entry {
    /// Those that are not told yet, of runs that have ended. Blocks for no longer than it takes to read a file per run that
    /// has left processes behind.
    pub(super) fn late_kills(&self) -> Vec<LateKills> {
        // Runs of an earlier run of the daemon are not all in the table until they are adopted.
        let in_flight = |run| self.runs.has(run) || !self.view().adopted;
        self.handle().late_kills(in_flight).unwrap_or_else(|error| {
            tracing::debug!(box_id = self.id, error = error.report(), "cannot look for kills in the background");
            Vec::new()
        })
    }
}

impl Boxes {
    /// Publishes them.
    pub(super) async fn tell_late_kills(&self, entry: &Entry, kills: Vec<LateKills>) {
        for LateKills { run, processes } in kills {
            let run = self.inner.db.run_by_number(&entry.id, run).await.unwrap_or_else(|error| {
                tracing::warn!(box_id = entry.id, error = error.chain(), "a killed process is told without its run");
                None
            });
            self.publish(entry, Fact::OutOfMemory { run, processes, background: true });
        }
    }
}
