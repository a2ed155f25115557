//! Whether the disk of a box is to be measured.
//!
//! Invariant: the disk of a box that has rested for [`STORAGE_AFTER`] is measured once more and then not again, until the box
//! wakes or the daemon changes the disk. So a box that sleeps for long costs nothing here.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Writes of a box reach its disk image within the kernel's write-back time, also after it fell asleep: this long after
/// the last activity, disks are measured once more.
pub(super) const STORAGE_AFTER: Duration = Duration::from_secs(65);

/// Whether the disk of a box can still take up more or less space than was measured.
#[derive(Debug, Default)]
pub(super) struct DiskWatch(Mutex<Option<Rest>>);

/// A box without running processes.
#[derive(Debug)]
struct Rest {
    since: Instant,
    /// The bytes of its undo points at the last measurement, if this came after [`STORAGE_AFTER`].
    settled: Option<u64>,
}

impl DiskWatch {
    fn lock(&self) -> MutexGuard<'_, Option<Rest>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The box has fallen asleep.
    pub(super) fn rests(&self) {
        *self.lock() = Some(Rest { since: Instant::now(), settled: None });
    }

    /// The box has woken, or the daemon has changed its disk.
    pub(super) fn changes(&self) {
        *self.lock() = None;
    }

    /// True if the disk is to be measured. `points`: the bytes of the undo points, which may go while the box sleeps.
    pub(super) fn is_due(&self, awake: bool, points: u64) -> bool {
        let mut rest = self.lock();
        if awake {
            *rest = None;
            return true;
        }
        // A box that has no processes does not tell of it here.
        let rest = rest.get_or_insert_with(|| Rest { since: Instant::now(), settled: None });
        rest.settled != Some(points)
    }

    /// The disk was measured; the measurement began at that time.
    pub(super) fn measured(&self, began: Instant, points: u64) {
        if let Some(rest) = self.lock().as_mut()
            && began.saturating_duration_since(rest.since) >= STORAGE_AFTER
        {
            rest.settled = Some(points);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A measurement that began so long after the box fell asleep.
    fn measured(watch: &DiskWatch, after: Duration, points: u64) {
        let since = watch.lock().as_ref().expect("the box rests").since;
        watch.measured(since + after, points);
    }

    #[test]
    fn the_disk_of_a_box_that_rests_is_measured_until_it_can_change_no_more() {
        let watch = DiskWatch::default();
        assert!(watch.is_due(true, 0), "a box that is awake");
        watch.rests();
        assert!(watch.is_due(false, 0), "a box that has just fallen asleep");
        measured(&watch, STORAGE_AFTER - Duration::from_millis(1), 0);
        assert!(watch.is_due(false, 0), "what it wrote may be on its way");
        measured(&watch, STORAGE_AFTER, 0);
        assert!(!watch.is_due(false, 0), "a box that has slept for long");
        assert!(watch.is_due(false, 7), "its undo points have changed");
        measured(&watch, STORAGE_AFTER, 7);
        assert!(!watch.is_due(false, 7));
    }

    #[test]
    fn a_box_that_wakes_or_whose_disk_is_changed_is_measured_again() {
        let watch = DiskWatch::default();
        let settle = || {
            watch.rests();
            measured(&watch, STORAGE_AFTER, 0);
            assert!(!watch.is_due(false, 0));
        };
        settle();
        watch.changes();
        assert!(watch.is_due(false, 0), "it woke and fell asleep between two measurements");
        settle();
        assert!(watch.is_due(true, 0), "another program has thawed it");
        assert!(watch.is_due(false, 0));
        // It woke while its disk was read: the reading says nothing about what comes.
        watch.changes();
        watch.measured(Instant::now() + STORAGE_AFTER, 0);
        assert!(watch.is_due(false, 0));
    }
}
