//! The error of xtask: what was being done, to what, and why it failed; plus one piece of advice where there is one.

use std::fmt;
use std::io;
use std::process::ExitStatus;

/// What the tasks return.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something failed.
#[derive(Debug)]
pub(crate) enum Cause {
    /// A system call said no.
    Io(io::Error),
    /// A program ended badly.
    Program {
        /// How it ended.
        status: ExitStatus,
        /// The end of what it printed, when it did not print to the terminal itself.
        output: String,
    },
    /// What was read is not what it should be.
    Unexpected(String),
    /// It took longer than it may.
    Late {
        /// The limit in seconds.
        seconds: u64,
    },
    /// The machine or the call is not as it must be; the text says how to change that.
    Refused(String),
    /// So many tests failed, or were skipped without reason.
    Tests,
}

/// A failed step of a task.
#[derive(Debug)]
pub(crate) struct Error {
    doing: &'static str,
    subject: String,
    cause: Cause,
}

impl Error {
    /// `doing` reads like "start" or "wait for", `subject` like a path or a name.
    pub(crate) fn new(doing: &'static str, subject: impl Into<String>, cause: Cause) -> Self {
        Error { doing, subject: subject.into(), cause }
    }

    /// An error that tells what to do instead.
    pub(crate) fn refused(doing: &'static str, subject: impl Into<String>, advice: impl Into<String>) -> Self {
        Error::new(doing, subject, Cause::Refused(advice.into()))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.doing, self.subject)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Io(error) => error.fmt(f),
            Cause::Program { status, output } if output.trim().is_empty() => write!(f, "it ended with {status}"),
            Cause::Program { status, output } => write!(f, "it ended with {status}:\n{}", output.trim_end()),
            Cause::Unexpected(what) | Cause::Refused(what) => f.write_str(what),
            Cause::Late { seconds } => write!(f, "it took longer than {seconds} s"),
            Cause::Tests => f.write_str("see above"),
        }
    }
}

impl std::error::Error for Cause {}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.cause)
    }
}

/// Names what was being done when a system call failed.
pub(crate) trait While<T> {
    /// See [`Error::new`].
    fn or_fail(self, doing: &'static str, subject: impl Into<String>) -> Result<T>;
}

impl<T> While<T> for io::Result<T> {
    fn or_fail(self, doing: &'static str, subject: impl Into<String>) -> Result<T> {
        self.map_err(|error| Error::new(doing, subject, Cause::Io(error)))
    }
}
