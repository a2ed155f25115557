//! A box's cgroup from the host side: freezing, killing, usage. (The leaves of its runs: `leaves`; its memory in sleep:
//! `memory`.)
//!
//! Invariants: the box's cgroup is held open, as every request to a box needs it. It may be removed and made anew
//! between two calls: the kernel reports that the removed one is gone, and the call then opens the present one. Waits
//! for processes run on a blocking thread; making, reading and removing a leaf takes microseconds, less than a hop to
//! another thread, and runs on the caller's thread.
//! Leaves out: making the box's own cgroup and its limits (the launcher's).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use icebox_runtime::cgroup::{self, Cgroup, Controller, Hierarchy, Limits, Manager, Unenforced};

use super::BoxHandle;
use super::held::{HELD_V1, Held, blocking, check_path};
use crate::error::{Error, ErrorKind};

/// v1 hierarchies in which a box has a cgroup that is read or removed here.
const BOX_V1: [Controller; 6] =
    [Controller::Memory, Controller::Pids, Controller::Cpu, Controller::Devices, Controller::Cpuset, Controller::Blkio];

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

fn hierarchy() -> Result<&'static Hierarchy, Error> {
    Hierarchy::of_machine().map_err(|e| Error::cgroup("probe cgroups", "", e))
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
    pub(super) fn with_cgroup<T>(
        &self,
        step: &'static str,
        work: impl Fn(&Arc<Held>) -> cgroup::Result<T>,
    ) -> Result<T, Error> {
        if let Some(held) = self.inner.held.get() {
            match work(&held) {
                Err(error) if error.kind == cgroup::ErrorKind::NotFound => self.inner.held.set(None),
                done => return done.map_err(self.fail(step)),
            }
        }
        work(&self.look_for_cgroup()?).map_err(self.fail(step))
    }

    /// Freezes the box and returns when every process of it stands still. Its idle leaves are removed: a cgroup costs
    /// memory of the kernel, also while the box sleeps.
    ///
    /// # Errors
    /// `FreezeTimeout` after the deadline; the box is thawed again then.
    pub async fn freeze(&self, deadline: Duration) -> Result<(), Error> {
        let handle = self.clone();
        blocking(move || {
            let step = "freeze box";
            handle.with_cgroup(step, |held| {
                held.drop_idle_leaves();
                held.whole.freeze(deadline)
            })
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
                held.close_swap();
                held.whole.thaw(deadline)
            })?;
            if let Some(files) = handle.inner.files.get() {
                files.refresh_unwatched();
            }
            Ok(())
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

    /// The names of the cgroups in it; none if it is not there. For the cgroup that holds all boxes.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn children(&self) -> Result<Vec<String>, Error> {
        let Some(cgroup) = self.open_cgroup(&[])? else { return Ok(Vec::new()) };
        cgroup.leaves().map_err(self.fail("list the cgroups in"))
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
        let reading = self.with_cgroup("read box's CPU time", |held| {
            Ok(CpuReading { cpu_usec: held.gauges.cpu_usec()?, cgroup_inode: held.inode })
        })?;
        if let Some(files) = self.inner.files.get() {
            files.note_cpu(Duration::from_micros(reading.cpu_usec));
        }
        Ok(reading)
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
