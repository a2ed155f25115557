//! Automatic snapshots: taken when they are due, and only of disks that have changed; removed when no rule keeps them.
//!
//! The time at which the next one is due is on disk, so a restart changes nothing. However long none was taken, one is due.
//!
//! A disk has not changed if its image was not written since the last snapshot. What is dirty is flushed before this is looked
//! at. A write within the same tick of the clock as the snapshot is not missed: the inode of the file that it wrote reaches
//! the image seconds later.

use std::sync::Arc;
use std::time::Duration;

use super::{Boxes, Entry, Phase, blocking};
use crate::clock;
use crate::domain::{KeepRules, Schedule, SnapshotStatus};
use crate::refusal::Refusal;

/// Why a snapshot is taken: it was due.
const SCHEDULED: &str = "scheduled";
/// Longest interval between two looks, in case the clock is set.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// After a failure.
const RETRY_MS: i64 = 600_000;

impl Boxes {
    /// Takes automatic snapshots of a box from now on; the first one is due at once.
    pub async fn set_schedule(&self, entry: &Entry, rules: KeepRules) -> Result<(), Refusal> {
        rules.check().map_err(Refusal::Invalid)?;
        self.inner.db.set_schedule(&entry.id, rules, clock::unix_ms()).await?;
        self.inner.schedules.notify_one();
        Ok(())
    }

    /// Takes no more automatic snapshots of a box. Those that there are stay.
    pub async fn remove_schedule(&self, entry: &Entry) -> Result<(), Refusal> {
        Ok(self.inner.db.remove_schedule(&entry.id).await?)
    }

    /// The automatic snapshots of a box.
    pub async fn schedule_of(&self, entry: &Entry) -> Result<Option<Schedule>, Refusal> {
        Ok(self.inner.db.schedule(&entry.id).await?)
    }

    /// Takes automatic snapshots when they are due, one after the other. Never returns.
    pub async fn keep_schedules(self) {
        loop {
            let changed = self.inner.schedules.notified();
            let schedules = match self.inner.db.schedules().await {
                Ok(schedules) if schedules.is_empty() => {
                    changed.await;
                    continue;
                }
                Ok(schedules) => schedules,
                Err(error) => {
                    tracing::error!(error = error.chain(), "cannot read the schedules of snapshots");
                    Vec::new()
                }
            };
            let mut next = LOOK_EVERY;
            for schedule in schedules {
                let now = clock::unix_ms();
                let due_ms = schedule.due_at(now);
                if due_ms <= now {
                    self.take_due(schedule).await;
                    continue;
                }
                next = next.min(Duration::from_millis(u64::try_from(due_ms - now).unwrap_or(0)));
                if due_ms < schedule.due_ms {
                    self.record(Schedule { due_ms, ..schedule }).await;
                }
            }
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep(next) => {}
            }
        }
    }

    async fn take_due(&self, schedule: Schedule) {
        let Some(entry) = self.entry(&schedule.box_id).filter(|entry| entry.view().phase == Phase::Ready) else {
            return;
        };
        let period_ms = schedule.rules.period_ms();
        let next = match self.take_if_changed(&entry, &schedule).await {
            Ok(mark) => {
                self.remove_surplus(&entry, schedule.rules).await;
                Schedule { due_ms: clock::unix_ms() + period_ms, mark, error: None, ..schedule }
            }
            Err(refusal) => {
                tracing::warn!(box_id = entry.id, reason = refusal.chain(), "an automatic snapshot failed");
                let due_ms = clock::unix_ms() + period_ms.min(RETRY_MS);
                Schedule { due_ms, error: Some(refusal.to_string()), ..schedule }
            }
        };
        self.record(next).await;
    }

    /// Returns the mark of the disk.
    async fn take_if_changed(&self, entry: &Arc<Entry>, schedule: &Schedule) -> Result<Option<String>, Refusal> {
        let volume = self.volume(&entry.id).await?;
        let alive = entry.alive();
        let mark = blocking("look at the disk", move || {
            if alive {
                volume.live_source()?.flush()?;
            }
            volume.mark()
        })
        .await?;
        if schedule.mark.as_ref() == Some(&mark) && self.newest_scheduled(entry).await?.is_some() {
            tracing::debug!(box_id = entry.id, "no automatic snapshot: the disk has not changed");
            return Ok(Some(mark));
        }
        let name = format!("{SCHEDULED} {}", clock::rfc3339(clock::unix_ms().div_euclid(1000), 0));
        let begun = self.begin_snapshot(entry, &name, SCHEDULED).await?;
        let (_, mark) = self.make_snapshot(entry, begun).await?;
        Ok(Some(mark))
    }

    async fn scheduled(&self, entry: &Entry) -> Result<Vec<crate::domain::Snapshot>, Refusal> {
        let mut all = self.snapshots_of(entry).await?;
        all.retain(|snapshot| snapshot.kind == SCHEDULED);
        Ok(all)
    }

    async fn newest_scheduled(&self, entry: &Entry) -> Result<Option<String>, Refusal> {
        let ready = self.scheduled(entry).await?.into_iter().rfind(|one| one.status == SnapshotStatus::Ready);
        Ok(ready.map(|snapshot| snapshot.id))
    }

    /// Removes what no rule keeps, and what failed before.
    async fn remove_surplus(&self, entry: &Entry, rules: KeepRules) {
        let removed = async {
            let (ready, other): (Vec<_>, Vec<_>) =
                self.scheduled(entry).await?.into_iter().partition(|one| one.status == SnapshotStatus::Ready);
            let ready: Vec<(String, i64)> = ready.into_iter().map(|one| (one.id, one.created_ms)).collect();
            let failed = other.into_iter().filter(|one| one.status == SnapshotStatus::Error).map(|one| one.id);
            let surplus: Vec<String> = rules.surplus(&ready).into_iter().chain(failed).collect();
            if surplus.is_empty() {
                return Ok(());
            }
            self.delete_snapshots(&entry.account_id, Some(surplus)).await.map(drop)
        };
        if let Err(refusal) = removed.await {
            // The next one tries again.
            tracing::warn!(box_id = entry.id, reason = refusal.chain(), "cannot remove automatic snapshots");
        }
    }

    async fn record(&self, schedule: Schedule) {
        if let Err(error) = self.inner.db.move_schedule(&schedule).await {
            tracing::error!(box_id = schedule.box_id, error = error.chain(), "cannot record an automatic snapshot");
        }
    }
}
