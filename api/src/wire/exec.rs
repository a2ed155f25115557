//! Commands, code, their records and the log of a box.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of `POST …/exec` and `POST …/exec-stream`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExecBody {
    /// The argument vector. No shell is put in front.
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
    /// TypeScript, by whatever runner the box has.
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
    /// Output beyond the limit was dropped (our extension; absent when nothing was).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// CPU time of the command and what it started (our extension).
    #[serde(default)]
    pub cpu_ns: u64,
}

/// Data of the `exit` trailer of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExitTrailer {
    /// The exit code; 128 + n after signal n.
    pub exit_code: i32,
    /// CPU time of the command and what it started.
    pub cpu_ns: u64,
}

/// Who a run belongs to.
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
    /// Still going.
    Running,
    /// Ended with exit code 0.
    Completed,
    /// Ended otherwise.
    Failed,
    /// Stopped by a cancel request.
    Cancelled,
}

impl RunState {
    /// The word on the wire and in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Reads [`Self::as_str`] back; what is unknown counts as failed.
    #[must_use]
    pub fn parse(word: &str) -> Self {
        match word {
            "running" => Self::Running,
            "completed" => Self::Completed,
            "cancelled" => Self::Cancelled,
            _ => Self::Failed,
        }
    }
}

/// One run, as `GET …/runs` lists it.
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
    /// CPU time of the run and what it started.
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
    /// Most memory used at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_peak_bytes: Option<u64>,
    /// Exit code (our extension).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The end of the output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// Why it failed, beyond its exit code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
}

/// Answer of `GET …/runs`, newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Runs {
    /// The runs.
    pub runs: Vec<BoxRunData>,
}

/// How serious a log entry is.
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

/// Where a log entry comes from.
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
    /// How serious.
    pub level: LogLevel,
    /// From whom.
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
