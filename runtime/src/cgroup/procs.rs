//! The processes of a cgroup and of those below it.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::error::{Error, ErrorKind, Result};
use super::file::Dir;
use super::parse;

/// The deepest tree of cgroups that we walk.
pub(super) const DEPTH_MAX: usize = 64;

/// Every process in a cgroup and below it.
pub(super) fn procs_below(dir: &Dir) -> Result<Vec<i32>> {
    let mut all = Vec::new();
    collect_procs(dir, &mut all, DEPTH_MAX)?;
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

fn collect_procs(dir: &Dir, all: &mut Vec<i32>, depth: usize) -> Result<()> {
    match dir.read("cgroup.procs") {
        Ok(text) => all.extend(parse::pids(&text)),
        // A threaded cgroup: its processes are listed by the domain above it.
        Err(e) if e.kind == ErrorKind::Unsupported => {}
        Err(e) => return Err(e),
    }
    if depth == 0 {
        return Err(Error::invalid("list", dir.path(), "the tree is too deep"));
    }
    for name in dir.children()? {
        match dir.below(&name) {
            Ok(child) => match collect_procs(&child, all, depth - 1) {
                Err(e) if e.kind == ErrorKind::NotFound => {} // removed while we looked: it was empty
                result => result?,
            },
            Err(Errno::NOENT) => {}
            Err(e) => return Err(Error::errno("open", dir.path().join(name), e)),
        }
    }
    Ok(())
}

/// Pidfds of those that still exist.
pub(super) fn hold(pids: &[i32]) -> Vec<(i32, OwnedFd)> {
    let open = |pid: &i32| {
        let fd = pidfd_open(Pid::from_raw(*pid)?, PidfdFlags::empty()).ok()?;
        Some((*pid, fd))
    };
    pids.iter().filter_map(open).collect()
}
