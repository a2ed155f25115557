//! Waiting for a state of a cgroup.
//!
//! Waits end by an event of the kernel: a change of `cgroup.events` (POLLPRI) or the exit of a process (its pidfd).
//! v1 announces neither that a task has left nor that a dying one is gone, so v1 is also polled every [`V1_RETRY`].
//! Every wait has a deadline.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::error::{Error, ErrorKind, Result};
use super::file::{Dir, read_all};
use super::procs::{hold, procs_below};
use super::stats::{Events, parse_events};

/// v1 does not notify when the last task has left a cgroup: the longest pause between two reads.
pub(super) const V1_RETRY: Duration = Duration::from_millis(2);
/// Pauses between reads of `cgroup.events`, in µs; their sum is the longest delay of an event. See [`wait_for`].
const LOOKS_US: [u64; 9] = [50, 100, 200, 400, 800, 1600, 3200, 6400, 6400];

pub(super) fn until(deadline: Duration) -> Instant {
    let now = Instant::now();
    // Decades stand for "no deadline".
    now.checked_add(deadline).unwrap_or_else(|| now + Duration::from_secs(1 << 30))
}

/// A cgroup that has been removed had no processes.
pub(super) fn ignore_removed(result: Result<()>) -> Result<()> {
    match result {
        Err(e) if e.kind == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Waits for a state of `cgroup.events`.
///
/// The kernel notifies changes of one file at most every 10 ms, rounded up to its ticks (`CGROUP_FILE_NOTIFY_MIN_INTV`
/// in kernel/cgroup/cgroup.c): the event of a freeze right after a thaw comes up to 16 ms late. So the first reads are
/// polls, at growing intervals.
pub(super) fn wait_for(
    dir: &Dir,
    operation: &'static str,
    until: Instant,
    done: impl Fn(&Events) -> bool,
) -> Result<()> {
    let fail = |e| Error::errno(operation, dir.path(), e);
    let file = dir.open("cgroup.events", OFlags::RDONLY).map_err(fail)?;
    let mut looks = LOOKS_US.into_iter();
    loop {
        // Reading takes note of the event count that poll compares with, so no change between the two is missed.
        if done(&parse_events(&read_all(file.as_fd()).map_err(fail)?)) {
            return Ok(());
        }
        let look = looks.next().map_or(until, |us| until.min(Instant::now() + Duration::from_micros(us)));
        if !poll_one(&file, PollFlags::PRI, look).map_err(fail)? && look == until {
            return Err(Error::new(operation, dir.path(), ErrorKind::Timeout));
        }
    }
}

/// Waits until there are no processes below, where there is no `cgroup.events`: for the exit of one after the other,
/// but never for long, since a process can also leave (or only a thread of it was here).
pub(super) fn wait_exits(dir: &Dir, until: Instant) -> Result<()> {
    let fail = |e| Error::errno("wait until empty", dir.path(), e);
    loop {
        let pids = procs_below(dir)?;
        let Some(first) = pids.first() else {
            return Ok(());
        };
        if Instant::now() >= until {
            let left = format!("pid {first} of {}", pids.len());
            return Err(Error::new("wait until empty", dir.path(), ErrorKind::Timeout).detail(left));
        }
        let soon = until.min(Instant::now() + V1_RETRY);
        if let Some((_, pidfd)) = hold(&pids[..1]).pop() {
            poll_one(&pidfd, PollFlags::IN, soon).map_err(fail)?;
        }
    }
}

/// True when the fd is ready, false when the time has come.
pub(super) fn poll_one(fd: &OwnedFd, flags: PollFlags, until: Instant) -> std::result::Result<bool, Errno> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(|_| Errno::OVERFLOW)?;
        match poll(&mut [PollFd::new(fd, flags)], Some(&timeout)) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(e) => return Err(e),
        }
    }
}
