//! All code that makes or finds a cgroup goes through its manager.
//!
//! A manager decides how a cgroup comes to be and where it lies. What is done with it afterwards (limits, joining,
//! freezing, killing, measuring) is the same for all, and is [`Cgroup`]'s.

use serde::{Deserialize, Serialize};

use super::{Cgroup, CgroupPath, Controller, Hierarchy, Result};

/// How cgroups are made. Other runtimes call these the cgroup drivers or managers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Manager {
    /// This process makes the directories itself.
    #[default]
    Cgroupfs,
}

impl Manager {
    /// Makes `path`, ancestors included, in the v2 tree and in the v1 hierarchies of the controllers in `v1`
    /// (those that are on v2 or nowhere here make no difference). An empty one that exists is taken over.
    ///
    /// # Errors
    /// `Busy` when it exists and has processes, `Frozen` when it or an ancestor is frozen.
    pub fn create(self, hierarchy: &Hierarchy, path: &CgroupPath, v1: &[Controller]) -> Result<Cgroup> {
        match self {
            Self::Cgroupfs => Cgroup::create(hierarchy, path, v1),
        }
    }

    /// Opens `path` if it exists: in the v2 tree (on a legacy layout: in the first hierarchy), and in those v1
    /// hierarchies of `v1` that have it.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn open(self, hierarchy: &Hierarchy, path: &CgroupPath, v1: &[Controller]) -> Result<Option<Cgroup>> {
        match self {
            Self::Cgroupfs => Cgroup::open(hierarchy, path, v1),
        }
    }
}
