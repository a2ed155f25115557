//! A box's cgroup as its handle holds it: open, with what each request asks of it.
//!
//! Leaves out what is done with it: `cgroup`, `leaves`, `memory`.

use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use icebox_runtime::cgroup::{self, Cgroup, CgroupPath, Controller, Gauges, Limits, Unenforced};

use super::ended::Ended;
use super::leaf_pool::Leaves;
use crate::error::{Error, ErrorKind};
use crate::launch::RUNS_GROUP;

/// v1 hierarchies in which a run has a leaf.
pub(super) const LEAF_V1: [Controller; 1] = [Controller::Memory];
/// v1 hierarchies in which a box's cgroup is held open.
pub(super) const HELD_V1: [Controller; 2] = [Controller::Memory, Controller::Pids];
/// A box's cgroup and the groups below it, held open.
#[derive(Debug)]
pub(super) struct Held {
    /// The box's own, in the v2 tree and in the hierarchies of [`HELD_V1`].
    pub(super) whole: Cgroup,
    /// The group below it that has the leaves of runs as its children. A box of an earlier version has none.
    group: Option<Cgroup>,
    /// Where pids is on v1: the `tasks` file and the directory of the group in which all runs are together.
    pub(super) pids: Vec<OwnedFd>,
    pub(super) gauges: Gauges,
    pub(super) inode: u64,
    /// The box's memory limit, which each run gets as its own.
    pub(super) memory_max: Option<String>,
    /// Processes that the kernel killed in leaves which are removed. v1 counts them in the leaf alone; on v2 the box's
    /// own count has them, and this stays 0.
    pub(super) oom_kills_of_removed: AtomicU64,
    /// The leaves of its runs that are held open.
    pub(super) held_leaves: Leaves,
    /// The leaves that have outlived their run.
    pub(super) ended: Ended,
}

impl Held {
    pub(super) fn new(whole: Cgroup) -> cgroup::Result<Self> {
        let mut pids = Vec::new();
        if let Some(group) = whole.v1_child(RUNS_GROUP, Controller::Pids)? {
            pids.extend(group.v1_tasks_fds()?);
            pids.extend(group.v1_directory(Controller::Pids)?);
        }
        let group = whole.open_leaf(RUNS_GROUP)?.filter(|group| group.unified_fd().is_some());
        let (gauges, inode) = (whole.gauges()?, whole.inode()?);
        let memory_max = whole.memory_max()?;
        let (oom_kills_of_removed, held_leaves, ended) = Default::default();
        Ok(Self { whole, group, pids, gauges, inode, memory_max, oom_kills_of_removed, held_leaves, ended })
    }

    /// The cgroup that has the leaves of runs as its children.
    pub(super) fn leaves(&self) -> &Cgroup {
        self.group.as_ref().unwrap_or(&self.whole)
    }

    /// Closes swap for a box that is about to run. The box is woken in any case, so an error is logged, not returned.
    pub(super) fn close_swap(&self) {
        let closed = Limits { memory_swap_max_bytes: Some(0), ..Limits::default() };
        // On v1 it is one limit of memory and swap together: it becomes the limit of memory.
        if let Err(error) = self.whole.apply(&closed, Unenforced::Allow) {
            tracing::warn!(cgroup = self.whole.path().as_str(), %error, "a box that wakes may swap");
        }
    }
}

/// The box's cgroup as last found, if it was found.
#[derive(Debug, Default)]
pub(super) struct HeldCgroup(Mutex<Option<Arc<Held>>>);

impl HeldCgroup {
    pub(super) fn get(&self) -> Option<Arc<Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set(&self, held: Option<Arc<Held>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = held;
    }
}

/// A path below the cgroup root.
pub(super) fn check_path(cgroup: &str) -> Result<CgroupPath, Error> {
    CgroupPath::new(cgroup).map_err(|e| Error::cgroup("check cgroup path", cgroup, e))
}

/// A task that could not be joined has panicked or was cut off with the runtime.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::new(ErrorKind::Internal, "work on cgroup", "").because(e))?
}
