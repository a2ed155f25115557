//! The one error of this crate: which step, on what subject, and the cause beneath it.

use std::fmt;
use std::io;

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed operation.
#[derive(Debug)]
pub struct Error {
    step: &'static str,
    subject: String,
    cause: Box<Cause>,
}

/// Why an operation failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum Cause {
    /// A system call of this machine failed.
    Io(io::Error),
    /// The store of images refused.
    Rootfs(icebox_rootfs::Error),
    /// What was given, or what the registry sent, is not acceptable.
    Refused(String),
    /// The registry does not have it.
    NotFound(String),
    /// The registry does not allow it.
    Denied(String),
    /// The registry cannot be reached, or fails. A retry may work.
    Unavailable(String),
    /// There is not enough space for it.
    NoSpace(String),
}

impl Error {
    pub(crate) fn new(step: &'static str, subject: impl Into<String>, cause: impl Into<Cause>) -> Self {
        Self { step, subject: subject.into(), cause: Box::new(cause.into()) }
    }

    /// The cause.
    #[must_use]
    pub fn cause(&self) -> &Cause {
        &self.cause
    }

    /// The cause, taken out.
    #[must_use]
    pub fn into_cause(self) -> Cause {
        *self.cause
    }
}

/// Adds step and subject.
pub(crate) trait At<T> {
    fn at(self, step: &'static str, subject: impl fmt::Display) -> Result<T>;
}

impl<T, C: Into<Cause>> At<T> for std::result::Result<T, C> {
    fn at(self, step: &'static str, subject: impl fmt::Display) -> Result<T> {
        self.map_err(|cause| Error::new(step, subject.to_string(), cause))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.step, self.subject)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.cause)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Rootfs(error) => error.fmt(f),
            Self::Refused(text)
            | Self::NotFound(text)
            | Self::Denied(text)
            | Self::Unavailable(text)
            | Self::NoSpace(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Cause {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Rootfs(error) => error.source(),
            _ => None,
        }
    }
}

impl From<io::Error> for Cause {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<icebox_rootfs::Error> for Cause {
    fn from(error: icebox_rootfs::Error) -> Self {
        Self::Rootfs(error)
    }
}

/// Ends a function with a refusal.
macro_rules! refuse {
    ($($text:tt)*) => { return Err(crate::error::Cause::Refused(format!($($text)*))) };
}
pub(crate) use refuse;

/// Longest text of a registry that an error shows.
const SHOWN_CHARS_MAX: usize = 300;

/// A text of the registry, for people: one line, bounded, without control characters.
pub(crate) fn shown(text: &str) -> String {
    let clean: String = text.chars().take(SHOWN_CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect();
    clean.trim().to_owned()
}
