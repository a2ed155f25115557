//! A box's cgroup from the host side: a leaf per run, freezing, killing, usage.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use super::BoxHandle;
use crate::error::{Error, ErrorKind};

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
    /// Most memory ever in use.
    pub memory_peak: u64,
    /// Processes the kernel killed for want of memory.
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
    /// Most memory in use at one time.
    pub memory_peak_bytes: u64,
    /// Processes of the run that the kernel killed for want of memory.
    pub oom_kills: u64,
}

/// The descriptors of a run's leaf for the init.
#[derive(Debug, Default)]
pub(super) struct Leaf {
    fds: Vec<OwnedFd>,
}

impl Leaf {
    pub(super) fn borrowed(&self) -> Vec<BorrowedFd<'_>> {
        self.fds.iter().map(AsFd::as_fd).collect()
    }
}

/// Refuses what could leave the cgroup root.
pub(super) fn check_path(cgroup: &str) -> Result<(), Error> {
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    if cgroup.split('/').all(plain) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidInput,
        "check cgroup path",
        cgroup,
    ))
}

fn absent() -> Error {
    Error::new(ErrorKind::NotFound, "open box's cgroup", "")
}

impl BoxHandle {
    pub(super) async fn make_leaf(&self, _run: u64) -> Result<Leaf, Error> {
        Ok(Leaf::default())
    }

    pub(super) async fn drop_leaf(&self, _run: u64, _leaf: Leaf) {}

    pub(super) async fn signal_leaf(&self, _run: u64, _signal: i32) -> Result<(), Error> {
        Err(absent())
    }

    /// Reads what a finished run has used, then removes its leaf if it is empty (a background child may still live in
    /// it; then it stays for [`sweep_leaves`](Self::sweep_leaves)).
    ///
    /// # Errors
    /// `NotFound` if the run has no leaf.
    pub fn finish(&self, run: u64) -> Result<RunUsage, Error> {
        let _ = run;
        Err(absent())
    }

    /// Removes the empty leaves of runs; returns how many.
    ///
    /// # Errors
    /// The cgroup cannot be read.
    pub fn sweep_leaves(&self) -> Result<usize, Error> {
        Err(absent())
    }

    /// Freezes the box and returns when every process of it stands still.
    ///
    /// # Errors
    /// `FreezeTimeout` after the deadline; the box is thawed again then.
    pub async fn freeze(&self, deadline: Duration) -> Result<(), Error> {
        let _ = deadline;
        Err(absent())
    }

    /// Thaws the box.
    ///
    /// # Errors
    /// `Timeout` after the deadline.
    pub async fn thaw(&self, deadline: Duration) -> Result<(), Error> {
        let _ = deadline;
        Err(absent())
    }

    /// The box is frozen.
    ///
    /// # Errors
    /// The cgroup cannot be read.
    pub fn frozen(&self) -> Result<bool, Error> {
        Err(absent())
    }

    /// Kills every process of the box, frozen or not, and returns when none is left. The cgroup stays.
    ///
    /// # Errors
    /// `Timeout` after the deadline.
    pub async fn kill(&self, deadline: Duration) -> Result<(), Error> {
        let _ = deadline;
        Err(absent())
    }

    /// Removes the box's cgroup in every hierarchy; none there is fine. Blocks up to the deadline.
    ///
    /// # Errors
    /// `Timeout` if processes are left.
    pub fn remove_cgroup(&self, deadline: Duration) -> Result<(), Error> {
        let _ = deadline;
        Err(absent())
    }

    /// Reads the box's counters.
    ///
    /// # Errors
    /// `NotFound` if the box has no cgroup now.
    pub fn usage(&self) -> Result<BoxUsage, Error> {
        Err(absent())
    }
}
