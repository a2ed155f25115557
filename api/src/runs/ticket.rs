//! A run in flight, as held by the task that reads its output, and its end.

use std::sync::Arc;

use icebox_shim::handle::{Exit, RunEvents};

use super::service::Runs;
use crate::boxes::{Entry, LiveRun, Work};
use crate::clock;
use crate::domain::RunState;

/// Most bytes kept of each output stream for an answer at the end; the rest is read and dropped.
pub const EXEC_OUTPUT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A run in flight. Dropping it takes the run out of the box's table.
#[derive(Debug)]
pub struct Ticket {
    pub(super) runs: Runs,
    pub(super) entry: Arc<Entry>,
    pub(super) run: Arc<LiveRun>,
    pub(super) work: Option<Work>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.entry.runs.leave(self.run.number);
    }
}

impl Ticket {
    /// The box the run is in.
    #[must_use]
    pub fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }

    /// Public id of the run.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.run.id
    }

    /// Number of the run.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.run.number
    }
}

/// The end of a run, before its usage is read.
#[derive(Debug)]
pub struct Ended {
    /// Its exit, or the reason why it is unknown.
    pub exit: Result<Exit, icebox_shim::Error>,
    /// The end of its output.
    pub tail: Vec<u8>,
    /// Unix milliseconds.
    pub ended_ms: i64,
    /// Its connection, read to the exit; `None` for a run that never started and has no cgroup of its own.
    pub events: Option<RunEvents>,
    /// Some of its output was dropped.
    pub truncated: bool,
}

/// The end of a run, with its usage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// 128 + n after signal n.
    pub exit_code: i32,
    /// State as recorded.
    pub state: RunState,
    /// CPU time of the run and its descendants.
    pub cpu_ns: u64,
    /// Reason of its failure, beyond the exit code.
    pub error_message: Option<String>,
    /// Text about its processes that the kernel killed for want of memory.
    pub out_of_memory: Option<String>,
    /// Its time limit has passed.
    pub timed_out: bool,
    /// Its box stopped under it.
    pub lost: bool,
}

/// An end at this moment.
#[must_use]
pub fn ended_now(events: RunEvents, exit: Result<Exit, icebox_shim::Error>, tail: Vec<u8>) -> Ended {
    Ended { exit, tail, ended_ms: clock::unix_ms(), events: Some(events), truncated: false }
}
