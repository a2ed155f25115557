//! The JSON messages: operations, answers, errors and the plain records they carry.
//!
//! Invariant: every message has a bounded size, since it travels in one frame; lists travel as items.
//! Leaves out: the meaning of the operations (the init) and their blocking or asynchronous transport (init, handle).

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{PAYLOAD_BYTES_MAX, VERSION};
use crate::error::{Error, ErrorKind, ExecFailure, Reported};

/// A message with the protocol's version: the first frame of each direction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope<T> {
    /// [`VERSION`].
    pub v: u32,
    /// The message.
    pub m: T,
}

impl<T> Envelope<T> {
    /// The message with this build's version.
    pub fn new(message: T) -> Self {
        Self { v: VERSION, m: message }
    }
}

/// A client's request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Operation {
    /// Return the init's version and pid.
    Hello,
    /// Start a run and stay attached to it.
    Exec(ExecRequest),
    /// Attach to a run: tail, then live.
    Attach {
        /// The run.
        run: u64,
    },
    /// List the runs that live or were not acknowledged.
    Runs,
    /// Forget a finished run.
    Ack {
        /// The run.
        run: u64,
    },
    /// Send a signal to a run.
    Signal {
        /// The run.
        run: u64,
        /// The signal and its scope.
        message: SignalMessage,
    },
    /// Read a file.
    FileRead {
        /// Absolute path.
        path: String,
        /// Offset and length; the whole file if absent.
        range: Option<(u64, u64)>,
    },
    /// Write a file: data frames follow, then `End`.
    FileWrite {
        /// Absolute path.
        path: String,
    },
    /// List a directory, or one file.
    FileList {
        /// Absolute path.
        path: String,
    },
    /// Describe a file.
    FileStat {
        /// Absolute path.
        path: String,
        /// Follow a final symbolic link.
        follow: bool,
    },
    /// Make a directory.
    FileMkdir {
        /// Absolute path.
        path: String,
        /// As `mkdir -p`.
        parents: bool,
    },
    /// Rename a file or directory.
    FileRename {
        /// Absolute path.
        from: String,
        /// Absolute path.
        to: String,
    },
    /// Remove a file, or a directory with everything in it.
    FileRemove {
        /// Absolute path.
        path: String,
        /// Required for directories.
        recursive: bool,
    },
}

/// The init's answer to an operation that went well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Answer {
    /// Done, nothing to tell.
    Done,
    /// To `Hello`.
    Hello(Hello),
    /// To `Exec` and `Attach`; output and exit follow.
    Started(Started),
    /// To `Runs` and `FileList`; items follow, then `End`.
    List,
    /// To `FileRead`; data follows, then `End`.
    File {
        /// The file's size when it was opened.
        size: u64,
    },
    /// To `FileStat`.
    Stat(FileStat),
}

/// An error on its way through the socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireError {
    /// Its kind.
    pub kind: ErrorKind,
    /// The step that failed.
    pub step: String,
    /// The subject of the step.
    pub subject: String,
    /// Why it failed; may be empty.
    pub cause: String,
    /// The part of starting a program that failed, if that is what failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec: Option<ExecFailure>,
}

/// No text of an error is longer than this on the wire.
const ERROR_TEXT_BYTES_MAX: usize = 4096;

fn clipped(text: &str) -> String {
    let mut end = text.len().min(ERROR_TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}

impl From<&Error> for WireError {
    fn from(error: &Error) -> Self {
        Self {
            kind: error.kind(),
            step: clipped(error.step()),
            subject: clipped(error.subject()),
            cause: clipped(&error.causes()),
            exec: error.exec_failure(),
        }
    }
}

impl From<WireError> for Error {
    fn from(wire: WireError) -> Self {
        let error = Error::new(wire.kind, wire.step, wire.subject).in_exec(wire.exec);
        if wire.cause.is_empty() { error } else { error.because(Reported(wire.cause)) }
    }
}

/// Answer to `Hello`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The init's package version.
    pub version: String,
    /// The init's pid as it sees it: 1 in a box.
    pub pid: i32,
    /// Runs that live or were not acknowledged.
    pub runs: usize,
    /// A process holds the lock that keeps the box awake.
    #[serde(default)]
    pub kept: bool,
}

/// A run has started, or is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// The run.
    pub run: u64,
    /// Pid of its direct process inside the box.
    pub pid: i32,
    /// The number of bytes of standard input that may be sent at first (see `Credit`).
    pub stdin_credit: u32,
    /// The init finds the run of a process in a leaf of any name. An earlier init goes by the name.
    #[serde(default)]
    pub finds_leaves: bool,
}

/// A terminal's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Winsize {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

/// Payload of `Resize`.
pub type Resize = Winsize;

/// A run to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// The run's number, given by the caller, never used twice in a box's life.
    pub run: u64,
    /// Program and arguments; no shell is involved.
    pub argv: Vec<String>,
    /// Absolute working directory.
    pub cwd: String,
    /// Added to the login environment of the user.
    pub env: Vec<(String, String)>,
    /// `name`, `uid`, or `uid:gid`; `boxuser` if absent.
    pub user: Option<String>,
    /// Standard input is a pipe (else it is empty).
    pub stdin: bool,
    /// Run on a terminal of this size.
    pub tty: Option<Winsize>,
    /// End the run when its last client goes away.
    pub kill_on_disconnect: bool,
    /// End the run after this time.
    pub timeout_ms: Option<u64>,
    /// Opaque, returned in [`RunStatus`].
    pub label: String,
}

/// The recipients of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The run's direct process.
    Leader,
    /// Every process of the run.
    Tree,
}

/// Payload of `Signal`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalMessage {
    /// The signal's number.
    pub signal: i32,
    /// Its recipients.
    pub scope: Scope,
}

/// The exit status of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// The exit of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit status of its direct process.
    pub status: ExitStatus,
    /// It was ended because its time was up.
    pub timed_out: bool,
}

impl Exit {
    /// The exit code as a shell tells it: 128 + n for a process ended by signal n.
    #[must_use]
    pub fn code(&self) -> i32 {
        match self.status {
            ExitStatus::Code(code) => code,
            ExitStatus::Signal(signal) => 128_i32.saturating_add(signal),
        }
    }
}

/// A run as the init knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunStatus {
    /// The run's number.
    pub run: u64,
    /// As in the request.
    pub label: String,
    /// Program and arguments, cut after some kilobytes.
    pub argv: Vec<String>,
    /// Pid of the direct process inside the box.
    pub pid: i32,
    /// Wall clock of the start.
    pub started_unix_ms: u64,
    /// Its exit, if it has ended.
    pub exit: Option<Exit>,
    /// Wall clock of the end.
    pub ended_unix_ms: Option<u64>,
}

/// The type of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// FIFO, socket or device.
    Other,
}

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// The name, without separators, as [`names`](crate::names) writes it.
    pub name: String,
    /// The absolute path.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
    /// It is a directory (not: a link to one).
    pub is_dir: bool,
    /// Time of the last change of its content: seconds and nanoseconds since the epoch.
    pub modified: (i64, u32),
}

/// The attributes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStat {
    /// Its type.
    pub kind: EntryKind,
    /// Size in bytes.
    pub size: u64,
    /// Time of the last change of its content: seconds and nanoseconds since the epoch.
    pub modified: (i64, u32),
    /// Inode number.
    pub inode: u64,
    /// Permission bits.
    pub mode: u32,
}

/// One item of a list answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Entry {
    /// Of `Runs`.
    Run(RunStatus),
    /// Of `FileList`: several at once.
    Files(Vec<FileEntry>),
}

/// The JSON payload of a message.
///
/// # Errors
/// `TooLarge` if it does not fit into a frame.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, Error> {
    let bytes =
        serde_json::to_vec(message).map_err(|e| Error::new(ErrorKind::Internal, "encode message", "").because(e))?;
    if bytes.len() > PAYLOAD_BYTES_MAX {
        return Err(Error::new(ErrorKind::TooLarge, "encode message", format_args!("{} bytes", bytes.len())));
    }
    Ok(bytes)
}

/// The message in a JSON payload.
///
/// # Errors
/// `InvalidInput` if it is not one.
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(payload).map_err(|e| Error::new(ErrorKind::InvalidInput, "decode message", "").because(e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_error_crosses_the_wire_with_kind_and_cause() {
        let cause = std::io::Error::from_raw_os_error(libc::ENOENT);
        let error = Error::io("open file", "/nope", cause);
        let back = Error::from(WireError::from(&error));
        assert_eq!(back.kind(), ErrorKind::NotFound);
        assert_eq!(back.report(), error.report());
        assert!(!back.to_string().contains("No such file"));
    }

    #[test]
    fn long_error_texts_are_clipped_between_characters() {
        let error = Error::new(ErrorKind::Internal, "é".repeat(5000), "");
        let wire = WireError::from(&error);
        assert!(wire.step.len() <= ERROR_TEXT_BYTES_MAX);
        assert!(wire.step.chars().all(|c| c == 'é'));
    }

    #[test]
    fn a_message_beyond_a_frame_is_refused() {
        let request = "x".repeat(PAYLOAD_BYTES_MAX);
        assert_eq!(encode(&request).unwrap_err().kind(), ErrorKind::TooLarge);
    }

    #[test]
    fn deep_json_is_refused() {
        let deep = "[".repeat(100_000);
        assert!(decode::<Envelope<Operation>>(deep.as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn random_payloads_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            let _ = decode::<Envelope<Operation>>(&bytes);
            let _ = decode::<Envelope<Result<Answer, WireError>>>(&bytes);
            let _ = decode::<Entry>(&bytes);
            let _ = decode::<Exit>(&bytes);
        }

        #[test]
        fn exec_requests_round_trip(
            argv in prop::collection::vec(".*", 0..5),
            env in prop::collection::vec((".*", ".*"), 0..5),
            cwd in ".*",
            run in any::<u64>(),
            tty in prop::option::of((any::<u16>(), any::<u16>())),
        ) {
            let request = Envelope::new(Operation::Exec(ExecRequest {
                run, argv, cwd, env, user: None, stdin: true,
                tty: tty.map(|(rows, cols)| Winsize { rows, cols }),
                kill_on_disconnect: false, timeout_ms: Some(5), label: String::new(),
            }));
            prop_assert_eq!(&decode::<Envelope<Operation>>(&encode(&request).unwrap()).unwrap(), &request);
        }
    }
}
