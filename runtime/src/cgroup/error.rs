//! The one error type of the cgroup module. Owns the mapping from an errno to a kind.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::controller::Controller;

/// The result of a cgroup operation.
pub type Result<T> = std::result::Result<T, Error>;

/// The failed operation, its file, and the cause.
#[derive(Debug)]
#[non_exhaustive]
pub struct Error {
    /// The failed operation, e.g. `freeze`.
    pub operation: &'static str,
    /// The cgroup directory or control file of the operation.
    pub subject: PathBuf,
    /// The class of the failure, on which callers decide.
    pub kind: ErrorKind,
    detail: Cow<'static, str>,
    source: Option<std::io::Error>,
}

/// The classes of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The cgroup did not report `frozen 1` in time; it has been thawed again.
    FreezeTimeout,
    /// Another wait ran into its deadline.
    Timeout,
    /// It has processes (or child cgroups), which the operation does not allow.
    Busy,
    /// It, or a cgroup above it, is frozen: a joining process would stop until the thaw.
    Frozen,
    /// A requested limit cannot be enforced here: this controller or one of its files is missing.
    Unenforced(Controller),
    /// No such cgroup, or the cgroup has been removed meanwhile.
    NotFound,
    /// The request is invalid for this module or for the kernel.
    Invalid,
    /// The caller lacks the permission.
    Denied,
    /// This layout or kernel cannot do that at all.
    Unsupported,
    /// Any other failure of a system call; see the source.
    Io,
}

impl ErrorKind {
    fn of(errno: Errno) -> Self {
        match errno {
            // ENODEV: reading or writing a control file of a cgroup that was removed while we held it open.
            Errno::NOENT | Errno::NODEV => Self::NotFound,
            Errno::BUSY | Errno::NOTEMPTY => Self::Busy,
            Errno::INVAL | Errno::RANGE | Errno::NOTDIR | Errno::NAMETOOLONG => Self::Invalid,
            Errno::OPNOTSUPP | Errno::NOSYS => Self::Unsupported,
            Errno::ACCESS | Errno::PERM | Errno::ROFS => Self::Denied,
            Errno::TIMEDOUT => Self::Timeout,
            _ => Self::Io,
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FreezeTimeout => f.write_str("not frozen in time, thawed again"),
            Self::Timeout => f.write_str("deadline passed"),
            Self::Busy => f.write_str("in use"),
            Self::Frozen => f.write_str("frozen"),
            Self::Unenforced(c) => write!(f, "the limit cannot be enforced: controller {c}"),
            Self::NotFound => f.write_str("not found"),
            Self::Invalid => f.write_str("invalid"),
            Self::Denied => f.write_str("not permitted"),
            Self::Unsupported => f.write_str("not supported here"),
            Self::Io => f.write_str("failed"),
        }
    }
}

impl Error {
    pub(super) fn new(operation: &'static str, subject: impl AsRef<Path>, kind: ErrorKind) -> Self {
        Self { operation, subject: subject.as_ref().to_path_buf(), kind, detail: Cow::Borrowed(""), source: None }
    }

    pub(crate) fn errno(operation: &'static str, subject: impl AsRef<Path>, errno: Errno) -> Self {
        Self { source: Some(errno.into()), ..Self::new(operation, subject, ErrorKind::of(errno)) }
    }

    pub(super) fn invalid(
        operation: &'static str,
        subject: impl AsRef<Path>,
        detail: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::new(operation, subject, ErrorKind::Invalid).detail(detail)
    }

    pub(super) fn detail(self, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { detail: detail.into(), ..self }
    }

    pub(super) fn with_kind(self, kind: ErrorKind) -> Self {
        Self { kind, ..self }
    }

    /// The errno behind it, when a system call failed.
    #[must_use]
    pub fn raw_os_error(&self) -> Option<i32> {
        self.source.as_ref().and_then(std::io::Error::raw_os_error)
    }

    pub(super) fn is(&self, errno: Errno) -> bool {
        self.raw_os_error() == Some(errno.raw_os_error())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cgroup: {} {}: {}", self.operation, self.subject.display(), self.kind)?;
        if !self.detail.is_empty() {
            write!(f, " ({})", self.detail)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|e| e as _)
    }
}
