//! Freezing boxes.

use std::sync::Arc;
use std::time::Duration;

use super::meter::counter;
use super::{Boxes, Entry, FREEZE_DEADLINE, Observed, Phase, Verdict, Write, decide};
use crate::clock;
use crate::error::Error;
use crate::events::Fact;
use crate::refusal::Refusal;

/// Longest wait for the init of a box to report whether it is kept awake.
const HELLO_DEADLINE: Duration = Duration::from_secs(1);

/// Reason for a freeze.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FreezeReason {
    /// It has no work.
    Idle,
    /// Its owner has requested it.
    Asked,
    /// The space for disks is used up.
    Space,
}

impl Boxes {
    /// Freezes a box if the idle rule still allows it once its lifecycle lock is held.
    pub(super) async fn sleep_if_idle(&self, entry: Arc<Entry>) {
        if let Err(refusal) = self.freeze(&entry, FreezeReason::Idle).await {
            tracing::warn!(box_id = entry.id, reason = refusal.chain(), "a box cannot fall asleep");
            // Retry after a whole idle time, not at once.
            entry.activity.restart(entry.meter.usage().cpu_usec);
        }
    }

    /// Freezes a box that is awake. For [`FreezeReason::Idle`] only if the idle rule says so once the lifecycle lock is held.
    pub(crate) async fn freeze(&self, entry: &Arc<Entry>, why: FreezeReason) -> Result<(), Refusal> {
        let _life = entry.lock_life().await;
        let view = entry.view();
        if view.phase != Phase::Ready || !entry.alive() {
            return Ok(());
        }
        if view.handle.frozen().map_err(Refusal::from)? {
            entry.set_asleep(true);
            return Ok(());
        }
        let cpu_usec = counter(&entry.id, &view.handle).cpu_usec;
        if why == FreezeReason::Idle && self.verdict(entry, cpu_usec) != Verdict::Sleep {
            return Ok(());
        }
        if why == FreezeReason::Idle && self.is_kept(entry).await {
            return Ok(());
        }
        // From here on arrivals send events; earlier ones are in the counter. So no arrival is missed between the two.
        self.watch_arrivals(entry).await?;
        if why == FreezeReason::Idle && self.look_at_traffic(entry).await {
            self.end_watch_of_arrivals(entry).await;
            return Ok(());
        }
        let began = std::time::Instant::now();
        let frozen = view.handle.freeze(FREEZE_DEADLINE).await;
        if frozen.is_err() {
            self.end_watch_of_arrivals(entry).await;
        }
        frozen.map_err(|cause| match cause.kind() {
            icebox_shim::ErrorKind::FreezeTimeout => {
                Refusal::Conflict("the box could not be put to sleep in time; it goes on running".into())
            }
            _ => Refusal::Failed(Error::new("put the box to sleep", &entry.id, cause)),
        })?;
        entry.set_asleep(true);
        let took = began.elapsed();
        // The clock does not look at it any more.
        self.tell_late_kills(entry, entry.late_kills()).await;
        self.note_traffic(entry).await;
        let storage = self.storage_bytes(&entry.id).await;
        let sample = entry.meter.read(&entry.id, &view.handle, storage, Write::Always, "freeze");
        let fact = match why {
            FreezeReason::Idle => Fact::Frozen { idle_seconds: entry.idle().as_secs(), took },
            FreezeReason::Asked | FreezeReason::Space => Fact::Paused { took },
        };
        self.publish(entry, fact);
        self.publish_metered(entry, storage, "freeze");
        self.inner.db.append_samples(sample.into_iter().collect());
        self.reclaim_later(entry);
        tracing::debug!(box_id = entry.id, ?why, "frozen");
        Ok(())
    }

    /// True if a process of the box holds the lock that keeps it awake. Queried only when the box would fall asleep; an
    /// init that does not answer counts as no lock.
    async fn is_kept(&self, entry: &Arc<Entry>) -> bool {
        let kept = entry.handle().hello(HELLO_DEADLINE).await.is_ok_and(|hello| hello.kept);
        entry.activity.found_lock(kept);
        kept
    }

    /// The idle rule applied to a box that is awake.
    pub(super) fn verdict(&self, entry: &Arc<Entry>, cpu_usec: u64) -> Verdict {
        decide(&self.observe(entry, cpu_usec))
    }

    /// The inputs of the idle rule for a box that is awake.
    pub(super) fn observe(&self, entry: &Entry, cpu_usec: u64) -> Observed {
        let (keep_alive, kept, idle) = {
            let configured = entry.configured();
            let settings = &configured.settings;
            (settings.keep_alive, settings.kept(clock::unix_ms()).is_some(), configured.idle)
        };
        let observed = entry.activity.observe(cpu_usec, idle, keep_alive, self.inner.config.idle_cpu_percent);
        Observed { kept, ..observed }
    }
}
