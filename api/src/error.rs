//! The one internal error type of the daemon.
//!
//! Owns: the failed operation, its subject and its cause. `Display` never repeats the cause: [`Error::chain`] walks the
//! chain once, at the edge. `http::reply` decides what clients see.

use std::fmt;

/// A failed operation.
#[derive(Debug)]
pub struct Error {
    operation: &'static str,
    subject: String,
    /// Boxed: errors are rare, and results travel through every layer.
    cause: Box<Cause>,
}

/// Cause of a failed operation.
#[derive(Debug)]
#[non_exhaustive]
pub enum Cause {
    /// The operating system refused.
    Io(std::io::Error),
    /// The database refused.
    Sql(rusqlite::Error),
    /// The commit of a group of writes failed; the text is SQLite's, shared by every write of the group.
    Commit(std::sync::Arc<rusqlite::Error>),
    /// A stored or received JSON text cannot be read.
    Json(serde_json::Error),
    /// The configuration file cannot be read.
    Toml(toml::de::Error),
    /// The box refused or is gone.
    Shim(icebox_shim::Error),
    /// The disk or image store reported an error.
    Rootfs(icebox_rootfs::Error),
    /// The value is not acceptable; the text states the expected form.
    Invalid(&'static str),
    /// The worker that should have answered has ended.
    WorkerEnded,
    /// The resource is exhausted.
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

    /// True if the database had no disk space for it.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        let code = match self.cause.as_ref() {
            Cause::Sql(cause) => cause.sqlite_error_code(),
            Cause::Commit(cause) => cause.sqlite_error_code(),
            _ => None,
        };
        code == Some(rusqlite::ErrorCode::DiskFull)
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
            _ => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self.cause.as_ref() {
            Cause::Io(cause) => Some(cause),
            Cause::Sql(cause) => Some(cause),
            Cause::Commit(cause) => Some(cause.as_ref()),
            Cause::Json(cause) => Some(cause),
            Cause::Toml(cause) => Some(cause),
            Cause::Shim(cause) => Some(cause),
            Cause::Rootfs(cause) => Some(cause),
            Cause::Invalid(_) | Cause::WorkerEnded | Cause::Exhausted(_) => None,
        }
    }
}

/// A failure of the boxes' network is this crate's error with the same parts.
impl From<icebox_net::error::Error> for Error {
    fn from(error: icebox_net::error::Error) -> Self {
        use icebox_net::error::Cause as Of;
        let (operation, subject, cause) = error.into_parts();
        let cause = match cause {
            Of::Io(cause) => Cause::Io(cause),
            Of::Json(cause) => Cause::Json(cause),
            Of::Invalid(expected) => Cause::Invalid(expected),
            Of::WorkerEnded => Cause::WorkerEnded,
            Of::Exhausted(what) => Cause::Exhausted(what),
        };
        Self::new(operation, subject, cause)
    }
}

macro_rules! cause_from {
    ($($source:ty => $variant:ident),* $(,)?) => {
        $(impl From<$source> for Cause {
            fn from(cause: $source) -> Self {
                Self::$variant(cause)
            }
        })*
    };
}

cause_from! {
    std::io::Error => Io,
    rusqlite::Error => Sql,
    serde_json::Error => Json,
    toml::de::Error => Toml,
    icebox_shim::Error => Shim,
    icebox_rootfs::Error => Rootfs,
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
