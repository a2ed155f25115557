//! Carries a [`Plan`] out. [`launch()`] is the table of contents of the caller's side, `child::set_up` that of the first
//! process, [`crate::process`] that of becoming the program.
//!
//! ```text
//!  caller (single-threaded)                    first process
//!  create cgroup, apply limits, views of it
//!  own mount namespace (overlay only)
//!  clone3(namespaces, INTO_CGROUP, PIDFD) ───▶ join v1 cgroups, cgroup namespace
//!  write uid_map, gid_map ────── Mapped ─────▶ open host paths, become root inside
//!  build overlay ─────────────── Root ───────▶ mounts, /dev, masks, pivot, limits, capabilities
//!                 ◀───── Terminal, Warning ──
//!                 ◀──────── Waiting ─────────  (create) wait for start
//!                                              system call filter, execve
//!  end of file = the program runs ◀──────────  (close-on-exec)
//! ```
//!
//! With a leaf cgroup two short processes stand between the two. `cgroup_namespace` has the one that makes the container's
//! cgroup namespace, `clone` the one that starts the first process from the leaf. Where no controllers are handed down to
//! the leaf, the second does the first one's work.

mod cgroup;
mod cgroup_namespace;
mod cgroup_views;
mod check;
mod child;
mod clocks;
mod clone;
mod dev;
mod devices;
mod handshake;
mod id_map;
mod inherit;
mod masks;
mod mount_parts;
mod mounts;
mod names;
mod oom_score;
mod owner;
pub(crate) mod process;
mod root;
mod rootfs_fd;
pub(crate) mod session;
mod streams;
pub(crate) mod sync;
pub(crate) mod terminal;

use std::os::fd::OwnedFd;

pub use self::inherit::Inherit;
use self::{child::ChildArgs, sync::Sync};
pub(crate) use self::{
    handshake::{child_of, listen},
    oom_score::set_oom_score,
};
use crate::{Result, Step, cgroup::Cgroup, error::OnStep as _, plan::Plan};

/// A container's first process.
#[derive(Debug)]
pub struct Child {
    /// Its pid in the caller's pid namespace.
    pub pid: i32,
    /// Its pidfd.
    pub pidfd: OwnedFd,
    /// Its start time in clock ticks since boot (proc_pid_stat(5), field 22); with the boot id it names the process
    /// for ever.
    pub start_time: u64,
    /// What was degraded.
    pub warnings: Vec<String>,
    /// The host's side of the terminal, if the plan has one.
    pub terminal: Option<OwnedFd>,
    /// The cgroup, if the plan has one.
    pub cgroup: Option<Cgroup>,
}

/// Makes the container. The caller must be single-threaded and one-shot: its mount namespace may change.
///
/// # Errors
/// The failed step with its subject. Nothing is left behind: the process is dead and the cgroup is gone.
pub fn launch(plan: &Plan, inherit: Inherit) -> Result<Child> {
    check::check(plan)?;
    let mut warnings = Vec::new();
    // From here on a return drops `first`, then `cgroup`: the process is killed and reaped, the cgroup removed.
    let cgroup = cgroup::make(plan.cgroup.as_ref(), &mut warnings)?;
    let mut leaf = cgroup.leaf(plan)?;
    root::leave_host_mounts(&plan.root)?;
    streams::give_to_user(plan, &inherit)?;
    let (sync, theirs) = Sync::pair().on(Step::Clone, "socket pair")?;
    let args = ChildArgs::pack(plan, inherit, theirs, &cgroup, leaf.as_mut())?;
    let first = clone::first_process(plan, args, &cgroup, leaf.as_ref())?;
    let user_namespace = id_map::write(plan, first.pid(), &sync)?;
    oom_score::set_for(plan, first.pid(), &mut warnings)?;
    // The hooks prestart and createRuntime belong here: the namespaces are made, the root is not entered yet. The first
    // process then has to wait for a message, as it waits for the root.
    root::hand_over(plan, user_namespace.as_ref(), &sync)?;
    let terminal = handshake::listen(&sync, plan.wait_for_start, &mut warnings)?;
    let start_time = first.start_time()?;
    let (pid, pidfd) = first.keep();
    // The hooks poststart belong to `start`, and to the caller of a plan that does not wait.
    Ok(Child { pid: pid.as_raw_pid(), pidfd, start_time, warnings, terminal, cgroup: cgroup.keep() })
}
