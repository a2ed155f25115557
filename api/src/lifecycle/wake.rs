//! Waking boxes: for requests that need them, and by request of their owner.
//!
//! Invariant: the caller counts itself as work before the box is checked, so a box cannot fall asleep under a request
//! that has just found it awake (`boxes::Activity`).

use std::sync::Arc;
use std::time::Duration;

use icebox_rootfs::Check;

use super::Lifecycle;
use crate::boxes::{Awake, Entry, FreezeReason, Phase, WorkKind, to_the_end};
use crate::events::StopCause;
use crate::refusal::Refusal;
use crate::runs;

/// Longest wait of an explicit pause for short requests in progress, so that they can be answered.
const PAUSE_DRAIN: Duration = Duration::from_secs(2);

impl Lifecycle {
    /// Ensures that the box runs and is thawed. The returned value keeps it awake.
    pub async fn ensure_awake(&self, entry: &Arc<Entry>, kind: WorkKind) -> Result<Awake, Refusal> {
        // Counted before the check: see `activity`.
        let work = entry.activity.begin(kind);
        let life = entry.lock_life().await;
        let view = entry.view();
        if view.phase == Phase::Deleting {
            return Err(Refusal::unknown_box(&entry.id));
        }
        let ready = entry.alive() && view.error.is_none() && view.adopted && !entry.frozen();
        drop(life);
        if !ready {
            let (lifecycle, entry) = (self.clone(), Arc::clone(entry));
            to_the_end(async move { lifecycle.wake(&entry).await }).await?;
        }
        Ok(Awake { entry: Arc::clone(entry), work })
    }

    /// Thaws a frozen box, starts a dead one. No effect on one that is awake.
    pub(super) async fn wake(&self, entry: &Arc<Entry>) -> Result<(), Refusal> {
        let _life = entry.lock_life().await;
        let view = entry.usable_view()?;
        let alive = entry.alive();
        // Space is seldom short, and each question to the kernel delays a wake.
        if self.boxes.is_short_of_space() && (!alive || entry.frozen()) {
            self.boxes.check_space_to_run()?;
        }
        if !alive {
            return self.start_again(entry, Check::IfMarked, StopCause::InitKilled).await;
        }
        if self.boxes.thaw(entry).await? {
            runs::acknowledge_late(entry);
        }
        if !view.adopted {
            runs::adopt(&self.runs, entry).await?;
            entry.change_view(|view| view.adopted = true);
        }
        Ok(())
    }

    /// Restarts a box on its disk, after the end of its processes. The caller holds the lifecycle lock.
    pub(super) async fn start_again(&self, entry: &Arc<Entry>, check: Check, cause: StopCause) -> Result<(), Refusal> {
        // Cleans up its last life: processes, the last reading, the cgroup, the runs that ended with it.
        self.boxes.clean_up_dead(entry, cause).await;
        runs::fail_orphans(&self.runs, entry).await?;
        self.boxes.start_again(entry, check).await?;
        self.run_init_command(entry).await;
        Ok(())
    }

    /// Wakes a box by request of its owner.
    pub async fn resume(&self, entry: &Arc<Entry>) -> Result<(), Refusal> {
        self.ensure_awake(entry, WorkKind::Request).await.map(drop)
    }

    /// Puts a box to sleep by request of its owner. Commands in flight are frozen.
    pub async fn pause(&self, entry: &Arc<Entry>) -> Result<(), Refusal> {
        if entry.settings().keep_alive {
            return Err(Refusal::Invalid("a keep-alive box cannot be paused".into()));
        }
        entry.activity.requests_over(PAUSE_DRAIN).await;
        let (lifecycle, entry) = (self.clone(), Arc::clone(entry));
        to_the_end(async move {
            let arrivals = entry.activity.arrivals();
            lifecycle.boxes.freeze(&entry, FreezeReason::Asked).await?;
            lifecycle.boxes.paused_by_owner(&entry);
            // A short request may have found the box awake just before: it waits for an answer that a frozen init
            // cannot give. It wakes the box like one that comes after the pause; bytes that a client has sent through a
            // public URL meanwhile do the same. (Commands in flight stay frozen.)
            if entry.activity.is_needed(arrivals) {
                lifecycle.wake(&entry).await?;
            }
            Ok(())
        })
        .await
    }
}
