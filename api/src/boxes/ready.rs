//! Ready boxes: started and frozen before a client asks for one.
//!
//! A ready box has all that a new box has (disk, cgroup, processes, addresses, a link that is closed) except a record: its id
//! and uid range are reserved, as those of any box that is being made. A creation takes it and writes the record in place of
//! the reservation, in one transaction. So after a crash it is a box with a record, or the remains of a creation, which the
//! next start removes. No command has run in it, and one that a tenant had never comes back.
//!
//! Owns: the boxes that are held, and when more may be made: one at a time, and only while no creation is under way or has
//! just been. Leaves out: how one is made and taken (`ready_boxes`).

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::started::Started;
use crate::domain::{BoxSize, Reservation};

/// Time without a creation after which a ready box may be made.
const QUIET: Duration = Duration::from_millis(100);
/// The clock of a box begins at its start. A ready box of this age is replaced by a new one.
pub(super) const AGE_MAX: Duration = Duration::from_secs(600);

/// What creations ask for: the id of an image, and a size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) image: String,
    pub(super) size: BoxSize,
}

/// A started box without a record.
#[derive(Debug)]
pub(super) struct ReadyBox {
    pub(super) reservation: Reservation,
    pub(super) kind: Kind,
    pub(super) started: Started,
    /// Bytes that its disk occupies.
    pub(super) storage: Option<u64>,
    pub(super) made: Instant,
}

/// The ready boxes of a daemon.
#[derive(Debug, Default)]
pub(super) struct ReadyBoxes {
    state: Mutex<State>,
    /// Notified when a box has left, and when the last creation has ended.
    changed: Notify,
    quiet: Notify,
    /// Held while a box is made; true once the daemon stops.
    pub(super) making: tokio::sync::Mutex<bool>,
}

#[derive(Debug, Default)]
struct State {
    held: Vec<(ReadyBox, AbortHandle)>,
    /// Creations under way.
    creating: usize,
    /// End of the last creation.
    last: Option<Instant>,
}

impl ReadyBoxes {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds a box. `watch` ends with its stay.
    pub(super) fn hold(&self, ready: ReadyBox, watch: AbortHandle) {
        self.lock().held.push((ready, watch));
    }

    /// Takes the youngest box of a kind.
    pub(super) fn take(&self, kind: &Kind) -> Option<ReadyBox> {
        self.take_where(|ready| ready.kind == *kind)
    }

    /// Takes the box with this id.
    pub(super) fn take_id(&self, id: &str) -> Option<ReadyBox> {
        self.take_where(|ready| ready.reservation.box_id == id)
    }

    fn take_where(&self, wanted: impl Fn(&ReadyBox) -> bool) -> Option<ReadyBox> {
        let mut state = self.lock();
        let at = state.held.iter().rposition(|(ready, _)| wanted(ready))?;
        let (ready, watch) = state.held.remove(at);
        drop(state);
        watch.abort();
        self.changed.notify_one();
        Some(ready)
    }

    /// Takes the boxes that are too old or of no kind that is wanted.
    pub(super) fn take_unwanted(&self, wanted: &[(Kind, usize)]) -> Vec<ReadyBox> {
        let stays =
            |ready: &ReadyBox| ready.made.elapsed() < AGE_MAX && wanted.iter().any(|(kind, _)| *kind == ready.kind);
        let taken: Vec<_> = self.lock().held.extract_if(.., |(ready, _)| !stays(ready)).collect();
        taken
            .into_iter()
            .map(|(ready, watch)| {
                watch.abort();
                ready
            })
            .collect()
    }

    /// The number of boxes of a kind that are not too old.
    pub(super) fn young(&self, kind: &Kind) -> usize {
        let is_young = |ready: &ReadyBox| ready.kind == *kind && ready.made.elapsed() < AGE_MAX;
        self.lock().held.iter().filter(|(ready, _)| is_young(ready)).count()
    }

    /// The kinds of all boxes that are held.
    pub(super) fn kinds(&self) -> Vec<Kind> {
        self.lock().held.iter().map(|(ready, _)| ready.kind.clone()).collect()
    }

    /// The images of all boxes that are held.
    pub(super) fn images(&self) -> BTreeSet<String> {
        self.kinds().into_iter().map(|kind| kind.image).collect()
    }

    /// A creation is under way until the value is dropped.
    pub(super) fn creation(self: &Arc<Self>) -> Creation {
        self.lock().creating += 1;
        Creation(Arc::clone(self))
    }

    /// Returns when no creation has been under way for [`QUIET`].
    pub(super) async fn quiet(&self) {
        loop {
            let (busy, last) = {
                let state = self.lock();
                (state.creating > 0, state.last)
            };
            let left = last.map_or(Duration::ZERO, |last| QUIET.saturating_sub(last.elapsed()));
            if busy {
                self.quiet.notified().await;
            } else if left.is_zero() {
                return;
            } else {
                tokio::time::sleep(left).await;
            }
        }
    }

    /// Returns when a box has left.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }
}

/// A creation under way.
#[derive(Debug)]
pub(super) struct Creation(Arc<ReadyBoxes>);

impl Drop for Creation {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.creating -= 1;
        state.last = Some(Instant::now());
        if state.creating == 0 {
            drop(state);
            self.0.quiet.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_box_is_made_ready_while_boxes_are_created() {
        let boxes: Arc<ReadyBoxes> = Arc::default();
        boxes.quiet().await;
        let (one, two) = (boxes.creation(), boxes.creation());
        let mut quiet = Box::pin(boxes.quiet());
        assert!(futures::poll!(&mut quiet).is_pending());
        drop(one);
        assert!(futures::poll!(&mut quiet).is_pending(), "another one is under way");
        drop(two);
        assert!(futures::poll!(&mut quiet).is_pending(), "the next one may come at once");
    }
}
