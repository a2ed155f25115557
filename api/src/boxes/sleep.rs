//! Falling asleep and waking up.

use std::sync::Arc;
use std::time::Duration;

use icebox_rootfs::{Check, Volume};

use super::create::start_logs;
use super::launch::{Start, Started};
use super::meter::counter;
use super::restart::REPAIRED;
use super::{Boxes, Entry, FREEZE_DEADLINE, Phase, THAW_DEADLINE, Verdict, Work, WorkKind, Write, decide, to_the_end};
use crate::db::LogRow;
use crate::error::Error;
use icebox_net::address::Pair;
use crate::refusal::Refusal;
use crate::runs;

/// How long an explicit pause waits for short requests in progress, so that they are not caught in mid-air.
const PAUSE_DRAIN: Duration = Duration::from_secs(2);

/// A box that is awake, and stays so until this is dropped.
#[derive(Debug)]
pub struct Awake {
    /// The box.
    pub entry: Arc<Entry>,
    /// Keeps it from falling asleep.
    pub work: Work,
}

/// Why a box is put to sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Idle,
    Asked,
}

impl Boxes {
    /// Makes sure that the box runs and is thawed. The answer keeps it awake.
    pub async fn ensure_awake(&self, entry: &Arc<Entry>, kind: WorkKind) -> Result<Awake, Refusal> {
        // Counted before the look: see `activity`.
        let work = entry.activity.begin(kind);
        let life = entry.lock_life().await;
        let view = entry.view();
        if view.phase == Phase::Deleting {
            return Err(Refusal::unknown_box(&entry.id));
        }
        let ready = entry.alive() && view.error.is_none() && view.adopted && !entry.frozen();
        drop(life);
        if !ready {
            let (boxes, entry) = (self.clone(), Arc::clone(entry));
            to_the_end(async move { boxes.wake(&entry).await }).await?;
        }
        Ok(Awake { entry: Arc::clone(entry), work })
    }

    /// Thaws a frozen box, starts a dead one. Harmless for one that is awake.
    async fn wake(&self, entry: &Arc<Entry>) -> Result<(), Refusal> {
        let _life = entry.lock_life().await;
        let view = entry.view();
        if view.phase == Phase::Deleting {
            return Err(Refusal::unknown_box(&entry.id));
        }
        if let (true, Some(error)) = (view.damaged, &view.error) {
            return Err(Refusal::Unavailable(error.clone()));
        }
        if !entry.alive() {
            return self.start_again(entry, Check::IfMarked).await;
        }
        let handle = view.handle;
        if handle.frozen().map_err(Refusal::from)? {
            let began = std::time::Instant::now();
            entry.set_sleep_timer(None);
            handle
                .thaw(THAW_DEADLINE)
                .await
                .map_err(|cause| Refusal::Failed(Error::new("wake the box", &entry.id, cause)))?;
            self.inner.metrics.woken(began.elapsed());
            self.end_watch_of_arrivals(entry).await;
            self.came_awake(entry, "woken");
            runs::acknowledge_late(entry);
        }
        if !view.adopted {
            runs::adopt(self, entry).await?;
            entry.change_view(|view| view.adopted = true);
        }
        Ok(())
    }

    /// Starts a box anew on its disk, after the end of whatever runs in it. The lifecycle lock is held.
    pub(super) async fn start_again(&self, entry: &Arc<Entry>, check: Check) -> Result<(), Refusal> {
        // What is left of its last life: processes, the last reading, the cgroup, the runs that ended with it.
        self.bury(entry).await;
        runs::fail_orphans(self, entry).await?;
        let uid_base = self.range_for_restart(entry)?;
        let pair = self.addresses_for_restart(entry)?;
        let rights = entry.rights();
        let start = Start { id: entry.id.clone(), size: entry.settings().size, uid_base, pair, rights };
        let started = match self.volume(&entry.id).await {
            Ok(volume) => self.start_checked(&start, volume, check).await,
            Err(refusal) => Err(refusal),
        };
        let started = match started {
            Ok(started) => started,
            Err(refusal) => {
                let text = super::create::full(&refusal);
                tracing::error!(box_id = entry.id, reason = text, "a box could not be started");
                entry.change_view(|view| view.error = Some(text));
                return Err(refusal);
            }
        };
        entry.change_view(|view| {
            view.handle = started.handle.clone();
            view.uid_base = uid_base;
            view.incarnation = Some(started.incarnation.clone());
            view.error = None;
            view.adopted = true;
        });
        let storage = self.storage_bytes(&entry.id).await;
        let sample =
            entry.meter.read(&entry.id, &started.handle, storage, Write::Always, "start").ok_or_else(|| {
                Error::new("read the counters of", &entry.id, crate::error::Cause::Invalid("its cgroup cannot be read"))
            })?;
        let logs = start_logs(&entry.id, "started again on its disk", &started.warnings);
        let address = pair.map(Pair::guest);
        self.inner.db.update_incarnation(&entry.id, uid_base, address, &started.incarnation, sample, logs).await?;
        entry.activity.restart(0);
        entry.activity.woken();
        self.watch_death(entry);
        self.inner.awake.notify_one();
        runs::run_init_command(self, entry).await;
        Ok(())
    }

    async fn start_checked(&self, start: &Start, volume: Volume, check: Check) -> Result<Started, Refusal> {
        let repaired = self.check_disk(&volume, check).await?;
        let mut started = self.start(start, volume).await?;
        if repaired {
            tracing::warn!(box_id = start.id, "the file system of a box was repaired");
            started.warnings.push(REPAIRED.to_owned());
        }
        Ok(started)
    }

    /// The uid range for the next start: the old one, unless another daemon has taken its block since a reboot.
    fn range_for_restart(&self, entry: &Arc<Entry>) -> Result<u32, Error> {
        let view = entry.view();
        if view.range_held {
            return Ok(view.uid_base);
        }
        let ranges = &self.inner.ranges;
        let old = view.uid_base;
        let uid_base = if ranges.keep(old)? { old } else { ranges.take(crate::clock::unix_ms())? };
        entry.change_view(|view| {
            view.uid_base = uid_base;
            view.range_held = true;
        });
        Ok(uid_base)
    }

    /// What follows when a box has come awake, whatever it did before. Not waited for: the counter has not moved.
    fn came_awake(&self, entry: &Arc<Entry>, what: &'static str) {
        let sample = entry.meter.read(&entry.id, &entry.handle(), None, Write::Always, what);
        let cpu_usec = sample.as_ref().map_or(0, |stored| stored.sample.cpu_usec);
        entry.activity.restart(cpu_usec);
        entry.activity.woken();
        self.inner.db.append_samples(sample.into_iter().collect());
        self.inner.db.log(LogRow::system(&entry.id, what));
        self.inner.awake.notify_one();
    }

    /// Wakes a box because its owner says so.
    pub async fn resume(&self, entry: &Arc<Entry>) -> Result<(), Refusal> {
        self.ensure_awake(entry, WorkKind::Request).await.map(drop)
    }

    /// Puts a box to sleep because its owner says so. Commands in flight stop where they are.
    pub async fn pause(&self, entry: &Arc<Entry>) -> Result<(), Refusal> {
        if entry.settings().keep_alive {
            return Err(Refusal::Invalid("a keep-alive box cannot be paused".into()));
        }
        entry.activity.requests_over(PAUSE_DRAIN).await;
        let (boxes, entry) = (self.clone(), Arc::clone(entry));
        to_the_end(async move {
            let arrivals = entry.activity.arrivals();
            boxes.freeze(&entry, Why::Asked).await?;
            // A short request may have found the box awake just before: it waits for an answer that a frozen init
            // cannot give. It wakes the box like one that comes after the pause, and so does what a client has sent through
            // a public URL meanwhile. (Commands in flight stay frozen.)
            if entry.activity.is_needed(arrivals) {
                boxes.wake(&entry).await?;
            }
            Ok(())
        })
        .await
    }

    /// Puts a box to sleep if the idle rule still says so once its lifecycle lock is held.
    pub(super) async fn sleep_if_idle(&self, entry: Arc<Entry>) {
        if let Err(refusal) = self.freeze(&entry, Why::Idle).await {
            tracing::warn!(box_id = entry.id, reason = super::create::full(&refusal), "a box cannot fall asleep");
            // Try again after a whole idle time, not at once.
            entry.activity.restart(entry.meter.usage().cpu_usec);
        }
    }

    async fn freeze(&self, entry: &Arc<Entry>, why: Why) -> Result<(), Refusal> {
        let _life = entry.lock_life().await;
        let view = entry.view();
        if view.phase != Phase::Ready || !entry.alive() {
            return Ok(());
        }
        if view.handle.frozen().map_err(Refusal::from)? {
            return Ok(());
        }
        let cpu_usec = counter(&entry.id, &view.handle).cpu_usec;
        if why == Why::Idle && self.verdict(entry, cpu_usec) != Verdict::Sleep {
            return Ok(());
        }
        // From here on what arrives is told; what came before is in the counter. So nothing can come in between.
        self.watch_arrivals(entry).await?;
        if why == Why::Idle && self.look_at_traffic(entry).await {
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
        self.inner.metrics.frozen(began.elapsed());
        self.note_traffic(entry).await;
        let storage = self.storage_bytes(&entry.id).await;
        let sample = entry.meter.read(&entry.id, &view.handle, storage, Write::Always, "freeze");
        self.inner.db.append_samples(sample.into_iter().collect());
        let what = match why {
            Why::Idle => format!("fell asleep after {} s without work", entry.idle().as_secs()),
            Why::Asked => "paused".to_owned(),
        };
        self.inner.db.log(LogRow::system(&entry.id, what));
        self.reclaim_later(entry);
        tracing::debug!(box_id = entry.id, ?why, "frozen");
        Ok(())
    }

    /// What the idle rule says about a box that is awake.
    pub(super) fn verdict(&self, entry: &Arc<Entry>, cpu_usec: u64) -> Verdict {
        let observed = entry.activity.observe(
            cpu_usec,
            entry.idle(),
            entry.settings().keep_alive,
            self.inner.config.idle_cpu_percent,
        );
        decide(&observed)
    }
}
