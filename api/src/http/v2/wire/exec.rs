//! Commands, code, their records and the log of a box.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::clock;
use crate::db::RunRow;
use crate::domain;
use crate::ledger::cpu_micro_dollars;

/// Body of `POST …/exec` and `POST …/exec-stream`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExecBody {
    /// The argument vector. It is executed without a shell.
    pub command: Vec<String>,
    /// Working directory, relative to `/workspace/home` or absolute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<String>,
}

/// A language of `POST …/code`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Language {
    /// JavaScript, by node.
    Js,
    /// TypeScript, by the first runner that the box has.
    Ts,
    /// Python 3.
    Python,
}

/// Body of `POST …/code` and `POST …/code-stream`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CodeBody {
    /// The program text.
    pub code: String,
    /// Its language.
    pub language: Language,
    /// Milliseconds after which the program is killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<f64>,
    /// Working directory, relative to `/workspace/home` or absolute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<String>,
}

/// Answer of `POST …/exec` and `POST …/code`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExecResult {
    /// The exit code; 128 + n after signal n.
    pub exit_code: i32,
    /// Standard output.
    pub output: String,
    /// Standard error; absent when it is empty, because old clients take any `error` for the result.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
    /// Output beyond the limit was dropped (our extension; absent otherwise).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// CPU time of the command and its descendants (our extension).
    #[serde(default)]
    pub cpu_ns: u64,
}

/// Data of the `exit` trailer of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExitTrailer {
    /// The exit code; 128 + n after signal n.
    pub exit_code: i32,
    /// CPU time of the command and its descendants.
    pub cpu_ns: u64,
}

/// Kind of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum RunType {
    /// An agent run.
    Agent,
    /// A command, code or a session.
    Shell,
}

/// State of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    /// In progress.
    Running,
    /// Ended with exit code 0.
    Completed,
    /// Ended with another exit code or an error.
    Failed,
    /// Stopped by a cancel request.
    Cancelled,
}

/// One run, as `GET …/runs` lists it: exactly the keys that the clients know. `/v1` has more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BoxRunData {
    /// Id of the run.
    pub id: String,
    /// The box it ran in.
    pub box_id: String,
    /// The account.
    pub customer_id: String,
    /// Command or agent.
    #[serde(rename = "type")]
    pub kind: RunType,
    /// Its state.
    pub status: RunState,
    /// The argument vector joined by blanks.
    pub prompt: String,
    /// Always 0 for commands.
    pub input_tokens: u64,
    /// Always 0 for commands.
    pub output_tokens: u64,
    /// CPU time of the run and its descendants.
    pub cpu_ns: u64,
    /// Cost of the run.
    pub cost_usd: f64,
    /// Cost of its CPU time.
    pub compute_cost_usd: f64,
    /// Wall time.
    pub duration_ms: f64,
    /// Unix seconds of the start.
    pub created_at: i64,
    /// Unix seconds of the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<i64>,
}

/// Answer of `GET …/runs`, newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Runs {
    /// The runs.
    pub runs: Vec<BoxRunData>,
}

/// Level of a log entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Normal.
    Info,
    /// Noteworthy.
    Warn,
    /// Something failed.
    Error,
}

/// Source of a log entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogSource {
    /// Icebox itself.
    System,
    /// An agent.
    Agent,
    /// A request of the owner.
    User,
}

/// One line of a box's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogEntry {
    /// Unix seconds.
    pub timestamp: i64,
    /// Level.
    pub level: LogLevel,
    /// Source.
    pub source: LogSource,
    /// The text.
    pub message: String,
}

/// Answer of `GET …/logs`, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Logs {
    /// The entries.
    pub logs: Vec<LogEntry>,
}

impl From<CodeBody> for domain::Code {
    fn from(body: CodeBody) -> Self {
        let language = match body.language {
            Language::Js => domain::Language::Js,
            Language::Ts => domain::Language::Ts,
            Language::Python => domain::Language::Python,
        };
        Self { text: body.code, language, timeout_ms: body.timeout, folder: body.folder }
    }
}

impl From<domain::RunState> for RunState {
    fn from(state: domain::RunState) -> Self {
        match state {
            domain::RunState::Running => Self::Running,
            domain::RunState::Completed => Self::Completed,
            domain::RunState::Failed => Self::Failed,
            domain::RunState::Cancelled => Self::Cancelled,
        }
    }
}

impl BoxRunData {
    /// A recorded run as the clients see it.
    pub fn new(row: RunRow, account_id: &str) -> Self {
        let ended_ms = row.ended_ms.unwrap_or_else(clock::unix_ms);
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of a run and millionths of a dollar are small")]
        let (duration_ms, cost) =
            ((ended_ms - row.started_ms).max(0) as f64, cpu_micro_dollars(row.cpu_ns / 1000) as f64 / 1e6);
        Self {
            id: row.id,
            box_id: row.box_id,
            customer_id: account_id.to_owned(),
            kind: RunType::Shell,
            status: row.state.into(),
            prompt: row.prompt,
            input_tokens: 0,
            output_tokens: 0,
            cpu_ns: row.cpu_ns,
            cost_usd: cost,
            compute_cost_usd: cost,
            duration_ms,
            created_at: row.started_ms.div_euclid(1000),
            completed_at: row.ended_ms.map(|ms| ms.div_euclid(1000)),
        }
    }
}

impl From<domain::LogEntry> for LogEntry {
    fn from(entry: domain::LogEntry) -> Self {
        Self {
            timestamp: entry.written_ms.div_euclid(1000),
            level: match entry.level {
                domain::LogLevel::Info => LogLevel::Info,
                domain::LogLevel::Warn => LogLevel::Warn,
                domain::LogLevel::Error => LogLevel::Error,
            },
            source: match entry.source {
                domain::LogSource::System => LogSource::System,
                domain::LogSource::Agent => LogSource::Agent,
                domain::LogSource::User => LogSource::User,
            },
            message: entry.message,
        }
    }
}
