//! Who owns a new user namespace.
//!
//! The kernel counts inotify instances and watches, pending signals, message queues, locked memory, processes and
//! namespaces per user, and adds each count to the owner of the user namespace too (`inc_ucount` of the kernel). If the
//! host's root owned every container's namespace, all containers and root itself would share one count, and one
//! container could use it up. So the owner is the host's id of the container's own root: the sum over all its users
//! has the limit of one user of the host, and touches no other count.

use std::{io, os::fd::BorrowedFd};

use rustix::{
    process::{Gid, Uid, getegid, getgid, getuid},
    thread::{set_thread_res_gid, set_thread_res_uid},
};

use crate::{
    plan::{IdMap, IdMaps},
    sys::process::{self as sys, Cloned},
};

/// The host's id of id 0 inside; the caller has checked that there is one.
pub(super) fn outside_root(lines: &[IdMap]) -> u32 {
    lines.iter().find(|line| line.inside == 0).map_or(0, |line| line.outside)
}

/// clone3(2), with the user namespace among `flags`, if it is, owned by the host's id of root in `maps`.
///
/// Only the effective ids change, and only until the child is there. The file system ids stay, so the child still opens
/// paths of the host as its maker would; the capabilities stay, so hosts that let only root make user namespaces do.
pub(super) fn clone3(maps: Option<&IdMaps>, flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    let Some(maps) = maps.filter(|_| flags & libc::CLONE_NEWUSER as u64 != 0) else {
        return sys::clone3(flags, cgroup);
    };
    let (real_uid, real_gid, old_gid) = (getuid(), getgid(), getegid());
    let (_, permitted, inheritable) = sys::capget()?;
    set_thread_res_gid(real_gid, Gid::from_raw(outside_root(&maps.gids)), real_gid)?;
    set_thread_res_uid(real_uid, Uid::from_raw(outside_root(&maps.uids)), real_uid)?;
    // Leaving uid 0 clears the effective set (capabilities(7)).
    sys::capset(permitted, permitted, inheritable)?;
    nix::unistd::setfsgid(nix::unistd::Gid::from_raw(old_gid.as_raw()));
    nix::unistd::setfsuid(nix::unistd::Uid::from_raw(real_uid.as_raw()));
    let cloned = sys::clone3(flags, cgroup);
    if !matches!(cloned, Ok(Cloned::Child)) {
        set_thread_res_uid(real_uid, real_uid, real_uid)?;
        set_thread_res_gid(real_gid, old_gid, real_gid)?;
    }
    cloned
}
