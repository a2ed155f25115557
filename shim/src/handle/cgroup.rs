//! A box's cgroup from the host side: a leaf per run, freezing, killing, usage. (Its memory in sleep: `memory`.)
//!
//! Invariant: nothing is cached but the machine's hierarchies: a box's cgroup may be removed and made anew between two
//! calls, and every call looks for the one that is there now. What may wait runs on a blocking thread.
//! Leaves out: making the box's own cgroup and its limits (the launcher's).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::time::Duration;

use icebox_runtime::cgroup::{self, Cgroup, CgroupPath, Controller, Hierarchy, Limits, Unenforced};

use super::BoxHandle;
use crate::error::{Error, ErrorKind};

/// v1 hierarchies in which a run has a leaf.
pub(super) const LEAF_V1: [Controller; 1] = [Controller::Memory];
/// v1 hierarchies in which a box has a cgroup that is read or removed here.
const BOX_V1: [Controller; 6] =
    [Controller::Memory, Controller::Pids, Controller::Cpu, Controller::Devices, Controller::Cpuset, Controller::Blkio];
/// An empty leaf goes at once; the kernel may need a moment after the last exit.
const LEAF_REMOVE_MS_MAX: u64 = 20;

/// The units of systemd that have a cgroup.
const UNIT_KINDS: [&str; 3] = [".service", ".slice", ".scope"];

/// What a box has used so far, and uses now.
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
    /// Most memory ever in use; 0 where the kernel does not tell.
    pub memory_peak: u64,
    /// Processes the kernel killed for want of memory, in leaves that still exist.
    pub oom_kills: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Generation of the counters: a cgroup made anew has another inode.
    pub cgroup_inode: u64,
}

/// What a run has used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RunUsage {
    /// CPU time of all its processes, in nanoseconds (the kernel counts microseconds).
    pub cpu_ns: u64,
    /// Most memory in use at one time; 0 where the kernel does not tell.
    pub memory_peak_bytes: u64,
    /// Processes of the run that the kernel killed for want of memory.
    pub oom_kills: u64,
}

/// The descriptors of a run's leaf for the init: the v2 directory, then v1 `tasks` files.
#[derive(Debug, Default)]
pub(super) struct Leaf {
    fds: Vec<OwnedFd>,
}

impl Leaf {
    pub(super) fn borrowed(&self) -> Vec<BorrowedFd<'_>> {
        self.fds.iter().map(AsFd::as_fd).collect()
    }
}

/// The machine's hierarchies, probed once.
fn hierarchy() -> Result<&'static Hierarchy, Error> {
    static PROBED: OnceLock<Hierarchy> = OnceLock::new();
    if let Some(known) = PROBED.get() {
        return Ok(known);
    }
    let probed = Hierarchy::probe().map_err(|e| failed("probe cgroups", "", e))?;
    Ok(PROBED.get_or_init(|| probed))
}

fn failed(step: &'static str, subject: &str, cause: cgroup::Error) -> Error {
    let kind = match cause.kind {
        cgroup::ErrorKind::FreezeTimeout => ErrorKind::FreezeTimeout,
        cgroup::ErrorKind::Timeout | cgroup::ErrorKind::Busy | cgroup::ErrorKind::Frozen => ErrorKind::Timeout,
        cgroup::ErrorKind::Unenforced(_) | cgroup::ErrorKind::Unsupported => ErrorKind::Unenforced,
        cgroup::ErrorKind::NotFound => ErrorKind::NotFound,
        cgroup::ErrorKind::Invalid => ErrorKind::InvalidInput,
        cgroup::ErrorKind::Denied => ErrorKind::PermissionDenied,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, step, subject).because(cause)
}

/// A path below the cgroup root.
pub(super) fn check_path(cgroup: &str) -> Result<CgroupPath, Error> {
    CgroupPath::new(cgroup).map_err(|e| failed("check cgroup path", cgroup, e))
}

/// Checks that boxes can be made below this cgroup. One that is named like a unit must be there already: on a host with
/// systemd only systemd makes those, and a directory made in its stead would have no limits and no owner.
///
/// # Errors
/// `InvalidInput` if it is not a plain relative path, `NotFound` for a missing unit.
pub fn check_parent(parent: &str) -> Result<(), Error> {
    let path = check_path(parent)?;
    let found = || Cgroup::open(hierarchy()?, &path, &[]).map_err(|e| failed("open cgroup parent", parent, e));
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
        move |cause| failed(step, &subject, cause)
    }

    fn missing(&self) -> Error {
        Error::new(ErrorKind::NotFound, "open box's cgroup", self.subject())
    }

    fn open_cgroup(&self, v1: &[Controller]) -> Result<Option<Cgroup>, Error> {
        let Some(path) = &self.inner.cgroup else {
            return Ok(None);
        };
        Cgroup::open(hierarchy()?, path, v1).map_err(self.fail("open box's cgroup"))
    }

    pub(super) fn cgroup(&self, v1: &[Controller]) -> Result<Cgroup, Error> {
        self.open_cgroup(v1)?.ok_or_else(|| self.missing())
    }

    /// Makes a run's leaf. Without a cgroup at all there is none, and the init starts the run where it is itself.
    pub(super) async fn make_leaf(&self, run: u64) -> Result<Leaf, Error> {
        if self.inner.cgroup.is_none() {
            return Ok(Leaf::default());
        }
        let handle = self.clone();
        blocking(move || handle.make_leaf_now(run)).await
    }

    fn make_leaf_now(&self, run: u64) -> Result<Leaf, Error> {
        let step = "make run's cgroup";
        let parent = self.cgroup(&LEAF_V1)?;
        let name = leaf_name(run);
        let leaf = parent.leaf(&name, &LEAF_V1).map_err(self.fail(step))?;
        let made = self.share_leaf(&leaf, &parent, step);
        if made.is_err() {
            // The first error is the one to tell.
            let _ = leaf.remove(Duration::from_millis(LEAF_REMOVE_MS_MAX));
        }
        made
    }

    fn share_leaf(&self, leaf: &Cgroup, parent: &Cgroup, step: &'static str) -> Result<Leaf, Error> {
        let owner = self.inner.uid_base;
        leaf.allow_joins_from(owner, owner).map_err(self.fail(step))?;
        // A command that ran out of memory ends as a whole, not with some of its processes missing. v1 has no such
        // thing, which is no reason not to run anything there: the kernel then kills one process.
        // v1 charges the buffers of sockets to the box only from cgroups that ask for it.
        let whole = Limits { oom_group: true, socket_memory_max_bytes: Some(-1), ..Limits::default() };
        leaf.apply(&whole, Unenforced::Allow).map_err(self.fail(step))?;
        leaf.show_memory_limit_of(parent).map_err(self.fail(step))?;
        let unified =
            leaf.unified_fd().ok_or_else(|| Error::new(ErrorKind::Unenforced, step, "cgroup v2 is not mounted"))?;
        let unified = unified.try_clone_to_owned().map_err(|e| Error::io(step, self.subject(), e))?;
        let mut fds = vec![unified];
        fds.extend(leaf.v1_tasks_fds().map_err(self.fail(step))?);
        Ok(Leaf { fds })
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
        let leaf = self.cgroup(&LEAF_V1)?.open_leaf(&leaf_name(run));
        match leaf.map_err(self.fail("open run's cgroup"))? {
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
            let parent = handle.cgroup(&LEAF_V1)?;
            let leaf = parent.open_leaf(&leaf_name(run)).map_err(handle.fail(step))?;
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

    /// Reads what a finished run has used, then removes its leaf if it is empty (a background child may still live in
    /// it; then it stays for [`sweep_leaves`](Self::sweep_leaves)).
    ///
    /// # Errors
    /// `NotFound` if the run has no leaf.
    pub fn finish(&self, run: u64) -> Result<RunUsage, Error> {
        let step = "read run's usage";
        let leaf = self.cgroup(&LEAF_V1)?.open_leaf(&leaf_name(run));
        let leaf = leaf.map_err(self.fail(step))?;
        let leaf = leaf.ok_or_else(|| Error::new(ErrorKind::NotFound, step, run))?;
        let cpu = leaf.cpu().map_err(self.fail(step))?;
        // No memory controller here is a matter of the box's limits, and was told at its launch.
        let memory = leaf.memory().unwrap_or_default();
        if !leaf.events().map_err(self.fail(step))?.populated {
            // Whatever is in the way is met again by the sweep.
            let _ = leaf.remove(Duration::from_millis(LEAF_REMOVE_MS_MAX));
        }
        Ok(RunUsage {
            cpu_ns: cpu.usage_usec.saturating_mul(1000),
            memory_peak_bytes: memory.peak.unwrap_or(0),
            oom_kills: memory.oom_kills,
        })
    }

    /// The highest number of a run whose leaf is there; 0 without any. What a run has started may outlive it and every
    /// record of it, and its leaf is in use as long.
    ///
    /// # Errors
    /// When the cgroup cannot be read.
    pub async fn last_leaf(&self) -> Result<u64, Error> {
        let handle = self.clone();
        blocking(move || {
            let names = handle.cgroup(&LEAF_V1)?.leaves().map_err(handle.fail("list leaves"))?;
            Ok(names.iter().filter_map(|name| run_of_leaf(name)).max().unwrap_or(0))
        })
        .await
    }

    /// Removes the empty leaves of runs; returns how many. Not to be called while a run is being started.
    ///
    /// # Errors
    /// The cgroup cannot be read.
    pub fn sweep_leaves(&self) -> Result<usize, Error> {
        let step = "sweep runs' cgroups";
        let parent = self.cgroup(&LEAF_V1)?;
        let mut removed = 0;
        for name in parent.leaves().map_err(self.fail(step))? {
            if run_of_leaf(&name).is_none() {
                continue;
            }
            let Some(leaf) = parent.open_leaf(&name).map_err(self.fail(step))? else {
                continue;
            };
            let populated = leaf.events().is_ok_and(|events| events.populated);
            if !populated && leaf.remove(Duration::ZERO).is_ok() {
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Freezes the box and returns when every process of it stands still.
    ///
    /// # Errors
    /// `FreezeTimeout` after the deadline; the box is thawed again then.
    pub async fn freeze(&self, deadline: Duration) -> Result<(), Error> {
        let handle = self.clone();
        blocking(move || {
            let step = "freeze box";
            handle.cgroup(&[])?.freeze(deadline).map_err(handle.fail(step))
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
            let cgroup = handle.cgroup(&[])?;
            super::memory::close_swap(&cgroup);
            cgroup.thaw(deadline).map_err(handle.fail(step))
        })
        .await
    }

    /// The box is frozen.
    ///
    /// # Errors
    /// The cgroup cannot be read.
    pub fn frozen(&self) -> Result<bool, Error> {
        let events = self.cgroup(&[])?.events();
        Ok(events.map_err(self.fail("read box's state"))?.frozen)
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

    /// The box has a cgroup now.
    ///
    /// # Errors
    /// The cgroup cannot be opened.
    pub fn has_cgroup(&self) -> Result<bool, Error> {
        Ok(self.open_cgroup(&[])?.is_some())
    }

    /// The path of its cgroup, whether there is one now or not; empty for an init without cgroups.
    #[must_use]
    pub fn cgroup_path(&self) -> &str {
        self.subject()
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

    /// Reads the box's counters.
    ///
    /// # Errors
    /// `NotFound` if the box has no cgroup now.
    pub fn usage(&self) -> Result<BoxUsage, Error> {
        let step = "read box's usage";
        let cgroup = self.cgroup(&BOX_V1)?;
        let cpu = cgroup.cpu().map_err(self.fail(step))?;
        // Billing needs the CPU time; a box without these controllers was allowed at its launch.
        let memory = cgroup.memory().unwrap_or_default();
        let pids = cgroup.pids().unwrap_or_default();
        Ok(BoxUsage {
            cpu_usec: cpu.usage_usec,
            user_usec: cpu.user_usec,
            system_usec: cpu.system_usec,
            memory_current: memory.current,
            memory_peak: memory.peak.unwrap_or(0),
            oom_kills: memory.oom_kills,
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
