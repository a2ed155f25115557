//! Freezing, signalling, killing, waiting for the end, and removal.
//!
//! Waits end by an event of the kernel: a change of `cgroup.events` (POLLPRI) or the exit of a process (its pidfd).
//! v1 announces neither that a task has left nor that a dying one is gone, so v1 is also polled every `V1_RETRY`.
//! Every wait has a deadline.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};

use super::Cgroup;
use super::error::{Error, ErrorKind, Result};
use super::file::{Dir, read_all};
use super::parse;
use super::stats::{Events, parse_events};
use crate::sys::process::pidfd_signal;

/// How often a cgroup is read again for processes forked while we were signalling the ones found before.
const SIGNAL_PASSES_MAX: usize = 16;
/// The last real-time signal.
const SIGNAL_MAX: i32 = 64;
/// The deepest tree of cgroups that we walk.
pub(super) const DEPTH_MAX: usize = 64;
/// v1 does not notify when the last task has left a cgroup: the longest pause between two reads.
const V1_RETRY: Duration = Duration::from_millis(2);
/// Pauses between reads of `cgroup.events`, in µs; their sum is the longest delay of an event. See [`wait`].
const LOOKS_US: [u64; 9] = [50, 100, 200, 400, 800, 1600, 3200, 6400, 6400];

impl Cgroup {
    /// Freezes every process here and below, and returns when the kernel reports it done. If that takes longer than
    /// `deadline` (a task in uninterruptible sleep delays it) everything is thawed again.
    ///
    /// # Errors
    /// `FreezeTimeout`; `Unsupported` on a legacy layout.
    pub fn freeze(&self, deadline: Duration) -> Result<()> {
        let dir = self.v2("freeze")?;
        dir.write("cgroup.freeze", "1")?;
        match wait(dir, "freeze", until(deadline), |e| e.frozen) {
            Ok(()) => Ok(()),
            Err(error) => {
                dir.write("cgroup.freeze", "0")?;
                Err(if error.kind == ErrorKind::Timeout { error.with_kind(ErrorKind::FreezeTimeout) } else { error })
            }
        }
    }

    /// Ends the freeze.
    ///
    /// # Errors
    /// `Timeout` when it is still frozen after `deadline`: then a cgroup above it is frozen. `Unsupported` on a legacy
    /// layout.
    pub fn thaw(&self, deadline: Duration) -> Result<()> {
        let dir = self.v2("thaw")?;
        dir.write("cgroup.freeze", "0")?;
        wait(dir, "thaw", until(deadline), |e| !e.frozen)
    }

    /// The state of the cgroup as the kernel reports it.
    ///
    /// # Errors
    /// `Unsupported` on a legacy layout, else those of the system calls.
    pub fn events(&self) -> Result<Events> {
        Ok(parse_events(&self.v2("read")?.read("cgroup.events")?))
    }

    /// Sends a signal to every process here and below. No process of another cgroup can be hit, not even when a pid
    /// is reused meanwhile. In a frozen cgroup all but KILL wait for the thaw.
    ///
    /// # Errors
    /// `Invalid` for a signal that does not exist, `Busy` when new processes kept coming faster than we signalled.
    pub fn signal_all(&self, signal: i32) -> Result<()> {
        let dir = self.main()?;
        if !(0..=SIGNAL_MAX).contains(&signal) {
            return Err(Error::invalid("signal", dir.path(), format!("signal {signal}")));
        }
        let mut done: Vec<i32> = Vec::new();
        for _ in 0..SIGNAL_PASSES_MAX {
            let mut found = procs_below(dir)?;
            found.retain(|pid| !done.contains(pid));
            if found.is_empty() {
                return Ok(());
            }
            let held = hold(&found);
            // A pid still listed after its pidfd was opened is the same process.
            let still = procs_below(dir)?;
            for (pid, fd) in held.iter().filter(|(pid, _)| still.contains(pid)) {
                match pidfd_signal(fd.as_fd(), signal).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO)) {
                    Ok(()) | Err(Errno::SRCH) => {}
                    Err(e) => {
                        return Err(Error::errno("signal", dir.path(), e).detail(format!("pid {pid}")));
                    }
                }
            }
            done.extend(found);
        }
        Err(Error::new("signal", dir.path(), ErrorKind::Busy).detail("it keeps forking"))
    }

    /// Kills all processes here and below, also those being forked, also when frozen. Does not wait. A removed cgroup
    /// has no processes.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn kill(&self) -> Result<()> {
        let killed = match self.unified.as_ref().map(|dir| dir.write("cgroup.kill", "1")) {
            // Linux before 5.14 has no such file.
            Some(Err(e)) if e.is(Errno::NOENT) => self.signal_all(Signal::KILL.as_raw()),
            None => self.signal_all(Signal::KILL.as_raw()),
            Some(killed) => killed,
        };
        ignore_removed(killed)
    }

    /// Waits until there is no process here or below.
    ///
    /// # Errors
    /// `Timeout`.
    pub fn wait_empty(&self, deadline: Duration) -> Result<()> {
        let until = until(deadline);
        ignore_removed(match &self.unified {
            Some(dir) => wait(dir, "wait until empty", until, |e| !e.populated),
            None => self.v1.iter().try_for_each(|d| wait_exits(&d.dir, until)),
        })
    }

    /// Removes this cgroup and those below it from every hierarchy, waiting up to `deadline` for dying processes.
    /// What is gone already counts as removed. If there are processes left, nothing is removed.
    ///
    /// # Errors
    /// `Busy` when there still are processes.
    pub fn remove(&self, deadline: Duration) -> Result<()> {
        let until = until(deadline);
        let (parents, name) = self.path.split_last();
        if let Some(dir) = &self.unified {
            match wait(dir, "remove", until, |e| !e.populated) {
                Err(e) if e.kind == ErrorKind::Timeout => {
                    return Err(e.with_kind(ErrorKind::Busy).detail("it still has processes"));
                }
                done => ignore_removed(done)?,
            }
        }
        if let (Some(root), Some(held)) = (self.hierarchy.unified(), &self.unified)
            && let Ok(now) = root.below(self.path.as_str())
            && now.inode()? != held.inode()?
        {
            // This cgroup is gone, and another of the same name was made: it must not be removed, in any hierarchy.
            return Ok(());
        }
        for (mount, hierarchy) in self.hierarchy.v1_mounts().iter().enumerate() {
            let held = self.v1.iter().find(|d| d.mount == mount).map(|d| &d.dir);
            remove_from(&hierarchy.root, parents, name, held, until)?;
        }
        match self.hierarchy.unified() {
            Some(root) => remove_from(root, parents, name, self.unified.as_ref(), until),
            None => Ok(()),
        }
    }

    pub(super) fn v2(&self, operation: &'static str) -> Result<&Dir> {
        self.unified.as_ref().ok_or_else(|| {
            Error::new(operation, self.path.as_str(), ErrorKind::Unsupported).detail("cgroup v2 is not mounted")
        })
    }
}

/// A cgroup that has been removed had no processes.
fn ignore_removed(result: Result<()>) -> Result<()> {
    match result {
        Err(e) if e.kind == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn until(deadline: Duration) -> Instant {
    let now = Instant::now();
    // Decades stand for "no deadline".
    now.checked_add(deadline).unwrap_or_else(|| now + Duration::from_secs(1 << 30))
}

/// Waits for a state of `cgroup.events`.
///
/// The kernel notifies changes of one file at most every 10 ms, rounded up to its ticks (`CGROUP_FILE_NOTIFY_MIN_INTV`
/// in kernel/cgroup/cgroup.c): the event of a freeze right after a thaw comes up to 16 ms late. So the first reads are
/// polls, at growing intervals.
fn wait(dir: &Dir, operation: &'static str, until: Instant, done: impl Fn(&Events) -> bool) -> Result<()> {
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

/// True when the fd is ready, false when the time has come.
fn poll_one(fd: &OwnedFd, flags: PollFlags, until: Instant) -> std::result::Result<bool, Errno> {
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
fn hold(pids: &[i32]) -> Vec<(i32, OwnedFd)> {
    let open = |pid: &i32| {
        let fd = pidfd_open(Pid::from_raw(*pid)?, PidfdFlags::empty()).ok()?;
        Some((*pid, fd))
    };
    pids.iter().filter_map(open).collect()
}

/// Waits until there are no processes below, where there is no `cgroup.events`: for the exit of one after the other,
/// but never for long, since a process can also leave (or only a thread of it was here).
fn wait_exits(dir: &Dir, until: Instant) -> Result<()> {
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

/// Removes `<root>/<parents>/<name>`, but never a cgroup that took the place of the one that we hold.
fn remove_from(root: &Dir, parents: &str, name: &str, held: Option<&Dir>, until: Instant) -> Result<()> {
    let parent = match root.below(parents) {
        Ok(parent) => parent,
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(Error::errno("remove", root.path().join(parents), e)),
    };
    let dir = match parent.below(name) {
        Ok(dir) => dir,
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(Error::errno("remove", parent.path().join(name), e)),
    };
    if let Some(held) = held
        && held.inode()? != dir.inode()?
    {
        return Ok(());
    }
    loop {
        match remove_tree(&parent, name, DEPTH_MAX) {
            Err(e) if e.kind == ErrorKind::Busy && Instant::now() < until => wait_while_busy(&dir, until)?,
            done => return done,
        }
    }
}

/// Removes a tree of cgroups, children first.
fn remove_tree(parent: &Dir, name: &str, depth: usize) -> Result<()> {
    let subject = || parent.path().join(name);
    match parent.rmdir(name) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::BUSY | Errno::NOTEMPTY) if depth > 0 => {} // perhaps only because of children
        Err(e) => return Err(Error::errno("remove", subject(), e)),
    }
    let dir = match parent.below(name) {
        Ok(dir) => dir,
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(Error::errno("remove", subject(), e)),
    };
    let children = match dir.children() {
        Ok(children) => children,
        Err(e) if e.kind == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    for child in children {
        remove_tree(&dir, &child, depth - 1)?;
    }
    match parent.rmdir(name) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(Error::errno("remove", subject(), e)),
    }
}

/// Waits until rmdir is worth another attempt.
fn wait_while_busy(dir: &Dir, until: Instant) -> Result<()> {
    let emptied =
        if dir.has("cgroup.events") { wait(dir, "remove", until, |e| !e.populated) } else { wait_exits(dir, until) };
    // Empty and yet busy: a process came and went, or the last task is exiting. v1 does not announce that.
    let result = emptied.and_then(|()| poll_v1_retry(dir, until));
    match result {
        Err(e) if e.kind == ErrorKind::Timeout => Err(e.with_kind(ErrorKind::Busy).detail("it still has processes")),
        other => ignore_removed(other),
    }
}

/// Waits for an event that may or may not come, for `V1_RETRY` at most.
fn poll_v1_retry(dir: &Dir, until: Instant) -> Result<()> {
    let soon = until.min(Instant::now() + V1_RETRY);
    let file = if dir.has("cgroup.events") { "cgroup.events" } else { "cgroup.procs" };
    let fail = |e| Error::errno("remove", dir.path(), e);
    let fd = dir.open(file, OFlags::RDONLY).map_err(fail)?;
    read_all(fd.as_fd()).map_err(fail)?;
    poll_one(&fd, PollFlags::PRI, soon).map(drop).map_err(fail)
}
