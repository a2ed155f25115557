//! Deletion of boxes: by request of the owner, or at the end of their lifetime.

use std::sync::Arc;
use std::time::Duration;

use super::{Boxes, Entry, KILL_DEADLINE, Phase, Write, to_the_end};
use crate::clock;
use crate::error::Error;
use crate::events::Fact;
use crate::refusal::Refusal;

/// First delay before a stuck deletion is retried; it doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(300);
/// Longest interval between checks for expired ephemeral boxes, in case the clock is set.
const EXPIRY_LOOK: Duration = Duration::from_secs(3600);

/// State of a deletion when its client is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deleted {
    /// The box is removed completely.
    Whole,
    /// The deletion is durable and finishes in the background.
    GoingOn,
}

impl Boxes {
    /// Deletes a box for good. Once this has answered, the box never comes back.
    pub async fn delete(&self, entry: &Arc<Entry>) -> Result<Deleted, Refusal> {
        let (boxes, entry) = (self.clone(), Arc::clone(entry));
        to_the_end(async move { boxes.delete_whole(&entry).await }).await
    }

    async fn delete_whole(&self, entry: &Arc<Entry>) -> Result<Deleted, Refusal> {
        let life = entry.lock_life().await;
        if entry.view().phase == Phase::Deleting {
            return Err(Refusal::unknown_box(&entry.id));
        }
        entry.change_view(|view| view.phase = Phase::Deleting);
        entry.set_sleep_timer(None);
        let handle = entry.handle();
        // Works on a frozen box too. A process that the kernel cannot end does not prevent the deletion.
        if let Err(error) = handle.kill(KILL_DEADLINE).await
            && error.kind() != icebox_shim::ErrorKind::NotFound
        {
            tracing::error!(box_id = entry.id, error = error.report(), "a box resists its deletion");
        }
        let storage = self.storage_bytes(&entry.id).await;
        let last = entry.meter.read(&entry.id, &handle, storage, Write::Always, "delete");
        let samples = last.into_iter().chain([entry.meter.close(&entry.id)]).collect();
        if let Err(error) = self.inner.db.begin_delete(&entry.id, samples).await {
            // The deletion is not on disk: the box is dead but exists; the next request restarts it.
            entry.change_view(|view| view.phase = Phase::Ready);
            return Err(error.into());
        }
        drop(life);
        entry.gone.cancel();
        tracing::info!(box_id = entry.id, "deleted");
        self.publish_metered(entry, storage, "delete");
        self.publish(entry, Fact::Deleted);
        if self.finish_delete(entry).await {
            return Ok(Deleted::Whole);
        }
        self.retry_delete(entry);
        Ok(Deleted::GoingOn)
    }

    /// Removes the remains of a box. Returns true if none are left.
    async fn finish_delete(&self, entry: &Arc<Entry>) -> bool {
        let view = entry.view();
        let uid_base = view.uid_base;
        if !self.erase(&entry.id, uid_base).await {
            return false;
        }
        self.forget(&entry.id);
        // Before the answer, so that a stop right after it leaves no range in use. A range that is not the box's own
        // belongs to another daemon.
        if view.range_held {
            self.inner.ranges.give_back(uid_base, clock::unix_ms());
        }
        // The answer does not wait for this record: without it, the next start finds the box marked as deleted and
        // finds no remains.
        let (boxes, id) = (self.clone(), entry.id.clone());
        tokio::spawn(async move {
            let recorded = match boxes.sync_removals().await {
                Ok(()) => boxes.inner.db.finish_delete(&id, uid_base).await,
                Err(error) => Err(error),
            };
            if let Err(error) = recorded {
                tracing::error!(box_id = id, error = error.chain(), "cannot record a deletion");
            }
        });
        true
    }

    /// Finishes a deletion in the background, however long it takes.
    pub(crate) fn retry_delete(&self, entry: &Arc<Entry>) {
        let (boxes, entry) = (self.clone(), Arc::clone(entry));
        tokio::spawn(async move {
            let mut pause = RETRY_MIN;
            while !boxes.finish_delete(&entry).await {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RETRY_MAX);
            }
        });
    }

    /// Deletes expired ephemeral boxes. Never returns.
    pub async fn expire(self) {
        loop {
            let changed = self.inner.expiring.notified();
            let now = clock::unix_ms();
            let mut next = EXPIRY_LOOK;
            for entry in self.all() {
                let (Some(expires_ms), Phase::Ready) = (entry.expires_ms, entry.view().phase) else { continue };
                if expires_ms > now {
                    next = next.min(Duration::from_millis(u64::try_from(expires_ms - now).unwrap_or(0)));
                    continue;
                }
                let boxes = self.clone();
                tokio::spawn(async move {
                    if let Err(Refusal::Failed(error)) = boxes.delete(&entry).await {
                        report_expiry(&entry, &error);
                    }
                });
                // A failed deletion is retried soon.
                next = next.min(Duration::from_secs(10));
            }
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep(next) => {}
            }
        }
    }
}

fn report_expiry(entry: &Entry, error: &Error) {
    tracing::error!(box_id = entry.id, error = error.chain(), "an ephemeral box cannot be deleted");
}
