//! The container's cgroup and the leaf that its first process starts in.

use std::{
    os::fd::{BorrowedFd, OwnedFd},
    time::Duration,
};

use super::{cgroup_namespace, cgroup_views::Views};
use crate::{
    Result, Step,
    cgroup::{Cgroup, Hierarchy},
    error::OnStep as _,
    plan::{CgroupPlan, Plan},
};

const REMOVE_DEADLINE: Duration = Duration::from_secs(2);

/// The cgroup, if the plan has one. It is killed and removed on drop unless it is kept.
pub(super) struct Made(Option<Cgroup>);

/// Makes the cgroup and sets its limits.
pub(super) fn make(plan: Option<&CgroupPlan>, warnings: &mut Vec<String>) -> Result<Made> {
    let Some(plan) = plan else { return Ok(Made(None)) };
    let hierarchy = Hierarchy::of_machine().on(Step::Cgroup, plan.path.as_str())?;
    let made = plan.manager.create(hierarchy, &plan.path, &plan.limits.controllers());
    let made = Made(Some(made.on(Step::Cgroup, plan.path.as_str())?));
    if let Some(cgroup) = &made.0 {
        if let Some((uid, gid)) = plan.joins_from {
            cgroup.allow_joins_from(uid, gid).on(Step::Cgroup, plan.path.as_str())?;
        }
        let notes = cgroup.apply(&plan.limits, plan.unenforced).on(Step::Cgroup, plan.path.as_str())?;
        warnings.extend(notes.iter().map(ToString::to_string));
    }
    Ok(made)
}

impl Made {
    /// The directory to clone into, on v2.
    pub(super) fn unified_fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.as_ref().and_then(Cgroup::unified_fd)
    }

    /// `tasks` files of the v1 hierarchies.
    pub(super) fn tasks(&self) -> Result<Vec<OwnedFd>> {
        let Some(cgroup) = &self.0 else { return Ok(Vec::new()) };
        cgroup.v1_tasks_fds().on(Step::JoinCgroup, "v1 hierarchies")
    }

    /// Makes the leaf, if the plan has one. The mounts of the host must be in sight.
    pub(super) fn leaf(&self, plan: &Plan) -> Result<Option<Leaf>> {
        let name = plan.cgroup.as_ref().and_then(|cgroup| cgroup.leaf.as_deref());
        let (Some(cgroup), Some(name)) = (&self.0, name) else { return Ok(None) };
        let is_new = plan.namespaces.cgroup.is_new();
        let namespace = if !is_new {
            LeafNamespace::None
        } else if cgroup.leaf_controllers().on(Step::Cgroup, name)?.is_empty() {
            LeafNamespace::Starter
        } else {
            LeafNamespace::Made(cgroup_namespace::make(cgroup)?)
        };
        // After the short process has left the cgroup: on v2 no process can be in one that hands controllers down.
        cgroup.enable_leaf_controllers().on(Step::Cgroup, name)?;
        let leaf = cgroup.leaf(name, &[]).on(Step::Cgroup, name)?;
        let views = if is_new { Views::make(&plan.mounts, cgroup)? } else { Views::default() };
        Ok(Some(Leaf { cgroup: leaf, namespace, views }))
    }

    pub(super) fn keep(mut self) -> Option<Cgroup> {
        self.0.take()
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if let Some(cgroup) = self.0.take() {
            // The error that ended the launch is the one worth telling.
            let _ = cgroup.kill();
            let _ = cgroup.remove(REMOVE_DEADLINE);
        }
    }
}

/// The cgroup that the first process starts in.
pub(super) struct Leaf {
    pub(super) cgroup: Cgroup,
    pub(super) namespace: LeafNamespace,
    /// What the container sees of its cgroup.
    pub(super) views: Views,
}

/// How a new cgroup namespace comes to have the container's cgroup as its root.
pub(super) enum LeafNamespace {
    /// There is no new one.
    None,
    /// A process in the container's cgroup has made it.
    Made(OwnedFd),
    /// The cgroup hands no controllers down, so it may have processes beside its leaf: the process that starts the first one
    /// is in it and makes the namespace.
    Starter,
}
