//! The leaf cgroups of a box's runs: one per run, made or taken over from a run that has ended.
//!
//! Making and removing a cgroup are the dearest system calls of a short command. So the leaf of a run that has ended
//! stays, with its files open, for a later run of the box, if nothing of the first run is left in it.
//!
//! Invariants:
//! - A leaf belongs to one run at a time. Its name has the number of the first one; a later one stands in its note, where
//!   it outlives this process together with the CPU time from which the later run counts.
//! - A leaf is taken over only if the kernel says that it has no processes, no process was killed in it for want of memory,
//!   little memory is left charged to it, and no signal to all processes of the run was or can be under way.
//! - A leaf that was killed as a whole is not taken over. `cgroup.kill` counts its uses, and clone3(2) into such a cgroup
//!   kills the child if the parent's own cgroup has another count (seen on Linux 6.18). So a run that ended by SIGKILL, or
//!   because its time was up, leaves no leaf to others.
//! - Making, reading and removing a leaf takes microseconds, less than a hop to another thread, and runs on the caller's
//!   thread. Signals to all processes run on a blocking thread.
//!
//! Leaves out: the box's own cgroup (`cgroup`), and the table of the leaves that are held open (`leaf_pool`).

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use icebox_runtime::cgroup::{self, Backend, Cgroup, Controller, LeafUsage, Limits, Unenforced};

use super::BoxHandle;
use super::held::{HELD_V1, Held, LEAF_V1, blocking};
use super::leaf_pool::{HeldLeaf, Note, leaf_name, run_of_leaf};
use crate::error::{Error, ErrorKind};
use crate::protocol::{Exit, ExitStatus};

/// An empty leaf goes at once; the kernel may need a moment after the last exit.
const LEAF_REMOVE_MS_MAX: u64 = 20;
/// The kernel charges memory ahead, in pieces of 64 pages per CPU (`MEMCG_CHARGE_BATCH`).
const CHARGE_BATCH_BYTES: u64 = 64 * 4096;
/// Most memory that may be left charged to an idle leaf, on a machine with many CPUs.
const LEFT_BYTES_MAX: u64 = 4 << 20;

/// The resources a run has used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RunUsage {
    /// CPU time of all its processes, in nanoseconds (the kernel counts microseconds).
    pub cpu_ns: u64,
    /// Most memory in use at one time; 0 where the kernel does not report it.
    pub memory_peak_bytes: u64,
    /// Processes of the run that the kernel killed for want of memory.
    pub oom_kills: u64,
}

/// Most memory that may be left charged to an idle leaf. It counts in the next run's peak. Less than this cannot be told
/// from what the kernel has charged ahead.
fn left_bytes_max() -> u64 {
    static BYTES: LazyLock<u64> = LazyLock::new(|| {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
        (CHARGE_BATCH_BYTES * (cpus + 2)).min(LEFT_BYTES_MAX)
    });
    *BYTES
}

/// The leaf of a run.
struct Place {
    name: String,
    cpu_usec_before: u64,
    /// It had another run before.
    is_taken_over: bool,
    /// As long as this is held, no other run gets the leaf.
    _leaf: Option<Arc<HeldLeaf>>,
}

/// A run's leaf, for the init: its descriptors, and those that all runs share.
#[derive(Debug, Default)]
pub(super) struct Leaf(Option<(Arc<HeldLeaf>, Arc<Held>)>);

impl Leaf {
    pub(super) fn borrowed(&self) -> Vec<BorrowedFd<'_>> {
        let fds = self.0.iter().flat_map(|(leaf, held)| leaf.fds.iter().chain(&held.pids));
        fds.map(AsFd::as_fd).collect()
    }

    /// A later run may have the leaf.
    pub(super) fn may_return(&self, run: u64) {
        if let Some((_, held)) = &self.0 {
            held.held_leaves.may_return(run, true);
        }
    }
}

impl Held {
    /// Removes a leaf if it is empty, and says whether it is gone. `oom_kills` are those in it.
    fn remove_leaf(&self, name: &str, v1: &[Controller], oom_kills: u64) -> cgroup::Result<bool> {
        let is_gone = self.leaves().remove_empty_leaf(name, v1)?;
        if is_gone && matches!(self.whole.backend(Controller::Memory), Backend::V1(_)) {
            self.oom_kills_of_removed.fetch_add(oom_kills, Ordering::Relaxed);
        }
        Ok(is_gone)
    }

    /// Removes the idle leaves.
    pub(super) fn drop_idle_leaves(&self) {
        self.held_leaves.take_idle().iter().for_each(|leaf| self.remove_idle(leaf));
    }

    fn remove_idle(&self, leaf: &HeldLeaf) {
        // The sweep handles one that cannot be removed now.
        let _ = self.remove_leaf(&leaf.name(), &LEAF_V1, 0);
    }

    pub(super) fn note_of(&self, name: &str) -> cgroup::Result<Option<Note>> {
        Ok(self.leaves().leaf_note(name)?.and_then(|text| Note::parse(&text)))
    }

    /// Removes the leaf of a run that has ended. One in use stays for the sweep, and is looked at until then.
    fn part_with(&self, name: &str, run: u64, oom_kills: u64) {
        if !self.remove_leaf(name, &LEAF_V1, oom_kills).unwrap_or(false) {
            self.keep_ended(name, run, oom_kills);
        }
    }

    /// Where the run's processes are. `None` if it has no leaf (any more).
    fn place_of(&self, run: u64) -> cgroup::Result<Option<Place>> {
        if let Some((leaf, cpu_usec_before)) = self.held_leaves.of(run) {
            let (name, is_taken_over) = (leaf.name(), leaf.number != run);
            return Ok(Some(Place { name, cpu_usec_before, is_taken_over, _leaf: Some(leaf) }));
        }
        let place = |name, cpu_usec_before, is_taken_over| {
            Ok(Some(Place { name, cpu_usec_before, is_taken_over, _leaf: None }))
        };
        let own = leaf_name(run);
        if !self.held_leaves.has(run) {
            match self.note_of(&own)? {
                Some(note) if note.run == run => return place(own, note.cpu_usec_before, true),
                Some(_) => {}
                None if self.leaves().open_leaf(&own)?.is_some() => return place(own, 0, false),
                None => {}
            }
        }
        // Taken over by a run that an earlier daemon started.
        for name in self.leaves().leaves()? {
            let is_held = run_of_leaf(&name).is_none_or(|number| self.held_leaves.has(number));
            if let Some(note) = (!is_held).then(|| self.note_of(&name)).transpose()?.flatten()
                && note.run == run
            {
                return place(name, note.cpu_usec_before, true);
            }
        }
        Ok(None)
    }

    /// Reads what a run has used, and removes its leaf or keeps it for another run.
    fn finish_leaf(&self, run: u64, exit: Option<&Exit>) -> cgroup::Result<Option<LeafUsage>> {
        let Some((leaf, before)) = self.held_leaves.of(run) else { return self.finish_by_name(run) };
        let reading = match leaf.gauges(self.leaves()) {
            Ok(Some(gauges)) => gauges.read().map(|reading| (reading, gauges.can_restart())),
            other => {
                self.held_leaves.forget(run);
                return other.and_then(|_| self.finish_by_name(run));
            }
        };
        let (reading, can_restart) = reading.inspect_err(|_| self.held_leaves.forget(run))?;
        let is_empty = !reading.populated && !reading.frozen && reading.memory_current <= left_bytes_max();
        let was_killed = exit.is_none_or(|exit| exit.timed_out || exit.status == ExitStatus::Signal(libc::SIGKILL));
        if !self.held_leaves.give_back(run, is_empty && can_restart && reading.oom_kills == 0 && !was_killed) {
            self.part_with(&leaf.name(), run, reading.oom_kills);
        }
        let cpu_usec = reading.cpu_usec.saturating_sub(before);
        Ok(Some(LeafUsage { cpu_usec, memory_peak: reading.memory_peak, oom_kills: reading.oom_kills }))
    }

    fn finish_by_name(&self, run: u64) -> cgroup::Result<Option<LeafUsage>> {
        let place = self.place_of(run)?;
        let usage = match &place {
            Some(place) => self.leaves().leaf_usage(&place.name)?.map(|usage| (usage, place)),
            None => None,
        };
        let Some((mut usage, place)) = usage else {
            // The box's cgroup itself may be gone, and another one may have its path: that is an error here.
            return self.gauges.events().map(|_| None);
        };
        usage.cpu_usec = usage.cpu_usec.saturating_sub(place.cpu_usec_before);
        if place.is_taken_over && self.leaves().backend(Controller::Memory) == Backend::V2 {
            // The new count of the peak was bound to a descriptor of the earlier daemon.
            usage.memory_peak = None;
        }
        self.part_with(&place.name, run, usage.oom_kills);
        Ok(Some(usage))
    }

    /// The sweep's part for one leaf: removes it unless it is in use, and says whether it is gone.
    fn sweep_leaf(&self, name: &str, in_flight: &impl Fn(u64) -> bool) -> cgroup::Result<bool> {
        let Some(number) = run_of_leaf(name) else { return Ok(false) };
        let may_go = match self.held_leaves.release(number, in_flight) {
            Some(may_go) => may_go,
            None => !in_flight(self.note_of(name)?.map_or(number, |note| note.run)),
        };
        if !may_go {
            return Ok(false);
        }
        let oom_kills = self.leaves().leaf_oom_kills(name)?.unwrap_or(0);
        let note = if oom_kills > 0 { self.note_of(name)? } else { None };
        let is_gone = self.remove_leaf(name, &HELD_V1, oom_kills)?;
        if is_gone {
            self.removed_ended(name, note.unwrap_or(Note::first(number)), oom_kills);
        }
        Ok(is_gone)
    }
}

impl BoxHandle {
    /// A run's leaf. Without a cgroup at all there is none, and the init starts the run where it is itself.
    pub(super) fn make_leaf(&self, run: u64) -> Result<Leaf, Error> {
        if self.inner.cgroup.is_none() {
            return Ok(Leaf::default());
        }
        let step = "make run's cgroup";
        // A box without a cgroup is a box that has just ended; the client has named nothing that does not exist.
        let gone = |e: Error| if e.kind() == ErrorKind::NotFound { e.with_kind(ErrorKind::Gone) } else { e };
        let name = leaf_name(run);
        let made = self.with_cgroup(step, |held| {
            if let Some(leaf) = held.held_leaves.take_over(run, |leaf| held.remove_idle(leaf))? {
                return Ok(Leaf(Some((leaf, Arc::clone(held)))));
            }
            let leaf = held.leaves().leaf_of_thawed(&name, &LEAF_V1)?;
            let shared = self.share_leaf(leaf, run, held);
            if shared.is_err() {
                // The first error is reported.
                let _ = held.leaves().remove_empty_leaf(&name, &LEAF_V1);
            }
            shared
        });
        made.map_err(gone)
    }

    fn share_leaf(&self, leaf: Cgroup, run: u64, held: &Arc<Held>) -> cgroup::Result<Leaf> {
        let owner = self.inner.uid_base;
        leaf.allow_joins_from(owner, owner)?;
        leaf.allow_kill_from(owner)?;
        // A command that ran out of memory ends as a whole, not with some of its processes missing. v1 has no
        // `memory.oom.group`: there the kernel kills one process, and runs are still allowed.
        if leaf.backend(Controller::Memory) == Backend::V2 {
            let whole = Limits { oom_group: true, ..Limits::default() };
            leaf.apply(&whole, Unenforced::Allow)?;
        }
        leaf.account_memory_as(held.memory_max.as_deref())?;
        let tasks = leaf.v1_tasks_fds()?;
        let fds = std::iter::once(leaf.into_unified_fd()?).chain(tasks).collect();
        let leaf = HeldLeaf::new(run, fds);
        held.held_leaves.hold(run, &leaf);
        Ok(Leaf(Some((leaf, Arc::clone(held)))))
    }

    /// Removes the leaf of a run that did not start.
    pub(super) async fn drop_leaf(&self, run: u64, leaf: Leaf) {
        let Leaf(Some((leaf, held))) = leaf else { return };
        held.held_leaves.forget(run);
        let name = leaf.name();
        drop((leaf, held));
        let handle = self.clone();
        let removed = blocking(move || handle.remove_leaf(&name)).await;
        if let Err(error) = removed {
            tracing::debug!(run, error = error.report(), "leaf left for the sweep");
        }
    }

    fn remove_leaf(&self, name: &str) -> Result<(), Error> {
        match self.with_cgroup("open run's cgroup", |held| held.leaves().open_leaf(name))? {
            Some(leaf) => {
                leaf.remove(Duration::from_millis(LEAF_REMOVE_MS_MAX)).map_err(self.fail("remove run's cgroup"))
            }
            None => Ok(()),
        }
    }

    /// The leaf of a run, and what keeps it from going to another one.
    fn open_place(&self, step: &'static str, run: u64) -> Result<Option<(Cgroup, Place)>, Error> {
        self.with_cgroup(step, |held| {
            let Some(place) = held.place_of(run)? else { return Ok(None) };
            Ok(held.leaves().open_leaf(&place.name)?.map(|leaf| (leaf, place)))
        })
    }

    pub(super) async fn signal_leaf(&self, run: u64, signal: i32) -> Result<(), Error> {
        let handle = self.clone();
        blocking(move || {
            let step = "signal run";
            let missing = || Error::new(ErrorKind::NotFound, step, run);
            let (leaf, _place) = handle.open_place(step, run)?.ok_or_else(missing)?;
            if !leaf.events().map_err(handle.fail(step))?.populated {
                return Err(missing());
            }
            handle.with_cgroup(step, |held| {
                held.held_leaves.may_return(run, false);
                Ok(())
            })?;
            if signal == libc::SIGKILL {
                leaf.kill().map_err(handle.fail(step))
            } else {
                leaf.signal_all(signal).map_err(handle.fail(step))
            }
        })
        .await
    }

    /// True if the run has processes, background ones included. In a box without a cgroup no run has any.
    ///
    /// # Errors
    /// The cgroup cannot be read.
    pub async fn has_processes(&self, run: u64) -> Result<bool, Error> {
        let handle = self.clone();
        blocking(move || match handle.open_place("read run's state", run) {
            Ok(found) => Ok(found.is_some_and(|(leaf, _)| leaf.events().is_ok_and(|events| events.populated))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        })
        .await
    }

    /// Reads what a finished run has used. Its leaf is kept for another run or removed, if it is empty (a background child
    /// may still live in it; then it stays for [`sweep_leaves`](Self::sweep_leaves)). `exit` is the run's, `None` if that is
    /// not known.
    ///
    /// # Errors
    /// `NotFound` if the run has no leaf.
    pub fn finish(&self, run: u64, exit: Option<&Exit>) -> Result<RunUsage, Error> {
        let step = "read run's usage";
        let usage = self.with_cgroup(step, |held| held.finish_leaf(run, exit))?;
        let usage = usage.ok_or_else(|| Error::new(ErrorKind::NotFound, step, run))?;
        Ok(RunUsage {
            cpu_ns: usage.cpu_usec.saturating_mul(1000),
            memory_peak_bytes: usage.memory_peak.unwrap_or(0),
            oom_kills: usage.oom_kills,
        })
    }

    /// Finds the leaves of runs that another process has started, for [`late_kills`](Self::late_kills). Returns the highest
    /// number of a run that has or had one which exists; 0 without any. Processes of a run may outlive it and every record
    /// of it, and they keep its leaf in use.
    ///
    /// # Errors
    /// When the cgroup cannot be read.
    pub async fn find_leaves(&self) -> Result<u64, Error> {
        let handle = self.clone();
        blocking(move || {
            handle.with_cgroup("list leaves", |held| {
                let mut last = 0;
                for name in held.leaves().leaves()? {
                    let Some(number) = run_of_leaf(&name) else { continue };
                    let note = held.note_of(&name)?.unwrap_or(Note::first(number));
                    if !held.held_leaves.has(number) {
                        held.ended.found(&name, note);
                    }
                    last = last.max(number).max(note.run);
                }
                Ok(last)
            })
        })
        .await
    }

    /// Removes the empty leaves of runs, but not those kept for a later run; returns how many. `in_flight` says of a run's
    /// number whether the run is being started, runs, or has not been [`finish`](Self::finish)ed yet: the leaf of such a
    /// run stays, empty or not. It is asked after the leaf was seen, so a caller that enters each run before it starts it
    /// loses none.
    ///
    /// # Errors
    /// The cgroup cannot be read.
    pub fn sweep_leaves(&self, in_flight: impl Fn(u64) -> bool) -> Result<usize, Error> {
        self.with_cgroup("sweep runs' cgroups", |held| {
            let mut removed = 0;
            for name in held.leaves().leaves()? {
                removed += usize::from(held.sweep_leaf(&name, &in_flight)?);
            }
            Ok(removed)
        })
    }
}
