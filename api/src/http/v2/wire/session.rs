//! Frames of the interactive session (`GET …/exec-session`, WebSocket, JSON text messages).

use serde::{Deserialize, Serialize};

/// Client to server. The server ignores unknown frames.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ClientFrame {
    /// First frame, once.
    Start(Start),
    /// Bytes for standard input.
    Stdin {
        /// Base64.
        data: String,
    },
    /// End of standard input.
    StdinClose,
    /// New size of the terminal.
    Resize {
        /// Lines.
        rows: u16,
        /// Columns.
        cols: u16,
    },
    /// A signal for the whole process tree.
    Signal {
        /// Upper case, without `SIG`.
        signal: String,
    },
    /// TERM now, KILL after the grace time. Only the first one counts.
    Terminate {
        /// Milliseconds.
        #[serde(default, rename = "graceMs", skip_serializing_if = "Option::is_none")]
        grace_ms: Option<u64>,
    },
}

/// The program to start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Start {
    /// Argument vector; wins over `cmd`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub argv: Option<Vec<String>>,
    /// A shell command, run by `bash -lc`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmd: Option<String>,
    /// With a terminal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tty: Option<bool>,
    /// Absolute working directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Lines of the terminal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows: Option<u16>,
    /// Columns of the terminal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cols: Option<u16>,
    /// `K=V` each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<Vec<String>>,
}

/// Server to client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerFrame {
    /// First frame.
    Started {
        /// Process id inside the box, greater than 0.
        pid: i32,
        /// Id of the run.
        #[serde(rename = "execId")]
        exec_id: String,
    },
    /// Bytes of standard output, or of the terminal.
    Stdout {
        /// Base64.
        data: String,
    },
    /// Bytes of standard error.
    Stderr {
        /// Base64.
        data: String,
    },
    /// Last frame.
    Exit {
        /// The exit code; 128 + n after signal n.
        code: i32,
    },
    /// The session cannot continue.
    Error {
        /// Reason.
        message: String,
        /// The exit code that a shell gives, if there is no such program (127) or it cannot be executed (126).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code: Option<i32>,
    },
}
