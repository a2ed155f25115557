//! Events.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::events::{Event, Fact, StopCause};

/// One event: the data of a record of `GET /v1/events`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EventRecord {
    /// Id of the event, for `Last-Event-ID`.
    pub id: String,
    /// Id of the box.
    pub box_id: String,
    /// Id of the account that owns the box.
    pub account_id: String,
    /// Unix milliseconds.
    pub at_ms: i64,
    /// The kind and its data.
    #[serde(flatten)]
    pub fact: EventFact,
}

/// The data of a record with the name `lost`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventsLost {
    /// Id of the last event that was lost.
    pub up_to: String,
}

/// The data of a record with the name `end`, the last one of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventsEnd {
    /// The reason.
    pub reason: String,
}

/// Kind and data of an event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", content = "data")]
pub enum EventFact {
    /// The box was created and started.
    #[serde(rename = "box.created")]
    Created {
        /// Milliseconds from the request until the box accepts work.
        took_ms: f64,
        /// Messages for its owner.
        warnings: Vec<String>,
    },
    /// The box was started again on its disk.
    #[serde(rename = "box.started")]
    Started {
        /// Milliseconds of the start.
        took_ms: f64,
        /// Messages for its owner.
        warnings: Vec<String>,
    },
    /// The box fell asleep.
    #[serde(rename = "box.frozen")]
    Frozen {
        /// Its idle time.
        idle_seconds: u64,
        /// Milliseconds of the freeze.
        took_ms: f64,
    },
    /// Its owner put it to sleep.
    #[serde(rename = "box.paused")]
    Paused {
        /// Milliseconds of the freeze.
        took_ms: f64,
    },
    /// The box was woken.
    #[serde(rename = "box.thawed")]
    Thawed {
        /// Milliseconds of the thaw.
        took_ms: f64,
    },
    /// The box has no processes any more.
    #[serde(rename = "box.stopped")]
    Stopped {
        /// `init_killed`: its init has ended without a request. `restart`: its owner restarts it.
        cause: String,
    },
    /// The box was deleted.
    #[serde(rename = "box.deleted")]
    Deleted {},
    /// Its owner keeps it awake.
    #[serde(rename = "box.kept")]
    Kept {
        /// Unix milliseconds of the end; absent until the owner ends it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until_ms: Option<i64>,
    },
    /// Its owner no longer keeps it awake.
    #[serde(rename = "box.released")]
    Released {},
    /// The kernel killed processes of a run because the memory of the box was used up.
    #[serde(rename = "box.out_of_memory")]
    OutOfMemory {
        /// Id of the run. Absent if there is no record of it, as of the init command.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        run_id: Option<String>,
        /// The command on one line.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        command: Option<String>,
        /// Number of killed processes.
        processes: u64,
        /// They were killed after the end of the run, in the background.
        #[serde(default)]
        background: bool,
    },
    /// A snapshot of its disk was taken.
    #[serde(rename = "box.snapshotted")]
    Snapshotted {
        /// Id of the snapshot.
        snapshot_id: String,
        /// Its name.
        name: String,
        /// Milliseconds for which the processes of the box stood still; 0 for a box that sleeps or is stopped.
        stood_still_ms: f64,
    },
    /// Its last command was taken back: its disk is what it was before, and it has started again.
    #[serde(rename = "box.undone")]
    Undone {
        /// The command on one line.
        command: String,
        /// Unix milliseconds of the disk.
        taken_ms: i64,
    },
    /// The init command was started.
    #[serde(rename = "box.init_command_started")]
    InitCommandStarted {},
    /// A message for the owner.
    #[serde(rename = "box.warning")]
    Warning {
        /// The message.
        text: String,
    },
    /// A command was started.
    #[serde(rename = "run.started")]
    RunStarted {
        /// Id of the run.
        run_id: String,
        /// The command on one line.
        command: String,
    },
    /// A command has ended.
    #[serde(rename = "run.ended")]
    RunEnded {
        /// Id of the run.
        run_id: String,
        /// The command on one line.
        command: String,
        /// `completed`, `failed` or `cancelled`.
        status: String,
        /// Exit code; 128 + n after signal n. Absent if the box stopped under it while no daemon was running.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit_code: Option<i32>,
        /// The signal that ended it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signal: Option<i32>,
        /// Wall time in milliseconds.
        duration_ms: i64,
        /// CPU time of the command and its descendants.
        cpu_ns: u64,
        /// Processes that the kernel killed because the memory was used up.
        oom_kills: u64,
        /// Reason of its failure, beyond the exit code.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error_message: Option<String>,
    },
    /// The box was refused a connection or a name. The first refusal of its kind is an event.
    #[serde(rename = "network.denied")]
    Denied {
        /// The refusal.
        text: String,
    },
    /// The network policy was changed.
    #[serde(rename = "network.policy_changed")]
    PolicyChanged {
        /// Mode of the policy.
        mode: String,
    },
    /// The box could not be connected.
    #[serde(rename = "network.lost")]
    NetworkLost {
        /// The error.
        reason: String,
    },
    /// The counters of the box at a change of its state, as its bill has them.
    #[serde(rename = "ledger.metered")]
    Metered {
        /// The change: `freeze`, `exit` or `delete`.
        reason: String,
        /// CPU time of the box since its creation.
        cpu_usec: u64,
        /// Bytes that its disk occupies; absent if they could not be measured.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        storage_bytes: Option<u64>,
    },
}

impl EventRecord {
    /// The record of an event with this id.
    #[must_use]
    pub fn new(id: String, event: &Event) -> Self {
        let Event { box_id, account_id, at_ms, fact } = event;
        Self { id, box_id: box_id.clone(), account_id: account_id.clone(), at_ms: *at_ms, fact: fact.into() }
    }
}

fn ms(took: std::time::Duration) -> f64 {
    (took.as_secs_f64() * 1e6).round() / 1e3
}

impl From<&Fact> for EventFact {
    fn from(fact: &Fact) -> Self {
        match fact.clone() {
            Fact::Created { took, warnings, .. } => Self::Created { took_ms: ms(took), warnings },
            Fact::Started { launch, warnings } => Self::Started { took_ms: ms(launch), warnings },
            Fact::Frozen { idle_seconds, took } => Self::Frozen { idle_seconds, took_ms: ms(took) },
            Fact::Paused { took } => Self::Paused { took_ms: ms(took) },
            Fact::Thawed { took } => Self::Thawed { took_ms: ms(took) },
            Fact::Stopped { cause } => {
                let cause = match cause {
                    StopCause::InitKilled => "init_killed",
                    StopCause::Restart => "restart",
                };
                Self::Stopped { cause: cause.to_owned() }
            }
            Fact::Deleted => Self::Deleted {},
            Fact::Kept { until_ms } => Self::Kept { until_ms },
            Fact::Released => Self::Released {},
            Fact::OutOfMemory { run, processes, background } => {
                let (run_id, command) = run.map(|run| (run.run_id, run.command)).unzip();
                Self::OutOfMemory { run_id, command, processes, background }
            }
            Fact::Snapshotted { snapshot_id, name, stood } => {
                Self::Snapshotted { snapshot_id, name, stood_still_ms: ms(stood) }
            }
            Fact::Undone { command, taken_ms } => Self::Undone { command, taken_ms },
            Fact::InitCommandStarted => Self::InitCommandStarted {},
            Fact::Warning { text } => Self::Warning { text },
            Fact::RunStarted { run_id, command } => Self::RunStarted { run_id, command },
            Fact::RunEnded(end) => Self::RunEnded {
                run_id: end.run_id,
                command: end.command,
                status: end.state.as_str().to_owned(),
                exit_code: end.exit_code,
                signal: end.signal,
                duration_ms: end.duration_ms,
                cpu_ns: end.cpu_ns,
                oom_kills: end.oom_kills,
                error_message: end.message,
            },
            Fact::Denied { text } => Self::Denied { text },
            Fact::PolicyChanged { mode } => Self::PolicyChanged { mode },
            Fact::NetworkLost { reason } => Self::NetworkLost { reason },
            Fact::Metered { reason, cpu_usec, storage_bytes } => {
                Self::Metered { reason: reason.to_owned(), cpu_usec, storage_bytes }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_record_has_the_kind_of_its_fact_and_its_data() {
        for fact in [
            Fact::Deleted,
            Fact::Kept { until_ms: None },
            Fact::Thawed { took: Duration::from_micros(1500) },
            Fact::Stopped { cause: StopCause::InitKilled },
            Fact::OutOfMemory { run: None, processes: 2, background: true },
            Fact::Undone { command: "c".into(), taken_ms: 1 },
            Fact::Snapshotted { snapshot_id: "s".into(), name: "n".into(), stood: Duration::from_micros(500) },
        ] {
            let record = EventRecord::new("1-1".into(), &Event::now("b", "a", fact.clone()));
            let json = serde_json::to_value(&record).expect("JSON");
            assert_eq!(json["type"], fact.kind());
            assert!(json["data"].is_object(), "{json}");
            assert_eq!(serde_json::from_value::<EventRecord>(json).expect("readable"), record);
        }
        let thawed = EventFact::from(&Fact::Thawed { took: Duration::from_micros(1500) });
        assert_eq!(thawed, EventFact::Thawed { took_ms: 1.5 });
    }
}
