//! One box in memory.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use icebox_rootfs::images::Root;
use icebox_shim::handle::{BoxHandle, RunEvent};
use tokio::sync::{Mutex, MutexGuard};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use super::activity::Activity;
use super::disk_watch::DiskWatch;
use super::meter::Meter;
use super::passed::Passed;
use super::policy::policy_in_force;
use super::run_table::RunTable;
use super::undo_points::Points;
use crate::clock;
use crate::domain::{BoxRecord, BoxSettings, BoxState, BoxStatus, Incarnation};
use crate::events::{Event, Fact};
use crate::refusal::Refusal;
use icebox_net::Rights;
use icebox_net::address::Pair;
use icebox_net::headers::HeaderRules;

/// State of a box that the kernel does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// In creation; not on disk yet.
    Creating,
    /// Created.
    Ready,
    /// In deletion, or deleted.
    Deleting,
}

/// State that changes when a box is started, dies or is deleted. Written under the lifecycle lock only.
#[derive(Debug, Clone)]
pub struct View {
    /// Stage of its life.
    pub phase: Phase,
    /// Handle for its init and cgroup.
    pub handle: BoxHandle,
    /// First of its host uids.
    pub uid_base: u32,
    /// Id of its base image; `None` until it is known.
    pub image: Option<String>,
    /// Its PID 1; `None` while it has none.
    pub incarnation: Option<Incarnation>,
    /// Reason why it cannot be used.
    pub error: Option<String>,
    /// Its record cannot be read: the only operation allowed is deletion.
    pub damaged: bool,
    /// Runs of an earlier run of the daemon have been taken over.
    pub adopted: bool,
    /// The range of host uids at `uid_base` belongs to this box. A stopped box keeps its range: if a new box got it,
    /// both would have the same uids once the first one restarts.
    pub range_held: bool,
    /// Its addresses, if it has a network.
    pub pair: Option<Pair>,
    /// Headers that are added to its outgoing requests.
    pub headers: Option<Arc<HeaderRules>>,
}

/// A box.
#[derive(Debug)]
pub struct Entry {
    /// Id.
    pub id: String,
    /// Account.
    pub account_id: String,
    /// Name; fixed at creation.
    pub name: Option<String>,
    /// Unix milliseconds.
    pub created_ms: i64,
    /// Unix milliseconds of its expiry.
    pub expires_ms: Option<i64>,
    /// Held while settings are changed.
    pub(super) changing: Mutex<()>,
    /// The lifecycle lock.
    life: Mutex<()>,
    /// Number of tasks that wait for it.
    life_waiting: AtomicU32,
    /// The daemon has frozen it and has not thawed it since. See [`Entry::left_asleep`].
    asleep: AtomicBool,
    /// Whether its disk is measured.
    pub(super) disk: DiskWatch,
    /// Its processes stand still for a moment while its disk is copied; it is not asleep.
    still: AtomicBool,
    /// Timer that reclaims the memory of a box that has slept long enough.
    sleep_timer: std::sync::Mutex<Option<AbortHandle>>,
    view: RwLock<View>,
    /// The image below it, once it is known.
    root: RwLock<Option<Arc<Root>>>,
    config: RwLock<Configured>,
    /// Its activity, which keeps it awake.
    pub activity: Arc<Activity>,
    /// Its ledger.
    pub meter: Meter,
    /// Bytes that the daemon relays for it.
    pub passed: Passed,
    /// Its disk before each of its last commands.
    pub(super) points: Points,
    /// Its runs.
    pub runs: RunTable,
    /// Cancelled at its deletion: ends the tasks of the box.
    pub gone: CancellationToken,
}

/// Settings that the owner may change.
#[derive(Debug, Clone)]
pub(super) struct Configured {
    pub(super) settings: BoxSettings,
    pub(super) updated_ms: i64,
    /// The idle time in force, from box, account or configuration.
    pub(super) idle: Duration,
}

impl Entry {
    /// An entry for a record.
    pub(super) fn new(
        record: &BoxRecord,
        view: View,
        idle: Duration,
        meter: Meter,
        passed: Passed,
        last_run: u64,
    ) -> Self {
        Self {
            id: record.id.clone(),
            account_id: record.account_id.clone(),
            name: record.name.clone(),
            created_ms: record.created_ms,
            expires_ms: record.expires_ms,
            changing: Mutex::new(()),
            life: Mutex::new(()),
            life_waiting: AtomicU32::new(0),
            asleep: AtomicBool::new(false),
            disk: DiskWatch::default(),
            still: AtomicBool::new(false),
            sleep_timer: std::sync::Mutex::default(),
            view: RwLock::new(view),
            root: RwLock::default(),
            config: RwLock::new(Configured { settings: record.settings.clone(), updated_ms: record.updated_ms, idle }),
            activity: Activity::new(record.updated_ms),
            meter,
            passed,
            points: Points::default(),
            runs: RunTable::new(last_run),
            gone: CancellationToken::new(),
        }
    }

    /// Counts output of a run. Waits if the output exceeds the box's rate.
    pub async fn pass(&self, event: &RunEvent) {
        if let RunEvent::Stdout(bytes) | RunEvent::Stderr(bytes) = event {
            self.passed.pass(bytes.len()).await;
        }
    }

    /// Takes the lifecycle lock.
    pub(crate) async fn lock_life(&self) -> MutexGuard<'_, ()> {
        // Counted until the lock is taken or the caller gives up.
        let _waiting = Waiting::new(&self.life_waiting);
        self.life.lock().await
    }

    /// True if it is frozen, or is being frozen or thawed. For callers that hold a `Work` and cannot wait. `false`: the
    /// box stays awake while they hold it, unless its owner pauses it.
    #[must_use]
    pub fn maybe_asleep(&self) -> bool {
        self.life.try_lock().map_or(true, |_life| self.frozen())
    }

    /// True if the daemon left it frozen. Only the clock uses this, to skip boxes without a system call; the kernel
    /// knows the real state ([`Entry::frozen`]).
    pub(super) fn left_asleep(&self) -> bool {
        self.asleep.load(Ordering::Relaxed)
    }

    /// Records that the daemon has frozen or thawed the box, or has observed that state.
    pub(crate) fn set_asleep(&self, asleep: bool) {
        self.asleep.store(asleep, Ordering::Relaxed);
        if asleep { self.disk.rests() } else { self.disk.changes() }
    }

    /// Records that its processes are held still for a copy of its disk, or go on.
    pub(super) fn set_still(&self, still: bool) {
        self.still.store(still, Ordering::SeqCst);
    }

    /// True if another task waits for the lifecycle lock.
    pub(super) fn life_is_wanted(&self) -> bool {
        self.life_waiting.load(Ordering::SeqCst) > 0
    }

    /// Replaces the timer of the box's sleep.
    pub(super) fn set_sleep_timer(&self, timer: Option<AbortHandle>) {
        let mut held = self.sleep_timer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = std::mem::replace(&mut *held, timer) {
            old.abort();
        }
    }

    /// Its present state, if it can be used: a box that is being deleted is unknown, and a damaged one says why.
    pub(crate) fn usable_view(&self) -> Result<View, Refusal> {
        let view = self.view();
        if view.phase == Phase::Deleting {
            return Err(Refusal::unknown_box(&self.id));
        }
        match (view.damaged, &view.error) {
            (true, Some(error)) => Err(Refusal::Unavailable(error.clone())),
            _ => Ok(view),
        }
    }

    /// A copy of the lifecycle state.
    #[must_use]
    pub fn view(&self) -> View {
        self.view.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its addresses, if it has a network.
    pub(super) fn pair(&self) -> Option<Pair> {
        self.view.read().unwrap_or_else(PoisonError::into_inner).pair
    }

    /// Handle for its init and cgroup.
    #[must_use]
    pub fn handle(&self) -> BoxHandle {
        self.view.read().unwrap_or_else(PoisonError::into_inner).handle.clone()
    }

    /// True if it is created and has a PID 1.
    pub(super) fn runs_here(&self) -> bool {
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        view.phase == Phase::Ready && view.incarnation.is_some()
    }

    pub(crate) fn change_view(&self, change: impl FnOnce(&mut View)) {
        change(&mut self.view.write().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn configured(&self) -> RwLockReadGuard<'_, Configured> {
        self.config.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn change_config(&self, change: impl FnOnce(&mut Configured)) {
        change(&mut self.config.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// The settings of its owner.
    #[must_use]
    pub fn settings(&self) -> BoxSettings {
        self.configured().settings.clone()
    }

    pub(super) fn set_root(&self, root: Arc<Root>) {
        *self.root.write().unwrap_or_else(PoisonError::into_inner) = Some(root);
    }

    fn root(&self) -> Option<Arc<Root>> {
        self.root.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The variables of its image: the lowest layer of the environment of its commands.
    #[must_use]
    pub fn image_env(&self) -> Vec<(String, String)> {
        self.root().map(|root| root.env.clone()).unwrap_or_default()
    }

    /// The shell for a command line.
    #[must_use]
    pub fn shell(&self) -> &'static str {
        if self.root().is_none_or(|root| root.has_bash) { "bash" } else { "sh" }
    }

    /// Unix milliseconds of the last change of its settings.
    #[must_use]
    pub fn updated_ms(&self) -> i64 {
        self.configured().updated_ms
    }

    /// The idle time in force.
    #[must_use]
    pub fn idle(&self) -> Duration {
        self.configured().idle
    }

    /// Seconds until it expires, at least one; none if it does not.
    #[must_use]
    pub fn seconds_left(&self) -> Option<u64> {
        let left = |expires_ms: i64| u64::try_from((expires_ms - clock::unix_ms()) / 1000).unwrap_or(0).max(1);
        self.expires_ms.map(left)
    }

    /// A fact about this box, at this moment.
    #[must_use]
    pub fn event(&self, fact: Fact) -> Event {
        Event::now(&self.id, &self.account_id, fact)
    }

    /// The record to put on disk.
    #[must_use]
    pub fn record(&self) -> BoxRecord {
        let (view, config) = (self.view(), self.configured().clone());
        BoxRecord {
            id: self.id.clone(),
            account_id: self.account_id.clone(),
            name: self.name.clone(),
            state: BoxState::Ready,
            settings: config.settings,
            image: view.image,
            uid_base: view.uid_base,
            incarnation: view.incarnation,
            created_ms: self.created_ms,
            updated_ms: config.updated_ms,
            expires_ms: self.expires_ms,
            address: view.pair.map(Pair::guest),
        }
    }

    /// Its network policy.
    #[must_use]
    pub fn rights(&self) -> Rights {
        let account = self.account_id.clone();
        Rights { account, policy: policy_in_force(&self.settings()), headers: self.view().headers }
    }

    /// True if its PID 1 lives. Asks the kernel.
    #[must_use]
    pub fn alive(&self) -> bool {
        let view = self.view();
        view.incarnation.is_some_and(|init| view.handle.alive(init.pid, init.start_time_ticks, &init.boot_id))
    }

    /// True if it is frozen. Asks the kernel; a box without a cgroup is not frozen.
    #[must_use]
    pub fn frozen(&self) -> bool {
        self.handle().frozen().unwrap_or(false)
    }

    /// Its status.
    #[must_use]
    pub fn status(&self) -> BoxStatus {
        let view = self.view();
        match view.phase {
            Phase::Creating => return BoxStatus::Creating,
            Phase::Deleting => return BoxStatus::Deleted,
            Phase::Ready => {}
        }
        if view.error.is_some() {
            return BoxStatus::Error;
        }
        let alive =
            view.incarnation.is_some_and(|init| view.handle.alive(init.pid, init.start_time_ticks, &init.boot_id));
        if !alive {
            return BoxStatus::Stopped;
        }
        if view.handle.frozen().unwrap_or(false) && !self.still.load(Ordering::SeqCst) {
            return BoxStatus::Paused;
        }
        let counts = self.activity.counts();
        if counts.runs + counts.sessions > 0 { BoxStatus::Running } else { BoxStatus::Idle }
    }
}

/// A task that waits.
struct Waiting<'a>(&'a AtomicU32);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicU32) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_is_counted_until_it_is_gone() {
        let count = AtomicU32::new(0);
        let one = Waiting::new(&count);
        let two = Waiting::new(&count);
        assert_eq!(count.load(Ordering::SeqCst), 2);
        drop(one);
        drop(two);
        assert_eq!(count.load(Ordering::SeqCst), 0);
    }
}
