//! What happens to boxes when the daemon starts: facts from disk and truth from the kernel are brought together.
//!
//! Afterwards: every box on disk is in the table; those whose PID 1 lives are watched and their runs taken over; those
//! being deleted go on being deleted; what was being made when the daemon died is removed.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinSet;

use super::launch::remove_run_dir;
use super::{Boxes, Entry, Meter, Phase, View, Write};
use crate::domain::{BoxRecord, BoxState, Reservation};
use crate::error::Error;
use crate::runs;

/// How long the start of the daemon waits for the runs of one box. A box that does not answer is served when it does.
const ADOPT_DEADLINE: Duration = Duration::from_secs(5);
/// Boxes whose runs are taken over at once.
const ADOPT_AT_ONCE: usize = 32;

/// How far the start is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Boxes that were read from disk.
    known: usize,
    /// Of these, boxes of which it is known what became of them.
    settled: usize,
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "starting: {} of {} boxes are looked after", self.settled, self.known)
    }
}

impl Boxes {
    /// How far [`Boxes::reconcile`] is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let settled = self.inner.settled.load(Ordering::Relaxed);
        Progress { known: self.all().len(), settled }
    }

    /// Fills the table. Requests are served only after this.
    pub async fn reconcile(&self) -> Result<(), Error> {
        self.inner.roots.open(&self.inner.db).await?;
        let leftovers = self.inner.db.reservations().await?;
        let idles: HashMap<String, Option<u64>> =
            self.inner.db.accounts().await?.into_iter().map(|account| (account.id, account.idle_seconds)).collect();
        let run_numbers: HashMap<String, u64> = self.inner.db.last_run_numbers().await?.into_iter().collect();
        for (record, damage) in self.inner.db.boxes().await? {
            let account_idle = idles.get(&record.account_id).copied().flatten();
            let last_run = run_numbers.get(&record.id).copied().unwrap_or(0);
            self.restore(record, damage, account_idle, last_run).await?;
        }
        self.settle_all().await;
        self.sweep_network().await;
        self.sweep_run_dirs();
        self.report_unknown_volumes().await;
        self.remove_half_made(leftovers).await;
        self.forget_empty_roots().await;
        match self.check_cgroup_parent() {
            Ok(()) => self.limit_processes().await,
            Err(refusal) => {
                tracing::error!(reason = super::create::full(&refusal), "no box can be started");
            }
        }
        Ok(())
    }

    /// Puts one box into the table.
    async fn restore(
        &self,
        record: BoxRecord,
        damage: Option<serde_json::Error>,
        account_idle: Option<u64>,
        last_run: u64,
    ) -> Result<(), Error> {
        let handle = self.find_handle(&record.id, record.uid_base)?;
        let alive = record
            .incarnation
            .as_ref()
            .is_some_and(|init| handle.alive(init.pid, init.start_time_ticks, &init.boot_id));
        // Before any new box can take it.
        let range_held = self.inner.ranges.keep(record.uid_base)?;
        if alive && !range_held {
            tracing::error!(
                box_id = record.id,
                uid_base = record.uid_base,
                "another daemon claims the uids of this box"
            );
        }
        let samples = self.inner.db.samples_of(&record.id).await?;
        // A box must not go on without its headers: its requests would go out without what its owner relies on.
        let (headers, problem) = match self.open_headers(&record.id).await {
            Ok(headers) => (headers, damage.as_ref().map(|cause| format!("its record cannot be read: {cause}"))),
            Err(error) => (None, Some(format!("its attach_headers cannot be read: {}", error.chain()))),
        };
        let view = View {
            phase: if record.state == BoxState::Deleting { Phase::Deleting } else { Phase::Ready },
            handle,
            uid_base: record.uid_base,
            incarnation: record.incarnation.clone().filter(|_| alive),
            error: problem.clone(),
            damaged: problem.is_some(),
            adopted: false,
            range_held,
            pair: self.claim_addresses(&record),
            headers,
        };
        let idle = self.idle_in_force(&record.settings, account_idle);
        let entry = Arc::new(Entry::new(&record, view, idle, Meter::new(&samples), last_run));
        let mut table = self.inner.table.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        table.insert(record.id, entry);
        Ok(())
    }

    /// Finds out what became of each box, many at once.
    async fn settle_all(&self) {
        let mut settling = JoinSet::new();
        for entry in self.all() {
            if settling.len() >= ADOPT_AT_ONCE {
                settling.join_next().await;
            }
            let boxes = self.clone();
            settling.spawn(async move {
                boxes.settle(&entry).await;
                boxes.inner.settled.fetch_add(1, Ordering::Relaxed);
            });
        }
        while settling.join_next().await.is_some() {}
    }

    async fn settle(&self, entry: &Arc<Entry>) {
        if entry.view().phase == Phase::Deleting {
            return self.retry_delete(entry);
        }
        if !entry.alive() {
            return self.settle_dead(entry).await;
        }
        self.watch_death(entry);
        self.reconnect(entry).await;
        let storage = self.storage_bytes(&entry.id).await;
        let sample = entry.meter.read(&entry.id, &entry.handle(), storage, Write::Always, "restart");
        entry.activity.restart(sample.as_ref().map_or(0, |stored| stored.sample.cpu_usec));
        self.inner.db.append_samples(sample.into_iter().collect());
        // A frozen init answers nobody: its runs are taken over when it is woken.
        if entry.frozen() {
            return self.reclaim_later(entry);
        }
        let _life = entry.lock_life().await;
        match tokio::time::timeout(ADOPT_DEADLINE, runs::adopt(self, entry)).await {
            Ok(Ok(())) => entry.change_view(|view| view.adopted = true),
            Ok(Err(refusal)) => {
                tracing::warn!(
                    box_id = entry.id,
                    reason = super::create::full(&refusal),
                    "cannot take over the runs of a box"
                );
            }
            Err(_) => tracing::warn!(box_id = entry.id, "a box does not answer; its runs are taken over later"),
        }
    }

    /// A box whose processes are gone: after a reboot, or its init has ended while nobody watched.
    async fn settle_dead(&self, entry: &Arc<Entry>) {
        let _life = entry.lock_life().await;
        self.bury(entry).await;
        if let Err(refusal) = runs::fail_orphans(self, entry).await {
            tracing::error!(
                box_id = entry.id,
                reason = super::create::full(&refusal),
                "cannot settle the runs of a box"
            );
        }
    }

    /// Removes run directories that no box has.
    fn sweep_run_dirs(&self) {
        let known: HashSet<String> = self.all().into_iter().map(|entry| entry.id.clone()).collect();
        let Ok(found) = std::fs::read_dir(self.inner.config.run_dir.join("boxes")) else { return };
        for path in found.flatten().map(|found| found.path()) {
            let ours = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| known.contains(name));
            if !ours && let Err(error) = remove_run_dir(&path) {
                tracing::warn!(error = error.chain(), "a run directory of nobody stays");
            }
        }
    }

    /// Disks without a record are somebody's data: they are told about, never removed.
    async fn report_unknown_volumes(&self) {
        let store = Arc::clone(&self.inner.store);
        let volumes = match super::blocking("list the disks", move || store.list()).await {
            Ok(volumes) => volumes,
            Err(error) => return tracing::warn!(error = error.chain(), "cannot list the disks"),
        };
        let reserved = self.inner.db.reservations().await.unwrap_or_default();
        let known: HashSet<String> = self
            .all()
            .into_iter()
            .map(|entry| entry.id.clone())
            .chain(reserved.into_iter().map(|one| one.box_id))
            .collect();
        for volume in volumes.iter().filter(|volume| !known.contains(*volume)) {
            tracing::warn!(volume, "there is a disk without a box; remove it by hand if it is of no use");
        }
    }

    /// Removes what boxes in the making have left when the daemon died.
    async fn remove_half_made(&self, leftovers: Vec<Reservation>) {
        for leftover in leftovers {
            if let Err(error) = self.inner.ranges.keep(leftover.uid_base) {
                tracing::warn!(error = error.chain(), "cannot hold a uid range");
            }
            if self.erase(&leftover.box_id, leftover.uid_base).await {
                self.give_back(leftover);
            }
        }
    }
}
