//! The start of the daemon: the records on disk are reconciled with the state of the kernel.
//!
//! Afterwards: every box on disk is in the table; those whose PID 1 lives are watched and their runs taken over;
//! deletions in progress continue; remains of unfinished creations are removed.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinSet;

use super::Lifecycle;
use crate::boxes::{Entry, Phase, Write};
use crate::error::Error;
use crate::events::StopCause;
use crate::runs;

/// Longest wait for the runs of one box at the start of the daemon. A slow box is served once it answers.
const ADOPT_DEADLINE: Duration = Duration::from_secs(5);
/// Boxes whose runs are taken over in parallel.
const ADOPT_AT_ONCE: usize = 32;

/// Progress of the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Boxes that were read from disk.
    known: usize,
    /// Number of these boxes whose state is known.
    settled: usize,
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "starting: {} of {} boxes are looked after", self.settled, self.known)
    }
}

impl Lifecycle {
    /// Progress of [`Lifecycle::reconcile`].
    #[must_use]
    pub fn progress(&self) -> Progress {
        let settled = self.settled.load(Ordering::Relaxed);
        Progress { known: self.boxes.all().len(), settled }
    }

    /// Fills the table. Requests are served only after this.
    pub async fn reconcile(&self) -> Result<(), Error> {
        self.boxes.open_roots().await?;
        let leftovers = self.db.reservations().await?;
        let idles: HashMap<String, Option<u64>> =
            self.db.accounts().await?.into_iter().map(|account| (account.id, account.idle_seconds)).collect();
        let run_numbers: HashMap<String, u64> = self.db.last_run_numbers().await?.into_iter().collect();
        for (record, damage) in self.db.boxes().await? {
            let account_idle = idles.get(&record.account_id).copied().flatten();
            let last_run = run_numbers.get(&record.id).copied().unwrap_or(0);
            self.boxes.restore(record, damage, account_idle, last_run).await?;
        }
        if let Err(refusal) = self.boxes.give_images().await {
            tracing::warn!(reason = refusal.chain(), "boxes of an earlier version have no base image yet");
        }
        self.boxes.know_images().await;
        // Before the deletion of a box goes on, which removes them.
        self.boxes.settle_undo_points().await?;
        self.settle_all().await;
        self.boxes.end_builds().await;
        self.boxes.sweep_network().await;
        self.boxes.sweep_run_dirs();
        self.boxes.report_unknown_volumes().await;
        self.boxes.settle_snapshots().await?;
        self.boxes.settle_volumes().await?;
        self.boxes.remove_half_made(leftovers).await;
        self.boxes.forget_empty_roots().await;
        match self.boxes.check_cgroup_parent() {
            Ok(()) => self.boxes.limit_processes().await,
            Err(refusal) => tracing::error!(reason = refusal.chain(), "no box can be started"),
        }
        Ok(())
    }

    /// Determines the state of each box, many in parallel.
    async fn settle_all(&self) {
        let mut settling = JoinSet::new();
        for entry in self.boxes.all() {
            if settling.len() >= ADOPT_AT_ONCE {
                settling.join_next().await;
            }
            let lifecycle = self.clone();
            settling.spawn(async move {
                lifecycle.settle(&entry).await;
                lifecycle.settled.fetch_add(1, Ordering::Relaxed);
            });
        }
        while settling.join_next().await.is_some() {}
    }

    async fn settle(&self, entry: &Arc<Entry>) {
        if entry.view().phase == Phase::Deleting {
            return self.boxes.retry_delete(entry);
        }
        if !entry.alive() {
            return self.settle_dead(entry).await;
        }
        self.boxes.let_go_if_held(entry).await;
        self.boxes.watch_death(entry);
        if self.boxes.reconnect(entry).await {
            self.wake_for_packet(Arc::clone(entry));
        }
        let storage = self.boxes.storage_bytes(&entry.id).await;
        let sample = entry.meter.read(&entry.id, &entry.handle(), storage, Write::Always, "restart");
        entry.activity.restart(sample.as_ref().map_or(0, |stored| stored.sample.cpu_usec));
        self.db.append_samples(sample.into_iter().collect());
        // A frozen init answers nothing: its runs are taken over when it is woken.
        if entry.frozen() {
            entry.set_asleep(true);
            return self.boxes.reclaim_later(entry);
        }
        let _life = entry.lock_life().await;
        match tokio::time::timeout(ADOPT_DEADLINE, runs::adopt(&self.runs, entry)).await {
            Ok(Ok(())) => entry.change_view(|view| view.adopted = true),
            Ok(Err(refusal)) => {
                tracing::warn!(box_id = entry.id, reason = refusal.chain(), "cannot take over the runs of a box");
            }
            Err(_) => tracing::warn!(box_id = entry.id, "a box does not answer; its runs are taken over later"),
        }
    }

    /// A box whose processes are gone: after a reboot, or because its init ended while no daemon was running.
    async fn settle_dead(&self, entry: &Arc<Entry>) {
        let _life = entry.lock_life().await;
        self.boxes.clean_up_dead(entry, StopCause::InitKilled).await;
        if let Err(refusal) = runs::fail_orphans(&self.runs, entry).await {
            tracing::error!(box_id = entry.id, reason = refusal.chain(), "cannot settle the runs of a box");
        }
    }
}
