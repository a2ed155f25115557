//! Reclaiming the memory of sleeping boxes.
//!
//! Invariants:
//! - only a frozen box's memory is reclaimed, under its lifecycle lock, so that no task thaws it meanwhile;
//! - between two small pieces, the reclaim yields to a task that waits for the box;
//! - its CPU time is the daemon's and is on no box's bill;
//! - a sleeping box has at most one timer, and none unless the operator has configured it.
//!
//! Leaves out: the speed of swap. Only the operator knows it, so the default is no reclaim.

use std::sync::Arc;
use std::time::Duration;

use icebox_shim::ErrorKind;
use icebox_shim::handle::{BoxHandle, BoxPressure, Footprint, Reclaimed};

use super::{Boxes, Entry, Phase};
use crate::error::{Cause, Error};
use crate::refusal::Refusal;

impl Boxes {
    /// Reclaims the memory of a sleeping box. Ends early if the box is woken meanwhile.
    pub async fn reclaim(&self, entry: &Arc<Entry>) -> Result<Reclaimed, Refusal> {
        let (boxes, entry) = (self.clone(), Arc::clone(entry));
        super::to_the_end(async move { boxes.reclaim_whole(&entry).await }).await
    }

    async fn reclaim_whole(&self, entry: &Arc<Entry>) -> Result<Reclaimed, Refusal> {
        let began = std::time::Instant::now();
        let mut done = self.reclaim_until_wanted(entry).await?.ok_or_else(|| {
            Refusal::Conflict("the box is awake: only the memory of a sleeping box can be reclaimed".into())
        })?;
        // The waiting task may have done something other than wake it.
        while done.cut_short {
            let Some(more) = self.reclaim_until_wanted(entry).await? else { break };
            done = Reclaimed { memory_before: done.memory_before, swap_before: done.swap_before, ..more };
        }
        self.inner.metrics.reclaimed(done.memory_before.saturating_sub(done.memory_after), began.elapsed());
        tracing::debug!(box_id = entry.id, ?done, took = ?began.elapsed(), "reclaimed");
        Ok(done)
    }

    /// `None` for a box that is not asleep.
    async fn reclaim_until_wanted(&self, entry: &Arc<Entry>) -> Result<Option<Reclaimed>, Refusal> {
        let _life = entry.lock_life().await;
        if entry.view().phase == Phase::Deleting {
            return Err(Refusal::unknown_box(&entry.id));
        }
        if !entry.alive() || !entry.frozen() {
            return Ok(None);
        }
        let waiting = Arc::clone(entry);
        let reclaimed = entry.handle().reclaim(move || waiting.life_is_wanted()).await;
        match reclaimed {
            Ok(done) => Ok(Some(done)),
            Err(cause) if cause.kind() == ErrorKind::Unenforced => {
                Err(Refusal::Conflict("this host cannot reclaim the memory of a box".into()))
            }
            Err(cause) => Err(Refusal::Failed(Error::new("reclaim the memory of", &entry.id, Cause::Shim(cause)))),
        }
    }

    /// Schedules the reclaim of a box that has fallen asleep, or was found asleep, after the configured time.
    pub(crate) fn reclaim_later(&self, entry: &Arc<Entry>) {
        let Some(seconds) = self.inner.config.reclaim_after_seconds else { return };
        let (boxes, sleeping) = (self.clone(), Arc::clone(entry));
        let timer = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            // Not in this task: the task that wakes the box ends it.
            tokio::spawn(async move { boxes.reclaim_in_turn(&sleeping).await });
        });
        entry.set_sleep_timer(Some(timer.abort_handle()));
    }

    /// One box at a time: many fall asleep together, and they share the swap device.
    async fn reclaim_in_turn(&self, entry: &Arc<Entry>) {
        let Ok(_turn) = self.inner.reclaiming.acquire().await else { return };
        match self.reclaim(entry).await {
            // Woken or deleted since.
            Ok(_) | Err(Refusal::Conflict(_) | Refusal::NotFound(_)) => {}
            Err(refusal) => {
                let reason = refusal.chain();
                tracing::warn!(box_id = entry.id, reason, "cannot reclaim the memory of a box");
            }
        }
    }

    /// Usage and pressure of all boxes together, read from the cgroup above them: a handful of files, for any number of
    /// boxes. Boxes below an earlier cgroup parent are not included. `None` without boxes. Blocks briefly.
    #[must_use]
    pub fn together(&self) -> (Footprint, BoxPressure) {
        let Ok(root) = BoxHandle::open(&self.inner.config.run_dir, self.inner.roots.current(), 0) else {
            return Default::default();
        };
        (root.footprint().unwrap_or_default(), root.pressure().unwrap_or_default())
    }
}
