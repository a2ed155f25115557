//! The clone of the first process.
//!
//! Without a leaf cgroup the caller clones it straight into the container's cgroup. With one, a short process starts in the
//! leaf, joins the container's cgroup namespace, and clones the first process; `CLONE_PARENT` makes it the caller's child
//! all the same. Where the container's cgroup may have processes, the short process starts there, makes the namespace
//! itself, and clones the first process into the leaf.

use std::os::fd::OwnedFd;

use nix::{
    sched::{CloneFlags, setns, unshare},
    sys::wait::waitpid,
};
use rustix::process::{Pid, Signal, pidfd_send_signal};

use super::{
    cgroup::{Leaf, LeafNamespace, Made},
    child::{self, ChildArgs},
    handshake::child_of,
    owner,
    sync::Sync,
};
use crate::{
    Error, Result, Step,
    error::OnStep as _,
    identity,
    plan::{Namespaces, Plan},
    process::{Cloned, clone3, exit_now, join_tasks},
};

const STARTER: &str = "process that starts the first one from the leaf";

/// The first process. It is killed and reaped on drop unless it is kept.
pub(super) struct First(Option<(Pid, OwnedFd)>);

/// Clones it.
pub(super) fn first_process(plan: &Plan, args: ChildArgs, cgroup: &Made, leaf: Option<&Leaf>) -> Result<First> {
    let Some(leaf) = leaf else {
        let flags = new_namespace_flags(&plan.namespaces);
        let cloned = owner::clone3(plan.id_maps.as_ref(), flags, cgroup.unified_fd());
        return match cloned.on(Step::Clone, "clone3(2)")? {
            Cloned::Child => child::run(plan, args),
            Cloned::Parent(pid, pidfd) => Ok(First(Some((pid, pidfd)))),
        };
    };
    let start_in = match leaf.namespace {
        LeafNamespace::Starter => cgroup.unified_fd(),
        LeafNamespace::None | LeafNamespace::Made(_) => leaf.cgroup.unified_fd(),
    };
    let (mine, answer) = Sync::pair().on(Step::Clone, "socket pair")?;
    match clone3(0, start_in).on(Step::Clone, STARTER)? {
        Cloned::Child => start_from_leaf(plan, args, leaf, answer),
        Cloned::Parent(starter, _) => {
            drop((args, answer));
            Ok(First(Some(child_of(&mine, starter, Step::Clone, STARTER)?)))
        }
    }
}

fn start_from_leaf(plan: &Plan, mut args: ChildArgs, leaf: &Leaf, answer: Sync) -> ! {
    let clone = || -> Result<Cloned> {
        join_tasks(&args.tasks).on(Step::JoinCgroup, "tasks of a v1 hierarchy")?;
        let subject = "cgroup namespace";
        let into = match &leaf.namespace {
            LeafNamespace::None => None,
            LeafNamespace::Made(namespace) => {
                setns(namespace, CloneFlags::CLONE_NEWCGROUP).on(Step::JoinCgroup, subject)?;
                None
            }
            LeafNamespace::Starter => {
                unshare(CloneFlags::CLONE_NEWCGROUP).on(Step::JoinCgroup, subject)?;
                leaf.cgroup.unified_fd()
            }
        };
        let flags = new_namespace_flags(&plan.namespaces) | libc::CLONE_PARENT as u64;
        owner::clone3(plan.id_maps.as_ref(), flags, into).on(Step::Clone, "clone3(2)")
    };
    let reply: std::result::Result<i32, Error> = match clone() {
        Ok(Cloned::Child) => {
            args.tasks.clear();
            drop(answer);
            child::run(plan, args)
        }
        Ok(Cloned::Parent(pid, _)) => Ok(pid.as_raw_pid()),
        Err(error) => Err(error),
    };
    exit_now(i32::from(answer.send(&reply, None).is_err()))
}

impl First {
    pub(super) fn pid(&self) -> Pid {
        self.0.as_ref().map(|(pid, _)| *pid).expect("the guard holds the process until it is kept")
    }

    /// Its start time, see [`Child`](super::Child).
    pub(super) fn start_time(&self) -> Result<u64> {
        let pid = self.pid().as_raw_pid();
        let found = identity::state_and_start(pid).ok_or(std::io::ErrorKind::NotFound);
        Ok(found.on(Step::Clone, format!("pid {pid}"))?.1)
    }

    pub(super) fn keep(mut self) -> (Pid, OwnedFd) {
        self.0.take().expect("the guard holds the process until it is kept")
    }
}

impl Drop for First {
    fn drop(&mut self) {
        if let Some((pid, pidfd)) = self.0.take() {
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            let _ = waitpid(nix::unistd::Pid::from_raw(pid.as_raw_pid()), None);
        }
    }
}

/// Flags of the new namespaces, without the cgroup namespace: that one takes its root from the cgroup that the process is
/// in, so it is made once the process is where it should be.
fn new_namespace_flags(namespaces: &Namespaces) -> u64 {
    let mut flags = 0;
    for (namespace, flag) in [
        (&namespaces.user, libc::CLONE_NEWUSER),
        (&namespaces.mount, libc::CLONE_NEWNS),
        (&namespaces.pid, libc::CLONE_NEWPID),
        (&namespaces.net, libc::CLONE_NEWNET),
        (&namespaces.ipc, libc::CLONE_NEWIPC),
        (&namespaces.uts, libc::CLONE_NEWUTS),
    ] {
        if namespace.is_new() {
            flags |= flag as u64;
        }
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::new_namespace_flags;
    use crate::plan::{Namespace, Namespaces};

    #[test]
    fn flags_name_new_namespaces_only() {
        let namespaces = Namespaces { net: Namespace::New, pid: Namespace::Join("/x".into()), ..Namespaces::default() };
        assert_eq!(new_namespace_flags(&namespaces), libc::CLONE_NEWNET as u64);
    }
}
