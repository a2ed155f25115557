//! The descriptors of a program: each gets its number, all others are closed (the defence against leaked descriptors,
//! CVE-2016-9962 and CVE-2024-21626).

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};

use rustix::io::Errno;

use super::{Failure, ProcessStep, failure::at};
use crate::sys::process as sys;

/// The first number that is not a standard stream.
const FIRST: RawFd = 3;
/// Descriptors that are in the way of others are moved to this number or above.
pub(crate) const PARKED_FROM: RawFd = 256;

/// Gives each descriptor its number and closes all but these and `kept`.
pub(super) fn place(fds: &[(BorrowedFd<'_>, RawFd)], kept: &[BorrowedFd<'_>]) -> Result<(), Failure> {
    if let Some(fd) = kept.iter().find(|fd| fds.iter().any(|(_, target)| *target == fd.as_raw_fd())) {
        let in_use = Failure::new(ProcessStep::Descriptors, Errno::BUSY);
        return Err(Failure { detail: Some(fd.as_raw_fd()), ..in_use });
    }
    let last = fds.iter().map(|(_, target)| *target).max().unwrap_or_default();
    let in_the_way = |(fd, target): &(BorrowedFd<'_>, RawFd)| fd.as_raw_fd() <= last && fd.as_raw_fd() != *target;
    if fds.iter().any(in_the_way) {
        // Each is moved above all targets first, so that no order can lose one.
        let from = PARKED_FROM.max(last.saturating_add(1));
        let mut parked: Vec<(OwnedFd, RawFd)> = Vec::with_capacity(fds.len());
        for (fd, target) in fds {
            let moved = rustix::io::fcntl_dupfd_cloexec(fd, from);
            parked.push((moved.map_err(|e| Failure::of(ProcessStep::Descriptors, *target, e.into()))?, *target));
        }
        parked.iter().try_for_each(|(fd, target)| give_number(fd.as_fd(), *target))?;
    } else {
        fds.iter().try_for_each(|(fd, target)| give_number(*fd, *target))?;
    }
    let open = fds.iter().map(|(_, target)| *target).chain(kept.iter().map(|fd| fd.as_raw_fd()));
    close_all_but(open).map_err(at(ProcessStep::Descriptors))
}

fn give_number(fd: BorrowedFd<'_>, target: RawFd) -> Result<(), Failure> {
    sys::place_fd(fd, target).map_err(|e| Failure::of(ProcessStep::Descriptors, target, e))
}

/// Closes every descriptor from 3 on but these. Only in a child that ends by `execve` or [`exit_now`](super::exit_now),
/// and never drops the owner of a descriptor that is closed here.
///
/// # Errors
/// Those of close_range(2).
pub fn close_all_but(open: impl Iterator<Item = RawFd> + Clone) -> Result<(), Errno> {
    let mut first = FIRST;
    while let Some(next) = open.clone().filter(|number| *number >= first).min() {
        if next > first {
            sys::close_range(first, next - 1)?;
        }
        first = next.saturating_add(1);
    }
    sys::close_range(first, RawFd::MAX)
}
