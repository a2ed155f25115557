//! The error type of this crate: operation, subject and cause.

use std::fmt;

/// A failed operation.
#[derive(Debug)]
pub struct Error {
    operation: &'static str,
    subject: String,
    cause: Box<Cause>,
}

/// The cause of a failure.
#[derive(Debug)]
pub enum Cause {
    /// The operating system refused.
    Io(std::io::Error),
    /// A stored text is not valid JSON of the expected shape.
    Json(serde_json::Error),
    /// The value is invalid; the text says what is expected.
    Invalid(&'static str),
    /// The worker thread has ended before it answered.
    WorkerEnded,
    /// The resource is used up.
    Exhausted(&'static str),
}

impl Error {
    /// An error of `operation` on `subject`.
    pub fn new(operation: &'static str, subject: impl Into<String>, cause: impl Into<Cause>) -> Self {
        Self { operation, subject: subject.into(), cause: Box::new(cause.into()) }
    }

    /// The cause.
    #[must_use]
    pub fn cause(&self) -> &Cause {
        &self.cause
    }

    /// Operation, subject and cause, for an error type with the same parts.
    #[must_use]
    pub fn into_parts(self) -> (&'static str, String, Cause) {
        (self.operation, self.subject, *self.cause)
    }

    /// The error with all its causes on one line, for the log.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.operation)?;
        if !self.subject.is_empty() {
            write!(f, " {}", self.subject)?;
        }
        match self.cause.as_ref() {
            Cause::Invalid(expected) => write!(f, ": {expected}"),
            Cause::WorkerEnded => write!(f, ": the worker has ended"),
            Cause::Exhausted(what) => write!(f, ": no {what} left"),
            Cause::Io(_) | Cause::Json(_) => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self.cause.as_ref() {
            Cause::Io(cause) => Some(cause),
            Cause::Json(cause) => Some(cause),
            Cause::Invalid(_) | Cause::WorkerEnded | Cause::Exhausted(_) => None,
        }
    }
}

impl From<std::io::Error> for Cause {
    fn from(cause: std::io::Error) -> Self {
        Self::Io(cause)
    }
}

impl From<serde_json::Error> for Cause {
    fn from(cause: serde_json::Error) -> Self {
        Self::Json(cause)
    }
}

impl From<rustix::io::Errno> for Cause {
    fn from(cause: rustix::io::Errno) -> Self {
        Self::Io(cause.into())
    }
}

impl From<nix::errno::Errno> for Cause {
    fn from(cause: nix::errno::Errno) -> Self {
        Self::Io(cause.into())
    }
}

/// Invalid input of a client. The text names the entry and the expected form; it shows no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed(pub String);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Malformed {}
