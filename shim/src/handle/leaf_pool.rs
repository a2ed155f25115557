//! The leaves of a box that are held open: those of runs in flight, and idle ones that later runs take over.
//!
//! Invariant: a leaf is in the table from before another run may have it until its directory may be removed, so the sweep
//! always finds out whose it is. Leaves out: cgroups other than through the descriptors of a leaf (`leaves`).

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use icebox_runtime::cgroup::{self, Cgroup, LeafGauges, set_leaf_note};

/// Most leaves of a box that are held open, in use or idle. Each has seven descriptors.
const HELD_MAX: usize = 4;
/// Most idle leaves of a box.
const IDLE_MAX: usize = 2;

/// The leaves of a box that are held open.
#[derive(Debug, Default)]
pub(super) struct Leaves(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// By the number of the run that has the leaf.
    used: BTreeMap<u64, Use>,
    idle: Vec<Arc<HeldLeaf>>,
    /// Notes cannot be written here, so no leaf is taken over.
    without_notes: bool,
}

#[derive(Debug)]
struct Use {
    leaf: Arc<HeldLeaf>,
    /// CPU time of earlier runs in this leaf.
    cpu_usec_before: u64,
    /// Another run may have it after this one.
    may_return: bool,
}

/// A leaf that is held open.
#[derive(Debug)]
pub(super) struct HeldLeaf {
    /// In its name.
    pub(super) number: u64,
    /// The v2 directory, then v1 `tasks` files.
    pub(super) fds: Vec<OwnedFd>,
    /// Opened at the end of its first run.
    gauges: OnceLock<LeafGauges>,
}

pub(super) fn leaf_name(run: u64) -> String {
    format!("run-{run}")
}

pub(super) fn run_of_leaf(name: &str) -> Option<u64> {
    name.strip_prefix("run-")?.parse().ok()
}

/// The note on a leaf that was taken over, or in which processes were killed for want of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Note {
    /// The run that has the leaf.
    pub(super) run: u64,
    /// CPU time of earlier ones in it.
    pub(super) cpu_usec_before: u64,
    /// Processes killed for want of memory that the owner of the box has been told of.
    pub(super) told_kills: u64,
}

impl Note {
    /// A leaf that was made for this run.
    pub(super) fn first(run: u64) -> Self {
        Self { run, cpu_usec_before: 0, told_kills: 0 }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split(' ').map(str::parse::<u64>);
        let (run, cpu_usec_before) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        let told_kills = numbers.next().map_or(Ok(0), |number| number).ok()?;
        numbers.next().is_none().then_some(Self { run, cpu_usec_before, told_kills })
    }

    pub(super) fn text(self) -> String {
        let Self { run, cpu_usec_before, told_kills } = self;
        if told_kills == 0 {
            format!("{run} {cpu_usec_before}")
        } else {
            format!("{run} {cpu_usec_before} {told_kills}")
        }
    }
}

impl HeldLeaf {
    /// The leaf that was made for a run.
    pub(super) fn new(number: u64, fds: Vec<OwnedFd>) -> Arc<Self> {
        Arc::new(Self { number, fds, gauges: OnceLock::new() })
    }

    pub(super) fn name(&self) -> String {
        leaf_name(self.number)
    }

    /// `None` where the kernel does not report all of it.
    pub(super) fn gauges(&self, parent: &Cgroup) -> cgroup::Result<Option<&LeafGauges>> {
        if self.gauges.get().is_none()
            && let Some(gauges) = parent.leaf_gauges(&self.name())?
        {
            // Another thread may have been faster; its gauges are as good.
            let _ = self.gauges.set(gauges);
        }
        Ok(self.gauges.get())
    }

    /// Begins the counts of another run. Returns the CPU time of the earlier ones, `None` if there are processes in it.
    fn begin(&self) -> cgroup::Result<Option<u64>> {
        let Some(gauges) = self.gauges.get() else { return Ok(None) };
        // The box's root may put processes here, as the init does.
        let events = gauges.events()?;
        if events.populated || events.frozen {
            return Ok(None);
        }
        gauges.restart()?;
        gauges.cpu_usec().map(Some)
    }

    fn write_note(&self, text: &str) -> cgroup::Result<()> {
        self.fds.first().map_or(Ok(()), |directory| set_leaf_note(directory.as_fd(), text))
    }
}

impl Leaves {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives an idle leaf to a run, as far as the table is concerned.
    fn enter_idle(&self, run: u64) -> Option<Arc<HeldLeaf>> {
        let mut state = self.lock();
        if state.used.contains_key(&run) {
            return None;
        }
        let leaf = state.idle.pop()?;
        state.enter(run, &leaf);
        Some(leaf)
    }

    /// An idle leaf, for this run from now on. `remove` gets those that turn out to be no good.
    ///
    /// # Errors
    /// `NotFound` if a leaf is gone: the box's cgroup is.
    pub(super) fn take_over(&self, run: u64, remove: impl Fn(&HeldLeaf)) -> cgroup::Result<Option<Arc<HeldLeaf>>> {
        while let Some(leaf) = self.enter_idle(run) {
            let begun = leaf.begin();
            if let Ok(Some(before)) = begun {
                let note = Note { cpu_usec_before: before, ..Note::first(run) };
                if leaf.write_note(&note.text()).is_ok() {
                    if let Some(used) = self.lock().used.get_mut(&run) {
                        used.cpu_usec_before = before;
                    }
                    return Ok(Some(leaf));
                }
                self.lock().without_notes = true;
            }
            self.forget(run);
            begun?;
            remove(&leaf);
        }
        Ok(None)
    }

    /// Holds a leaf that was made for a run, if there is room.
    pub(super) fn hold(&self, run: u64, leaf: &Arc<HeldLeaf>) {
        let mut state = self.lock();
        if state.used.len() + state.idle.len() < HELD_MAX && !state.used.contains_key(&run) {
            state.enter(run, leaf);
        }
    }

    /// The leaf of a run, and the CPU time of earlier runs in it.
    pub(super) fn of(&self, run: u64) -> Option<(Arc<HeldLeaf>, u64)> {
        self.lock().used.get(&run).map(|used| (Arc::clone(&used.leaf), used.cpu_usec_before))
    }

    /// True if the leaf with this number in its name is held.
    pub(super) fn has(&self, number: u64) -> bool {
        let state = self.lock();
        state.used.values().map(|used| &used.leaf).chain(&state.idle).any(|leaf| leaf.number == number)
    }

    /// Whether the leaf with this number in its name may be removed as far as the table knows; `None` if it is not held. The
    /// leaf of a run that is not in flight is held no longer: no run takes it over between this answer and its removal.
    pub(super) fn release(&self, number: u64, in_flight: &impl Fn(u64) -> bool) -> Option<bool> {
        let mut state = self.lock();
        if state.idle.iter().any(|leaf| leaf.number == number) {
            return Some(false);
        }
        let run = state.used.iter().find(|(_, used)| used.leaf.number == number).map(|(run, _)| *run)?;
        let is_over = !in_flight(run);
        if is_over {
            state.used.remove(&run);
        }
        Some(is_over)
    }

    /// Says whether another run may have the leaf of this one later.
    pub(super) fn may_return(&self, run: u64, may: bool) {
        if let Some(used) = self.lock().used.get_mut(&run) {
            used.may_return = may;
        }
    }

    /// Holds the leaf of this run no longer.
    pub(super) fn forget(&self, run: u64) {
        self.lock().used.remove(&run);
    }

    /// Takes the leaf from a run that has ended. If it is fit for another run, it is idle then. `false`: it is to be
    /// removed. The caller has the leaf from [`Leaves::of`].
    pub(super) fn give_back(&self, run: u64, is_fit: bool) -> bool {
        let mut state = self.lock();
        // Without an entry another caller has done all of this.
        let Some(used) = state.used.remove(&run) else { return true };
        // Beside the table and the caller, one that is about to signal its processes may have it.
        let is_alone = Arc::strong_count(&used.leaf) <= 2;
        let stays = is_fit && is_alone && used.may_return && !state.without_notes && state.idle.len() < IDLE_MAX;
        if stays {
            state.idle.push(used.leaf);
        }
        stays
    }

    /// Holds the idle leaves no longer, and returns them.
    pub(super) fn take_idle(&self) -> Vec<Arc<HeldLeaf>> {
        std::mem::take(&mut self.lock().idle)
    }
}

impl State {
    fn enter(&mut self, run: u64, leaf: &Arc<HeldLeaf>) {
        self.used.insert(run, Use { leaf: Arc::clone(leaf), cpu_usec_before: 0, may_return: false });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_leaves_of_runs_are_runs() {
        assert_eq!(run_of_leaf(&leaf_name(17)), Some(17));
        assert_eq!(run_of_leaf("init"), None);
        assert_eq!(run_of_leaf("run-"), None);
        assert_eq!(run_of_leaf("run-1x"), None);
    }

    fn leaf_of(number: u64) -> Arc<HeldLeaf> {
        HeldLeaf::new(number, Vec::new())
    }

    #[test]
    fn the_sweep_takes_a_leaf_from_a_run_that_is_over_and_from_no_other() {
        let leaves = Leaves::default();
        leaves.hold(1, &leaf_of(1));
        assert_eq!((leaves.release(1, &|_| true), leaves.release(9, &|_| false)), (Some(false), None));
        leaves.may_return(1, true);
        let ended = leaves.of(1).unwrap();
        assert!(leaves.give_back(1, true));
        drop(ended);
        assert_eq!(leaves.release(1, &|_| false), Some(false), "idle");
        // Run 2 has the leaf of run 1 now.
        leaves.enter_idle(2).unwrap();
        assert_eq!(leaves.release(1, &|run| run == 2), Some(false));
        assert_eq!(leaves.release(1, &|_| false), Some(true));
        assert!(!leaves.has(1) && leaves.of(2).is_none());
    }

    #[test]
    fn a_leaf_goes_on_only_if_nothing_else_has_it() {
        let leaves = Leaves::default();
        for (number, fit, may, alone) in [(1, false, true, true), (2, true, false, true), (3, true, true, false)] {
            leaves.hold(number, &leaf_of(number));
            leaves.may_return(number, may);
            let ended = leaves.of(number).unwrap();
            let signalled = (!alone).then(|| leaves.of(number).unwrap());
            assert!(!leaves.give_back(number, fit), "{number}");
            drop((ended, signalled));
            assert!(!leaves.has(number));
        }
        for number in 1..=10 {
            leaves.hold(number, &leaf_of(number));
        }
        assert_eq!((1..=10).filter(|number| leaves.has(*number)).count(), HELD_MAX);
    }

    #[test]
    fn notes_are_read_as_they_were_written() {
        for told_kills in [0, 2] {
            let note = Note { run: 17, cpu_usec_before: 4711, told_kills };
            assert_eq!(Note::parse(&note.text()), Some(note));
        }
        for other in ["", "17", "17 ", "x 1", "1 2 ", "1 2 3 4"] {
            assert_eq!(Note::parse(other), None, "{other:?}");
        }
    }
}
