//! The cgroup namespace of a container whose first process starts in a leaf.
//!
//! A new cgroup namespace takes the cgroup of the process that unshares it as its root (cgroup_namespaces(7)). So a short
//! process does that in the container's own cgroup, hands the namespace over, and ends. Only then are controllers handed
//! down to the leaf: on v2 no process can be in a cgroup that does this, and doing it before the leaf has processes spares
//! moving them.

use std::{fs, os::fd::OwnedFd};

use nix::{
    sched::{CloneFlags, unshare},
    sys::wait::waitpid,
};

use super::sync::Sync;
use crate::{
    Error, Result, Step,
    cgroup::Cgroup,
    error::OnStep as _,
    process::{Cloned, clone3, exit_now},
};

const NAME: &str = "process that makes the cgroup namespace";

/// Makes a cgroup namespace whose root is `cgroup`, by a short process in it.
pub(super) fn make(cgroup: &Cgroup) -> Result<OwnedFd> {
    let (mine, theirs) = Sync::pair().on(Step::Clone, "socket pair")?;
    match clone3(0, cgroup.unified_fd()).on(Step::Clone, NAME)? {
        Cloned::Child => {
            let made = make_here(cgroup);
            let sent = theirs.send(&made.as_ref().map(|_| ()), made.as_ref().ok());
            exit_now(i32::from(sent.is_err()))
        }
        Cloned::Parent(pid, _) => {
            drop(theirs);
            let reply = mine.receive::<std::result::Result<(), Error>>().on(Step::Clone, NAME)?;
            // Until it is reaped it still counts as a process in the cgroup.
            let end = waitpid(nix::unistd::Pid::from_raw(pid.as_raw_pid()), None).on(Step::Clone, NAME)?;
            match reply {
                Some((Ok(()), Some(namespace))) => Ok(namespace),
                Some((Err(error), _)) => Err(error),
                // By itself, or by a signal.
                _ => Err(Error::invalid(Step::Clone, NAME, format!("it ended without an answer: {end:?}"))),
            }
        }
    }
}

fn make_here(cgroup: &Cgroup) -> Result<OwnedFd> {
    // The namespace has a root in every hierarchy.
    cgroup.join_self().on(Step::JoinCgroup, "v1 hierarchies")?;
    unshare(CloneFlags::CLONE_NEWCGROUP).on(Step::JoinCgroup, "cgroup namespace")?;
    let path = "/proc/self/ns/cgroup";
    Ok(fs::File::open(path).on(Step::JoinCgroup, path)?.into())
}
