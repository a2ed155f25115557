//! Records of runs in flight: a run that lasts gets one before its end, a short one only the final one.
//!
//! One task watches all runs, so that a short run costs no timer. The task exists while a watched run is in flight.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;

use crate::boxes::{Entry, LiveRun};
use crate::db::Db;

/// A run that lives longer than this gets a record before its end.
const RECORD_AFTER: Duration = Duration::from_millis(300);

/// The watched runs, oldest first.
#[derive(Debug, Default)]
pub(super) struct Lasting(Mutex<VecDeque<Watched>>);

#[derive(Debug)]
struct Watched {
    due: Instant,
    entry: Arc<Entry>,
    /// Gone when the run has ended.
    run: Weak<LiveRun>,
}

/// A run in flight that is due.
type Due = (Arc<Entry>, Arc<LiveRun>);

impl Lasting {
    /// Watches a run that has just started.
    pub(super) fn watch(self: &Arc<Self>, db: &Db, entry: &Arc<Entry>, run: &Arc<LiveRun>) {
        let watched =
            Watched { due: Instant::now() + RECORD_AFTER, entry: Arc::clone(entry), run: Arc::downgrade(run) };
        let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        queue.push_back(watched);
        if queue.len() == 1 {
            tokio::spawn(record_due(Arc::clone(self), db.clone()));
        }
    }

    /// Takes out the runs that have ended, and those that are due and have not. Returns the latter, and when the next
    /// one is due. With `None` the queue is empty, and the next run to be watched finds it so.
    fn take_due(&self) -> (Vec<Due>, Option<Instant>) {
        let now = Instant::now();
        let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut due = Vec::new();
        while let Some(first) = queue.front() {
            let live = first.run.upgrade();
            if live.is_some() && first.due > now {
                return (due, Some(first.due));
            }
            let first = queue.pop_front();
            due.extend(first.zip(live).map(|(watched, run)| (watched.entry, run)));
        }
        (due, None)
    }
}

async fn record_due(lasting: Arc<Lasting>, db: Db) {
    let mut next = Some(Instant::now() + RECORD_AFTER);
    while let Some(at) = next {
        tokio::time::sleep_until(at).await;
        let (due, later) = lasting.take_due();
        for (entry, run) in due {
            if entry.runs.has(run.number) {
                db.run_started(run.row(&entry.id));
            }
        }
        next = later;
    }
}
