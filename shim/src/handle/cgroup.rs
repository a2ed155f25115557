//! A box's cgroup from the host side: a leaf per run, freezing, killing, usage. (Its memory in sleep: `memory`.)
//!
//! Invariants: the box's cgroup is held open, as every request to a box needs it. It may be removed and made anew
//! between two calls: the kernel reports that the removed one is gone, and the call then opens the present one. Waits
//! for processes run on a blocking thread; making, reading and removing a leaf takes microseconds, less than a hop to
//! another thread, and runs on the caller's thread.
//! Leaves out: making the box's own cgroup and its limits (the launcher's).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use icebox_runtime::cgroup::{
    self, Backend, Cgroup, CgroupPath, Controller, Gauges, Hierarchy, Limits, Manager, Unenforced,
};

use super::BoxHandle;
use crate::error::{Error, ErrorKind};
use crate::launch::RUNS_GROUP;

/// v1 hierarchies in which a run has a leaf.
pub(super) const LEAF_V1: [Controller; 1] = [Controller::Memory];
/// v1 hierarchies in which a box's cgroup is held open.
const HELD_V1: [Controller; 2] = [Controller::Memory, Controller::Pids];
/// v1 hierarchies in which a box has a cgroup that is read or removed here.
const BOX_V1: [Controller; 6] =
    [Controller::Memory, Controller::Pids, Controller::Cpu, Controller::Devices, Controller::Cpuset, Controller::Blkio];
/// An empty leaf goes at once; the kernel may need a moment after the last exit.
const LEAF_REMOVE_MS_MAX: u64 = 20;

/// The units of systemd that have a cgroup.
const UNIT_KINDS: [&str; 3] = [".service", ".slice", ".scope"];

/// The resources a box has used so far, and uses now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BoxUsage {
    /// CPU time of every process the box ever had, since its cgroup was made.
    pub cpu_usec: u64,
    /// Of it, in user mode.
    pub user_usec: u64,
    /// Of it, in the kernel.
    pub system_usec: u64,
    /// Memory in use.
    pub memory_current: u64,
    /// Most memory ever in use; 0 where the kernel does not report it.
    pub memory_peak: u64,
    /// Processes the kernel killed for want of memory, in leaves that still exist.
    pub oom_kills: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Generation of the counters: a cgroup made anew has another inode.
    pub cgroup_inode: u64,
}

/// A reading of a box's CPU counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuReading {
    /// CPU time of every process the box ever had, since its cgroup was made, in µs (`cpu.stat` of cgroup v2).
    pub cpu_usec: u64,
    /// Generation of the counter: a cgroup made anew has another inode.
    pub cgroup_inode: u64,
}

/// A box's cgroup and the groups below it, held open.
#[derive(Debug)]
pub(super) struct Held {
    /// The box's own, in the v2 tree and in the hierarchies of [`HELD_V1`].
    whole: Cgroup,
    /// The group below it that has the leaves of runs as its children. A box of an earlier version has none.
    group: Option<Cgroup>,
    /// Where pids is on v1: the `tasks` file and the directory of the group in which all runs are together.
    pids: Vec<OwnedFd>,
    gauges: Gauges,
    inode: u64,
    /// The box's memory limit, which each run gets as its own.
    memory_max: Option<String>,
    /// Processes that the kernel killed in leaves which are removed. v1 counts them in the leaf alone; on v2 the box's
    /// own count has them, and this stays 0.
    oom_kills_of_removed: AtomicU64,
}

impl Held {
    fn new(whole: Cgroup) -> cgroup::Result<Self> {
        let mut pids = Vec::new();
        if let Some(group) = whole.v1_child(RUNS_GROUP, Controller::Pids)? {
            pids.extend(group.v1_tasks_fds()?);
            pids.extend(group.v1_directory(Controller::Pids)?);
        }
        let group = whole.open_leaf(RUNS_GROUP)?.filter(|group| group.unified_fd().is_some());
        let (gauges, inode) = (whole.gauges()?, whole.inode()?);
        let memory_max = whole.memory_max()?;
        Ok(Self { whole, group, pids, gauges, inode, memory_max, oom_kills_of_removed: AtomicU64::new(0) })
    }

    /// Removes a leaf if it is empty, and says whether it is gone. `oom_kills` are those in it.
    fn remove_leaf(&self, name: &str, v1: &[Controller], oom_kills: u64) -> cgroup::Result<bool> {
        let is_gone = self.leaves().remove_empty_leaf(name, v1)?;
        if is_gone && matches!(self.whole.backend(Controller::Memory), Backend::V1(_)) {
            self.oom_kills_of_removed.fetch_add(oom_kills, Ordering::Relaxed);
        }
        Ok(is_gone)
    }

    /// The cgroup that has the leaves of runs as its children.
    fn leaves(&self) -> &Cgroup {
        self.group.as_ref().unwrap_or(&self.whole)
    }
}

/// The box's cgroup as last found, if it was found.
#[derive(Debug, Default)]
pub(super) struct HeldCgroup(Mutex<Option<Arc<Held>>>);

impl HeldCgroup {
    fn get(&self) -> Option<Arc<Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, held: Option<Arc<Held>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = held;
    }
}

/// The resources a run has used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RunUsage {
    /// CPU time of all its processes, in nanoseconds (the kernel counts microseconds).
    pub cpu_ns: u64,
    /// Most memory in use at one time; 0 where the kernel does not report it.
    pub memory_peak_bytes: u64,
    /// Processes of the run that the kernel killed for want of memory.
    pub oom_kills: u64,
}

/// The descriptors of a run's leaf for the init: the v2 directory, then v1 `tasks` files and what all runs share.
#[derive(Debug, Default)]
pub(super) struct Leaf {
    fds: Vec<OwnedFd>,
    shared: Option<Arc<Held>>,
}

impl Leaf {
    pub(super) fn borrowed(&self) -> Vec<BorrowedFd<'_>> {
        let shared = self.shared.iter().flat_map(|held| &held.pids);
        self.fds.iter().chain(shared).map(AsFd::as_fd).collect()
    }
}

fn hierarchy() -> Result<&'static Hierarchy, Error> {
    Hierarchy::of_machine().map_err(|e| Error::cgroup("probe cgroups", "", e))
}

/// A path below the cgroup root.
pub(super) fn check_path(cgroup: &str) -> Result<CgroupPath, Error> {
    CgroupPath::new(cgroup).map_err(|e| Error::cgroup("check cgroup path", cgroup, e))
}

/// Checks that boxes can be made below this cgroup. One that is named like a unit must be there already: on a host with
/// systemd only systemd makes those, and a directory made instead would have no limits and no owner.
///
/// # Errors
/// `InvalidInput` if it is not a plain relative path, `NotFound` for a missing unit.
pub fn check_parent(parent: &str) -> Result<(), Error> {
    let path = check_path(parent)?;
    let found =
        || Manager::Cgroupfs.open(hierarchy()?, &path, &[]).map_err(|e| Error::cgroup("open cgroup parent", parent, e));
    if names_a_unit(parent) && found()?.is_none() {
        return Err(Error::new(ErrorKind::NotFound, "find the systemd unit of cgroup parent", parent));
    }
    Ok(())
}

fn names_a_unit(path: &str) -> bool {
    path.rsplit('/').next().is_some_and(|name| UNIT_KINDS.iter().any(|kind| name.ends_with(kind)))
}

fn leaf_name(run: u64) -> String {
    format!("run-{run}")
}

fn run_of_leaf(name: &str) -> Option<u64> {
    name.strip_prefix("run-")?.parse().ok()
}

/// A task that could not be joined has panicked or was cut off with the runtime.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::new(ErrorKind::Internal, "work on cgroup", "").because(e))?
}

impl BoxHandle {
    fn subject(&self) -> &str {
        self.inner.cgroup.as_ref().map_or("", |path| path.as_str())
    }

    pub(super) fn fail(&self, step: &'static str) -> impl FnOnce(cgroup::Error) -> Error {
        let subject = self.subject().to_owned();
        move |cause| Error::cgroup(step, &subject, cause)
    }

    fn missing(&self) -> Error {
        Error::new(ErrorKind::NotFound, "open box's cgroup", self.subject())
    }

    fn open_cgroup(&self, v1: &[Controller]) -> Result<Option<Cgroup>, Error> {
        let Some(path) = &self.inner.cgroup else {
            return Ok(None);
        };
        Manager::Cgroupfs.open(hierarchy()?, path, v1).map_err(self.fail("open box's cgroup"))
    }

    pub(super) fn cgroup(&self, v1: &[Controller]) -> Result<Cgroup, Error> {
        self.open_cgroup(v1)?.ok_or_else(|| self.missing())
    }

    /// Opens the box's cgroup and keeps it.
    fn look_for_cgroup(&self) -> Result<Arc<Held>, Error> {
        let held = Held::new(self.cgroup(&HELD_V1)?).map_err(self.fail("open box's cgroup"))?;
        let held = Arc::new(held);
        self.inner.held.set(Some(Arc::clone(&held)));
        Ok(held)
    }

    /// Does `work` with the box's cgroup. If the held one is gone and another has its path, `work` uses that one.
    fn with_cgroup<T>(&self, step: &'static str, work: impl Fn(&Arc<Held>) -> cgroup::Result<T>) -> Result<T, Error> {
        if let Some(held) = self.inner.held.get() {
            match work(&held) {
                Err(error) if error.kind == cgroup::ErrorKind::NotFound => self.inner.held.set(None),
                done => return done.map_err(self.fail(step)),
            }
        }
        work(&self.look_for_cgroup()?).map_err(self.fail(step))
    }

    /// Makes a run's leaf. Without a cgroup at all there is none, and the init starts the run where it is itself.
    pub(super) fn make_leaf(&self, run: u64) -> Result<Leaf, Error> {
        if self.inner.cgroup.is_none() {
            return Ok(Leaf::default());
        }
        let step = "make run's cgroup";
        // A box without a cgroup is a box that has just ended; the client has named nothing that does not exist.
        let gone = |e: Error| if e.kind() == ErrorKind::NotFound { e.with_kind(ErrorKind::Gone) } else { e };
        let name = leaf_name(run);
        let made = self.with_cgroup(step, |held| {
            let leaf = held.leaves().leaf_of_thawed(&name, &LEAF_V1)?;
            let shared = self.share_leaf(leaf, held);
            if shared.is_err() {
                // The first error is reported.
                let _ = held.leaves().remove_empty_leaf(&name, &LEAF_V1);
            }
            shared
        });
        made.map_err(gone)
    }

    fn share_leaf(&self, leaf: Cgroup, held: &Arc<Held>) -> cgroup::Result<Leaf> {
        let owner = self.inner.uid_base;
        leaf.allow_joins_from(owner, owner)?;
        leaf.allow_kill_from(owner)?;
        // A command that ran out of memory ends as a whole, not with some of its processes missing. v1 has no
        // `memory.oom.group`: there the kernel kills one process, and runs are still allowed.
        if leaf.backend(Controller::Memory) == Backend::V2 {
            let whole = Limits { oom_group: true, ..Limits::default() };
            leaf.apply(&whole, Unenforced::Allow)?;
        }
        leaf.account_memory_as(held.memory_max.as_deref())?;
        let tasks = leaf.v1_tasks_fds()?;
        let fds = std::iter::once(leaf.into_unified_fd()?).chain(tasks).collect();
        Ok(Leaf { fds, shared: Some(Arc::clone(held)) })
    }

    /// Removes the leaf of a run that did not start.
    pub(super) async fn drop_leaf(&self, run: u64, leaf: Leaf) {
        if leaf.fds.is_empty() {
            return;
        }
        drop(leaf);
        let handle = self.clone();
        let removed = blocking(move || handle.remove_leaf(run)).await;
        if let Err(error) = removed {
            tracing::debug!(run, error = error.report(), "leaf left for the sweep");
        }
    }

    fn remove_leaf(&self, run: u64) -> Result<(), Error> {
        let open = |held: &Arc<Held>| held.leaves().open_leaf(&leaf_name(run));
        match self.with_cgroup("open run's cgroup", open)? {
            Some(leaf) => {
                leaf.remove(Duration::from_millis(LEAF_REMOVE_MS_MAX)).map_err(self.fail("remove run's cgroup"))
            }
            None => Ok(()),
        }
    }

    pub(super) async fn signal_leaf(&self, run: u64, signal: i32) -> Result<(), Error> {
        let handle = self.clone();
        blocking(move || {
            let step = "signal run";
            let missing = || Error::new(ErrorKind::NotFound, step, run);
            let leaf = handle.with_cgroup(step, |held| held.leaves().open_leaf(&leaf_name(run)))?;
            let leaf = leaf.ok_or_else(missing)?;
            if !leaf.events().map_err(handle.fail(step))?.populated {
                return Err(missing());
            }
            if signal == libc::SIGKILL {
                leaf.kill().map_err(handle.fail(step))
            } else {
                leaf.signal_all(signal).map_err(handle.fail(step))
            }
        })
        .await
    }

    /// True if the run has processes, background ones included. In a box without a cgroup no run has any.
    ///
    /// # Errors
    /// The cgroup cannot be read.
    pub async fn has_processes(&self, run: u64) -> Result<bool, Error> {
        let handle = self.clone();
        blocking(move || {
            let open = |held: &Arc<Held>| held.leaves().open_leaf(&leaf_name(run));
            match handle.with_cgroup("read run's state", open) {
                Ok(leaf) => Ok(leaf.is_some_and(|leaf| leaf.events().is_ok_and(|events| events.populated))),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
                Err(error) => Err(error),
            }
        })
        .await
    }

    /// Reads what a finished run has used, then removes its leaf if it is empty (a background child may still live in
    /// it; then it stays for [`sweep_leaves`](Self::sweep_leaves)).
    ///
    /// # Errors
    /// `NotFound` if the run has no leaf.
    pub fn finish(&self, run: u64) -> Result<RunUsage, Error> {
        let step = "read run's usage";
        let name = leaf_name(run);
        let usage = self.with_cgroup(step, |held| {
            let usage = held.leaves().leaf_usage(&name)?;
            if let Some(usage) = &usage {
                // The sweep handles a leaf that cannot be removed now.
                let _ = held.remove_leaf(&name, &LEAF_V1, usage.oom_kills);
            } else if held.gauges.events().is_err() {
                // The box's cgroup itself is gone: another one may have its path.
                return held.gauges.events().map(|_| None);
            }
            Ok(usage)
        })?;
        let usage = usage.ok_or_else(|| Error::new(ErrorKind::NotFound, step, run))?;
        Ok(RunUsage {
            cpu_ns: usage.cpu_usec.saturating_mul(1000),
            memory_peak_bytes: usage.memory_peak.unwrap_or(0),
            oom_kills: usage.oom_kills,
        })
    }

    /// The highest number of a run whose leaf exists; 0 without any. Processes of a run may outlive it and every record
    /// of it, and they keep its leaf in use.
    ///
    /// # Errors
    /// When the cgroup cannot be read.
    pub async fn last_leaf(&self) -> Result<u64, Error> {
        let handle = self.clone();
        blocking(move || {
            let names = handle.with_cgroup("list leaves", |held| held.leaves().leaves())?;
            Ok(names.iter().filter_map(|name| run_of_leaf(name)).max().unwrap_or(0))
        })
        .await
    }

    /// Removes the empty leaves of runs; returns how many. `in_flight` says of a run's number whether the run is being
    /// started, runs, or has not been [`finish`](Self::finish)ed yet: the leaf of such a run stays, empty or not. It is
    /// asked after the leaf was seen, so a caller that enters each run before it starts it loses none.
    ///
    /// # Errors
    /// The cgroup cannot be read.
    pub fn sweep_leaves(&self, in_flight: impl Fn(u64) -> bool) -> Result<usize, Error> {
        let step = "sweep runs' cgroups";
        self.with_cgroup(step, |held| {
            let mut removed = 0;
            for name in held.leaves().leaves()? {
                if run_of_leaf(&name).is_none_or(&in_flight) {
                    continue;
                }
                let oom_kills = held.leaves().leaf_usage(&name)?.map_or(0, |usage| usage.oom_kills);
                removed += usize::from(held.remove_leaf(&name, &HELD_V1, oom_kills)?);
            }
            Ok(removed)
        })
    }

    /// Freezes the box and returns when every process of it stands still.
    ///
    /// # Errors
    /// `FreezeTimeout` after the deadline; the box is thawed again then.
    pub async fn freeze(&self, deadline: Duration) -> Result<(), Error> {
        let handle = self.clone();
        blocking(move || {
            let step = "freeze box";
            handle.with_cgroup(step, |held| held.whole.freeze(deadline))
        })
        .await
    }

    /// Thaws the box. From now on it does not swap.
    ///
    /// # Errors
    /// `Timeout` after the deadline.
    pub async fn thaw(&self, deadline: Duration) -> Result<(), Error> {
        let handle = self.clone();
        blocking(move || {
            let step = "thaw box";
            handle.with_cgroup(step, |held| {
                super::memory::close_swap(&held.whole);
                held.whole.thaw(deadline)
            })
        })
        .await
    }

    /// True if the box is frozen.
    ///
    /// # Errors
    /// The cgroup cannot be read.
    pub fn frozen(&self) -> Result<bool, Error> {
        Ok(self.with_cgroup("read box's state", |held| held.gauges.events())?.frozen)
    }

    /// Kills every process of the box, frozen or not, and returns when none is left. The cgroup stays.
    ///
    /// # Errors
    /// `Timeout` after the deadline.
    pub async fn kill(&self, deadline: Duration) -> Result<(), Error> {
        let handle = self.clone();
        blocking(move || {
            let Some(cgroup) = handle.open_cgroup(&[])? else {
                return Ok(());
            };
            cgroup.kill().map_err(handle.fail("kill box"))?;
            let step = "wait for box's end";
            cgroup.wait_empty(deadline).map_err(handle.fail(step))
        })
        .await
    }

    /// True if the box has a cgroup now.
    ///
    /// # Errors
    /// The cgroup cannot be opened.
    pub fn has_cgroup(&self) -> Result<bool, Error> {
        Ok(self.open_cgroup(&[])?.is_some())
    }

    /// The path of its cgroup, even if it does not exist now; empty for an init without cgroups.
    #[must_use]
    pub fn cgroup_path(&self) -> &str {
        self.subject()
    }

    /// Limits the processes and threads here and below, and makes the cgroup if it is not there. For the cgroup that
    /// holds all boxes: a box's own limits are set at its launch.
    ///
    /// # Errors
    /// `Unenforced` without a pids controller, and those of the system calls.
    pub fn limit_pids(&self, pids_max: i64) -> Result<(), Error> {
        let step = "limit processes of all boxes";
        let v1 = [Controller::Pids];
        let cgroup = match self.open_cgroup(&v1)? {
            Some(cgroup) if cgroup.pids().is_ok() => cgroup,
            _ => {
                let path = self.inner.cgroup.as_ref().ok_or_else(|| self.missing())?;
                Manager::Cgroupfs.create(hierarchy()?, path, &v1).map_err(self.fail(step))?
            }
        };
        let limits = Limits { pids_max: Some(pids_max), ..Limits::default() };
        cgroup.apply(&limits, Unenforced::Refuse).map(drop).map_err(self.fail(step))
    }

    /// Removes the box's cgroup in every hierarchy; none there is fine. Blocks up to the deadline.
    ///
    /// # Errors
    /// `Timeout` if processes are left.
    pub fn remove_cgroup(&self, deadline: Duration) -> Result<(), Error> {
        match self.open_cgroup(&BOX_V1)? {
            Some(cgroup) => cgroup.remove(deadline).map_err(self.fail("remove box's cgroup")),
            None => Ok(()),
        }
    }

    /// Reads the box's CPU time, the basis of billing: one file, independent of the number of processes.
    ///
    /// # Errors
    /// `NotFound` if the box has no cgroup now.
    pub fn cpu(&self) -> Result<CpuReading, Error> {
        self.with_cgroup("read box's CPU time", |held| {
            Ok(CpuReading { cpu_usec: held.gauges.cpu_usec()?, cgroup_inode: held.inode })
        })
    }

    /// Reads all of the box's counters.
    ///
    /// # Errors
    /// `NotFound` if the box has no cgroup now.
    pub fn usage(&self) -> Result<BoxUsage, Error> {
        let step = "read box's usage";
        let cgroup = self.cgroup(&BOX_V1)?;
        let cpu = cgroup.cpu().map_err(self.fail(step))?;
        // Billing needs only the CPU time; the launch allowed a box without these controllers.
        let memory = cgroup.memory().unwrap_or_default();
        let pids = cgroup.pids().unwrap_or_default();
        let removed = self.with_cgroup(step, |held| Ok(held.oom_kills_of_removed.load(Ordering::Relaxed)))?;
        Ok(BoxUsage {
            cpu_usec: cpu.usage_usec,
            user_usec: cpu.user_usec,
            system_usec: cpu.system_usec,
            memory_current: memory.current,
            memory_peak: memory.peak.unwrap_or(0),
            oom_kills: memory.oom_kills + removed,
            pids: pids.current,
            cgroup_inode: cgroup.inode().map_err(self.fail(step))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_leaves_of_runs_are_runs() {
        assert_eq!(run_of_leaf(&leaf_name(17)), Some(17));
        assert_eq!(run_of_leaf("init"), None);
        assert_eq!(run_of_leaf("run-"), None);
        assert_eq!(run_of_leaf("run-1x"), None);
    }

    #[test]
    fn paths_cannot_leave_the_root() {
        for bad in ["", "/a", "a/../b", "a//b", ".."] {
            assert!(check_path(bad).is_err(), "{bad:?}");
        }
        assert!(check_path("icebox.12345678/right-flamingo-14486").is_ok());
    }

    #[test]
    fn only_the_last_part_can_be_a_unit_that_holds_boxes() {
        for unit in ["system.slice/icebox-boxes.service", "a.slice", "init.scope"] {
            assert!(names_a_unit(unit), "{unit}");
        }
        for other in ["icebox", "system.slice/x", "a.service/payload"] {
            assert!(!names_a_unit(other), "{other}");
        }
    }
}
