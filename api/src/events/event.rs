//! One event.

use std::time::Duration;

use crate::clock;
use crate::domain::RunState;

/// A fact about a box, and its time.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Id of the box.
    pub box_id: String,
    /// The account that owns the box.
    pub account_id: String,
    /// Unix milliseconds.
    pub at_ms: i64,
    /// The fact.
    pub fact: Fact,
}

/// What has happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Fact {
    /// The box was created and started.
    Created {
        /// Time from the request until the box accepts work.
        took: Duration,
        /// The part of it that the start took.
        launch: Duration,
        /// Messages for its owner.
        warnings: Vec<String>,
    },
    /// The box was started again on its disk.
    Started {
        /// Time of the start.
        launch: Duration,
        /// Messages for its owner.
        warnings: Vec<String>,
    },
    /// The box fell asleep.
    Frozen {
        /// Its idle time.
        idle_seconds: u64,
        /// Time of the freeze.
        took: Duration,
    },
    /// Its owner put it to sleep.
    Paused {
        /// Time of the freeze.
        took: Duration,
    },
    /// The box was woken.
    Thawed {
        /// Time of the thaw.
        took: Duration,
    },
    /// The box has no processes any more.
    Stopped {
        /// The cause.
        cause: StopCause,
    },
    /// The box was deleted.
    Deleted,
    /// Its owner keeps it awake.
    Kept {
        /// Unix milliseconds of the end; `None` until the owner ends it.
        until_ms: Option<i64>,
    },
    /// Its owner no longer keeps it awake.
    Released,
    /// The kernel killed processes of a run because the memory of the box was used up.
    OutOfMemory {
        /// The run; `None` if there is no record of it (any more).
        run: Option<NamedRun>,
        /// Number of killed processes.
        processes: u64,
        /// They were killed after the end of the run, in the background.
        background: bool,
    },
    /// A snapshot of its disk was taken.
    Snapshotted {
        /// Id of the snapshot.
        snapshot_id: String,
        /// Its name.
        name: String,
        /// Time for which the processes of the box stood still.
        stood: Duration,
    },
    /// Its last command was taken back: its disk is what it was before, and it has started again.
    Undone {
        /// The command on one line.
        command: String,
        /// Unix milliseconds of the disk.
        taken_ms: i64,
    },
    /// The init command was started.
    InitCommandStarted,
    /// A message for the owner.
    Warning {
        /// The message.
        text: String,
    },
    /// A command was started.
    RunStarted {
        /// Public id.
        run_id: String,
        /// The command on one line.
        command: String,
    },
    /// A command has ended.
    RunEnded(Box<RunEnd>),
    /// The box was refused a connection or a name. The first refusal of its kind is an event.
    Denied {
        /// The refusal.
        text: String,
    },
    /// The network policy was changed.
    PolicyChanged {
        /// Mode of the policy.
        mode: String,
    },
    /// The box could not be connected.
    NetworkLost {
        /// The error.
        reason: String,
    },
    /// The box's counters at a change of its state, as they are in the ledger.
    Metered {
        /// The change: `freeze`, `exit` or `delete`.
        reason: &'static str,
        /// CPU time of the box since its creation.
        cpu_usec: u64,
        /// Bytes that its disk occupies; `None` if they could not be measured.
        storage_bytes: Option<u64>,
    },
}

/// A run, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedRun {
    /// Public id.
    pub run_id: String,
    /// The command on one line.
    pub command: String,
}

/// Cause of a box's stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopCause {
    /// Its init has ended without a request.
    InitKilled,
    /// Its owner restarts it.
    Restart,
}

/// The end of a command.
#[derive(Debug, Clone, PartialEq)]
pub struct RunEnd {
    /// Public id.
    pub run_id: String,
    /// The command on one line.
    pub command: String,
    /// State as recorded.
    pub state: RunState,
    /// 128 + n after signal n; `None` if it is unknown.
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Wall time.
    pub duration_ms: i64,
    /// CPU time of the run and its descendants.
    pub cpu_ns: u64,
    /// Most memory used at once; 0 if it is unknown.
    pub memory_peak_bytes: u64,
    /// Processes that the kernel killed for want of memory.
    pub oom_kills: u64,
    /// Reason of its failure, beyond the exit code.
    pub message: Option<String>,
    /// Icebox's own: not shown to subscribers.
    pub hidden: bool,
}

/// The names of all kinds of events.
pub const KINDS: [&str; 20] = [
    "box.created",
    "box.started",
    "box.frozen",
    "box.paused",
    "box.thawed",
    "box.stopped",
    "box.deleted",
    "box.kept",
    "box.released",
    "box.out_of_memory",
    "box.snapshotted",
    "box.undone",
    "box.init_command_started",
    "box.warning",
    "run.started",
    "run.ended",
    "network.denied",
    "network.policy_changed",
    "network.lost",
    "ledger.metered",
];

impl Event {
    /// A fact of this moment.
    #[must_use]
    pub fn now(box_id: &str, account_id: &str, fact: Fact) -> Self {
        Self { box_id: box_id.to_owned(), account_id: account_id.to_owned(), at_ms: clock::unix_ms(), fact }
    }

    /// True if only sinks get it.
    pub(super) fn is_internal(&self) -> bool {
        matches!(&self.fact, Fact::RunEnded(end) if end.hidden)
    }
}

impl Fact {
    /// Its name, one of [`KINDS`].
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Created { .. } => "box.created",
            Self::Started { .. } => "box.started",
            Self::Frozen { .. } => "box.frozen",
            Self::Paused { .. } => "box.paused",
            Self::Thawed { .. } => "box.thawed",
            Self::Stopped { .. } => "box.stopped",
            Self::Deleted => "box.deleted",
            Self::Kept { .. } => "box.kept",
            Self::Released => "box.released",
            Self::OutOfMemory { .. } => "box.out_of_memory",
            Self::Snapshotted { .. } => "box.snapshotted",
            Self::Undone { .. } => "box.undone",
            Self::InitCommandStarted => "box.init_command_started",
            Self::Warning { .. } => "box.warning",
            Self::RunStarted { .. } => "run.started",
            Self::RunEnded(_) => "run.ended",
            Self::Denied { .. } => "network.denied",
            Self::PolicyChanged { .. } => "network.policy_changed",
            Self::NetworkLost { .. } => "network.lost",
            Self::Metered { .. } => "ledger.metered",
        }
    }

    /// True if its log lines are written in the same commit as the change itself, so that no sink writes them.
    #[must_use]
    pub fn is_logged_with_its_change(&self) -> bool {
        matches!(self, Self::Created { .. } | Self::Started { .. } | Self::RunEnded(_))
    }
}
