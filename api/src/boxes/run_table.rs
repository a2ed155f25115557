//! The runs of one box that are in flight.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::db::RunRow;
use crate::domain::RunState;

/// Time for which a client whose connection was dropped counts as the reader of its run: clients drop it just before
/// they cancel.
const JUST_LEFT: Duration = Duration::from_secs(10);

/// A run in flight.
#[derive(Debug)]
pub struct LiveRun {
    /// Number within the box.
    pub number: u64,
    /// Public id.
    pub id: String,
    /// Argument vector joined by blanks.
    pub prompt: String,
    /// Unix milliseconds.
    pub started_ms: i64,
    /// Icebox's own: not shown to the owner.
    pub hidden: bool,
    cancelled: AtomicBool,
    /// The client that streams its output.
    reader: Option<Reader>,
}

/// A client that streams the output of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamClient {
    /// The peer address of its connection, if known.
    pub address: Option<SocketAddr>,
}

#[derive(Debug)]
struct Reader {
    client: StreamClient,
    /// Time when its connection was dropped.
    left: Mutex<Option<Instant>>,
}

/// The runs in flight, and the last number assigned.
#[derive(Debug)]
pub struct RunTable {
    last: AtomicU64,
    live: Mutex<BTreeMap<u64, Arc<LiveRun>>>,
    /// Finished and recorded, but not yet reported to the init.
    unacknowledged: Mutex<Vec<u64>>,
}

impl LiveRun {
    /// A run that begins now, or began at `started_ms`.
    #[must_use]
    pub fn new(number: u64, id: String, prompt: String, started_ms: i64, hidden: bool) -> Self {
        Self { number, id, prompt, started_ms, hidden, cancelled: AtomicBool::new(false), reader: None }
    }

    /// The same run, with a client that streams its output.
    #[must_use]
    pub fn read_by(self, client: Option<StreamClient>) -> Self {
        Self { reader: client.map(|client| Reader { client, left: Mutex::default() }), ..self }
    }

    /// Records that the connection of the streaming client is gone.
    pub fn reader_left(&self) {
        if let Some(reader) = &self.reader {
            reader.left.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(Instant::now);
        }
    }

    /// The client that streams its output, or did so a moment ago.
    fn reader(&self) -> Option<StreamClient> {
        let reader = self.reader.as_ref()?;
        let left = *reader.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.is_none_or(|left| left.elapsed() < JUST_LEFT).then_some(reader.client)
    }

    /// Marks it as cancelled. Returns true if it was not cancelled before.
    pub fn cancel(&self) -> bool {
        !self.cancelled.swap(true, Ordering::SeqCst)
    }

    /// True if it was cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }

    /// Its record while it is in flight.
    #[must_use]
    pub fn row(&self, box_id: &str) -> RunRow {
        RunRow {
            box_id: box_id.to_owned(),
            number: self.number,
            id: self.id.clone(),
            state: RunState::Running,
            prompt: self.prompt.clone(),
            started_ms: self.started_ms,
            ended_ms: None,
            exit_code: None,
            cpu_ns: 0,
            memory_peak_bytes: None,
            oom_kills: 0,
            output: None,
            error_message: None,
        }
    }
}

impl RunTable {
    /// No run in flight; `last` is the highest number assigned so far.
    #[must_use]
    pub fn new(last: u64) -> Self {
        Self { last: AtomicU64::new(last), live: Mutex::default(), unacknowledged: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<LiveRun>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An unused run number of this box.
    pub fn next_number(&self) -> u64 {
        self.last.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Marks the numbers up to this one as used.
    pub fn raise(&self, number: u64) {
        self.last.fetch_max(number, Ordering::SeqCst);
    }

    /// Enters a run, unless `limit` others are in flight. Hidden runs always get in.
    pub fn enter(&self, run: Arc<LiveRun>, limit: u32) -> bool {
        let mut live = self.lock();
        if !run.hidden && live.len() >= limit as usize {
            return false;
        }
        live.insert(run.number, run);
        true
    }

    /// Removes a run that has ended.
    pub fn leave(&self, number: u64) {
        self.lock().remove(&number);
    }

    /// The runs in flight that the owner may see, oldest first.
    #[must_use]
    pub fn live(&self) -> Vec<Arc<LiveRun>> {
        self.lock().values().filter(|run| !run.hidden).map(Arc::clone).collect()
    }

    /// True if a run with this number is in flight.
    #[must_use]
    pub fn has(&self, number: u64) -> bool {
        self.lock().contains_key(&number)
    }

    /// The run in flight with this public id.
    #[must_use]
    pub fn by_id(&self, id: &str) -> Option<Arc<LiveRun>> {
        self.lock().values().find(|run| run.id == id).map(Arc::clone)
    }

    /// The run that a client means when it cancels a stream by an id of its own making, as the public clients do: the
    /// only one whose output is streamed or was a moment ago; among several, the newest of the same connection, or else
    /// of the same address.
    #[must_use]
    pub fn streamed_to(&self, address: Option<SocketAddr>) -> Option<Arc<LiveRun>> {
        let live = self.lock();
        let streams = || live.values().rev().filter(|run| !run.hidden && run.reader().is_some());
        let newest = |same: fn(SocketAddr, SocketAddr) -> bool| {
            streams().find(|run| {
                let reader = run.reader().and_then(|client| client.address);
                reader.zip(address).is_some_and(|(reader, address)| same(reader, address))
            })
        };
        let meant = match streams().count() {
            1 => streams().next(),
            _ => newest(|one, other| one == other).or_else(|| newest(|one, other| one.ip() == other.ip())),
        };
        meant.map(Arc::clone)
    }

    /// Records that the init could not be told that this run is recorded.
    pub fn keep_unacknowledged(&self, number: u64) {
        self.unacknowledged.lock().unwrap_or_else(PoisonError::into_inner).push(number);
    }

    /// The runs that are still to be reported to the init.
    pub fn take_unacknowledged(&self) -> Vec<u64> {
        std::mem::take(&mut self.unacknowledged.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(number: u64, hidden: bool) -> Arc<LiveRun> {
        Arc::new(LiveRun::new(number, format!("id-{number}"), "true".into(), 0, hidden))
    }

    #[test]
    fn numbers_are_never_given_twice() {
        let table = RunTable::new(7);
        assert_eq!(table.next_number(), 8);
        table.raise(20);
        table.raise(3);
        assert_eq!(table.next_number(), 21);
    }

    #[test]
    fn a_cancel_by_a_made_up_id_means_the_stream_of_that_client() {
        let at = |text: &str| text.parse::<SocketAddr>().ok();
        let table = RunTable::new(0);
        let stream = |number, address: &str| {
            let run = LiveRun::new(number, format!("id-{number}"), "true".into(), 0, false);
            let run = Arc::new(run.read_by(Some(StreamClient { address: at(address) })));
            assert!(table.enter(Arc::clone(&run), 9));
            run
        };
        assert!(table.enter(run(1, false), 9));
        let meant = |address: &str| table.streamed_to(at(address)).map(|run| run.number);
        assert_eq!(meant("10.0.0.1:1"), None);
        let first = stream(2, "10.0.0.1:1");
        assert_eq!((meant("10.0.0.1:1"), meant("10.9.9.9:9")), (Some(2), Some(2)));
        stream(3, "10.0.0.1:2");
        stream(4, "10.0.0.2:1");
        assert_eq!((meant("10.0.0.1:1"), meant("10.0.0.1:7"), meant("10.9.9.9:9")), (Some(2), Some(3), None));
        first.reader_left();
        assert_eq!(meant("10.0.0.1:1"), Some(2), "it has left just now");
    }

    #[test]
    fn runs_in_flight_are_limited_and_hidden_ones_stay_hidden() {
        let table = RunTable::new(0);
        assert!(table.enter(run(1, false), 2));
        assert!(table.enter(run(2, false), 2));
        assert!(!table.enter(run(3, false), 2));
        assert!(table.enter(run(4, true), 2));
        assert_eq!(table.live().len(), 2);
        assert!(table.by_id("id-2").is_some_and(|run| run.cancel() && !run.cancel()));
        table.leave(2);
        assert!(table.by_id("id-2").is_none());
    }
}
