//! Removing a cgroup and those below it from every hierarchy.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::Cgroup;
use super::error::{Error, ErrorKind, Result};
use super::file::{Dir, read_all};
use super::procs::DEPTH_MAX;
use super::wait::{V1_RETRY, ignore_removed, poll_one, until, wait_exits, wait_for};

impl Cgroup {
    /// Removes this cgroup and those below it from every hierarchy, waiting up to `deadline` for dying processes.
    /// What is gone already counts as removed. If there are processes left, nothing is removed.
    ///
    /// # Errors
    /// `Busy` when there still are processes.
    pub fn remove(&self, deadline: Duration) -> Result<()> {
        let until = until(deadline);
        let (parents, name) = self.path.split_last();
        if let Some(dir) = &self.unified {
            match wait_for(dir, "remove", until, |e| !e.populated) {
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
    let emptied = if dir.has("cgroup.events") {
        wait_for(dir, "remove", until, |e| !e.populated)
    } else {
        wait_exits(dir, until)
    };
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
