//! The one clock of the daemon: readings of boxes that are awake, and the idle rule.
//!
//! Invariants: a sleeping box has no timer and is not checked, except once per [`SWEEP_EVERY`] while another box is
//! awake, in case another program has thawed it; its disk is measured until it can change no more ([`super::disk_watch`]), and
//! then not at all; a box that is awake costs one read of one file per tick; while no box is awake, the clock stands still.
//! Memory kills in the background cost a read more, of boxes in which an ended run has left processes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use icebox_shim::handle::LateKills;
use tokio::time::Instant;

use super::disk_watch::STORAGE_AFTER;
use super::meter::counter;
use super::orphans;
use super::{Boxes, Entry, Verdict, Write};
use crate::clock;
use crate::db::StoredSample;

/// Longest interval between two readings of a box that is awake.
const TICK: Duration = Duration::from_secs(1);
/// Interval between measurements of the disks that can still change.
const STORAGE_EVERY: Duration = Duration::from_secs(60);
/// Interval between removals of old log entries, runs, readings and undo points.
const PRUNE_EVERY: Duration = Duration::from_secs(3600);
/// Interval between searches for leaf cgroups of runs whose background processes have ended, in boxes that are awake.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// Result of one check of a box.
#[derive(Debug)]
struct Look {
    entry: Arc<Entry>,
    sample: Option<StoredSample>,
    verdict: Verdict,
    late_kills: Vec<LateKills>,
}

impl Boxes {
    /// Runs the clock. Never returns.
    pub async fn watch(self) {
        let mut storage_due = Instant::now() + STORAGE_EVERY;
        let mut sweep_due = Instant::now() + SWEEP_EVERY;
        loop {
            let changed = self.inner.awake.notified();
            // From here on a box that comes awake restarts the clock: this look may not see it.
            self.inner.stands_still.store(true, Ordering::SeqCst);
            let awake = self.awake_boxes(Instant::now() >= sweep_due).await;
            self.inner.stands_still.store(awake.is_empty(), Ordering::SeqCst);
            if awake.is_empty() {
                // Measure the disks one last time, then wait until a box wakes.
                tokio::select! {
                    () = changed => continue,
                    () = tokio::time::sleep(STORAGE_AFTER) => self.measure_disks(self.all()).await,
                }
                self.inner.awake.notified().await;
                continue;
            }
            self.look_at_traffic_of(&awake).await;
            let looks = self.look_at(awake).await;
            let next = self.act_on(&looks);
            self.balance_pool().await;
            if Instant::now() >= storage_due {
                self.measure_disks(self.all()).await;
                storage_due = Instant::now() + STORAGE_EVERY;
            }
            if Instant::now() >= sweep_due {
                sweep(looks.into_iter().map(|look| look.entry).collect()).await;
                sweep_due = Instant::now() + SWEEP_EVERY;
            }
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep(next) => {}
            }
        }
    }

    /// Makes the clock see a box that has come awake. A running clock sees it at its next tick; looking at all boxes that
    /// are awake each time one joins them would cost more with each.
    pub(super) fn start_clock(&self) {
        if self.inner.stands_still.load(Ordering::SeqCst) {
            self.inner.awake.notify_one();
        }
    }

    /// The boxes that are neither frozen nor dead. With `ask`, the kernel is queried for each of them, in a thread that
    /// may block; otherwise a box that the daemon has frozen counts as frozen, without a system call.
    async fn awake_boxes(&self, ask: bool) -> Vec<Arc<Entry>> {
        let mut running = self.all();
        running.retain(|entry| entry.runs_here());
        if !ask {
            running.retain(|entry| !entry.left_asleep());
            return running;
        }
        let look = tokio::task::spawn_blocking(move || {
            running.retain(|entry| {
                let awake = !entry.frozen();
                if awake {
                    // Never the other way round: only the holder of the lifecycle lock can rely on it to stay frozen.
                    entry.set_asleep(false);
                }
                awake
            });
            running
        });
        look.await.unwrap_or_default()
    }

    /// Reads the counters of all these boxes and applies the idle rule.
    async fn look_at(&self, awake: Vec<Arc<Entry>>) -> Vec<Look> {
        let boxes = self.clone();
        let look = tokio::task::spawn_blocking(move || awake.into_iter().map(|entry| boxes.look(entry)).collect());
        look.await.unwrap_or_default()
    }

    fn look(&self, entry: Arc<Entry>) -> Look {
        let counter = counter(&entry.id, &entry.handle());
        let sample = entry.meter.note(&entry.id, counter, Write::IfChanged, "tick");
        let verdict = self.verdict(&entry, counter.cpu_usec);
        entry.activity.record_cpu(counter.cpu_usec, entry.idle());
        let late_kills = entry.late_kills();
        Look { entry, sample, verdict, late_kills }
    }

    /// Writes the readings, freezes the boxes that may sleep, and returns the time of the next check.
    fn act_on(&self, looks: &[Look]) -> Duration {
        let samples: Vec<StoredSample> = looks.iter().filter_map(|look| look.sample.clone()).collect();
        if !samples.is_empty() {
            self.inner.db.append_samples(samples);
        }
        let mut next = TICK;
        for look in looks {
            if !look.late_kills.is_empty() {
                let (boxes, entry, kills) = (self.clone(), Arc::clone(&look.entry), look.late_kills.clone());
                tokio::spawn(async move { boxes.tell_late_kills(&entry, kills).await });
            }
            match look.verdict {
                Verdict::Sleep => {
                    let (boxes, entry) = (self.clone(), Arc::clone(&look.entry));
                    tokio::spawn(async move { boxes.sleep_if_idle(entry).await });
                }
                Verdict::Wait(wait) => next = next.min(wait),
                Verdict::KeepAlive | Verdict::Kept | Verdict::Busy | Verdict::CpuInUse => {}
            }
        }
        next.max(Duration::from_millis(1))
    }

    /// Reaps children of killed launchers. Two checks, a minute apart.
    pub(super) async fn reap_orphans(&self) {
        let dead = orphans::reap(&BTreeSet::new());
        if !dead.is_empty() {
            tokio::time::sleep(SWEEP_EVERY).await;
            orphans::reap(&dead);
        }
    }

    /// Drops old log entries, runs, readings and undo points periodically. Never returns.
    pub async fn prune(self) {
        loop {
            tokio::time::sleep(PRUNE_EVERY).await;
            self.reap_orphans().await;
            self.forget_old_points().await;
            let db = &self.inner.db;
            let pruned = tokio::join!(db.prune_logs(), db.prune_runs(), db.thin_samples(clock::unix_ms()));
            for error in [pruned.0, pruned.1, pruned.2].into_iter().filter_map(Result::err) {
                tracing::warn!(error = error.chain(), "cannot prune");
            }
        }
    }
}

/// Removes the leaf cgroups of ended runs whose background processes have ended too.
async fn sweep(entries: Vec<Arc<Entry>>) {
    let work = tokio::task::spawn_blocking(move || {
        for entry in entries {
            // Runs of an earlier run of the daemon are not in the table yet, and their usage has not been read.
            if !entry.view().adopted {
                continue;
            }
            if let Err(error) = entry.handle().sweep_leaves(|run| entry.runs.has(run)) {
                tracing::debug!(box_id = entry.id, error = error.report(), "cannot sweep the leaves of a box");
            }
        }
    });
    if work.await.is_err() {
        tracing::error!("sweeping the leaves of runs panicked");
    }
}
