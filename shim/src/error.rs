//! The crate's error: the step, its subject, and the cause.
//!
//! Invariant: `Display` names step and subject only; the cause is reached by `source()` and printed once, at the edge
//! (or by [`Error::report`]). Leaves out: HTTP statuses (the API's).

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The class of a failure, for callers that must decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// The file, run, program or user does not exist.
    NotFound,
    /// A directory was needed.
    NotADirectory,
    /// A directory was found where a file was needed.
    IsADirectory,
    /// The box's user may not do it.
    PermissionDenied,
    /// It exists already.
    AlreadyExists,
    /// The directory is not empty.
    NotEmpty,
    /// No space, or the quota is used up.
    NoSpace,
    /// The request is invalid (bad path, bad user, special file).
    InvalidInput,
    /// A size limit was passed.
    TooLarge,
    /// A deadline passed.
    Timeout,
    /// The box did not become frozen in time; it was thawed again.
    FreezeTimeout,
    /// The init is dead or not reachable.
    Gone,
    /// The box's control socket is not there any more: only a restart of the box helps.
    Unreachable,
    /// A limit on a number of things is reached (processes, runs, connections).
    Limit,
    /// A resource limit cannot be enforced on this machine.
    Unenforced,
    /// Anything else.
    Internal,
}

impl ErrorKind {
    /// The kind that an errno of a file or process operation stands for.
    #[must_use]
    pub fn from_errno(errno: i32) -> Self {
        match errno {
            libc::ENOENT | libc::ESRCH => Self::NotFound,
            libc::ENOTDIR => Self::NotADirectory,
            libc::EISDIR => Self::IsADirectory,
            libc::EACCES | libc::EPERM | libc::EROFS => Self::PermissionDenied,
            libc::EEXIST | libc::EBUSY | libc::ETXTBSY => Self::AlreadyExists,
            libc::ENOTEMPTY => Self::NotEmpty,
            libc::ENOSPC | libc::EDQUOT => Self::NoSpace,
            libc::EINVAL | libc::ELOOP | libc::ENAMETOOLONG | libc::ENOEXEC | libc::EXDEV => Self::InvalidInput,
            libc::E2BIG | libc::EFBIG => Self::TooLarge,
            libc::ETIMEDOUT => Self::Timeout,
            libc::EAGAIN | libc::EMFILE | libc::ENFILE | libc::ENOMEM => Self::Limit,
            libc::ECONNREFUSED | libc::ECONNRESET | libc::EPIPE => Self::Gone,
            _ => Self::Internal,
        }
    }
}

/// The part of starting a program that failed, for callers that answer each in its own way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ExecFailure {
    /// There is no such user.
    User,
    /// There is no such group.
    Group,
    /// The caller may not start programs as another user.
    Caller,
    /// The working directory cannot be entered.
    Folder,
    /// The program is missing, or cannot be executed.
    Program,
}

/// A failed operation: its kind, the step, the subject (a path, a pid, an id) and the cause.
#[derive(Debug, Clone)]
pub struct Error {
    kind: ErrorKind,
    exec: Option<ExecFailure>,
    step: Cow<'static, str>,
    subject: String,
    cause: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

/// The text another process gave as the cause of its failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reported(pub String);

impl fmt::Display for Reported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Reported {}

impl Error {
    /// An error without a cause of its own.
    pub fn new(kind: ErrorKind, step: impl Into<Cow<'static, str>>, subject: impl fmt::Display) -> Self {
        Self { kind, exec: None, step: step.into(), subject: subject.to_string(), cause: None }
    }

    /// An error whose kind follows from an I/O error, which becomes the cause.
    pub fn io(
        step: impl Into<Cow<'static, str>>,
        subject: impl fmt::Display,
        cause: impl Into<std::io::Error>,
    ) -> Self {
        let cause = cause.into();
        let kind = match (cause.raw_os_error(), cause.kind()) {
            (Some(errno), _) => ErrorKind::from_errno(errno),
            (None, std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::BrokenPipe) => ErrorKind::Gone,
            (None, std::io::ErrorKind::TimedOut) => ErrorKind::Timeout,
            (None, _) => ErrorKind::Internal,
        };
        Self::new(kind, step, subject).because(cause)
    }

    /// An error of the init's own work, in which the client named nothing: a missing or forbidden object there is not
    /// the client's, so the kind is `Limit`, `NoSpace` or `Internal`, never `NotFound` or `PermissionDenied`.
    pub fn own(
        step: impl Into<Cow<'static, str>>,
        subject: impl fmt::Display,
        cause: impl Into<std::io::Error>,
    ) -> Self {
        let error = Self::io(step, subject, cause);
        let kind = match error.kind() {
            kind @ (ErrorKind::Limit | ErrorKind::NoSpace | ErrorKind::Timeout) => kind,
            _ => ErrorKind::Internal,
        };
        error.with_kind(kind)
    }

    /// A failure at a cgroup; its errno and kind are kept.
    pub(crate) fn cgroup(
        step: impl Into<Cow<'static, str>>,
        subject: impl fmt::Display,
        cause: icebox_runtime::cgroup::Error,
    ) -> Self {
        use icebox_runtime::cgroup::ErrorKind as Kind;
        let kind = match cause.kind {
            Kind::FreezeTimeout => ErrorKind::FreezeTimeout,
            Kind::Timeout | Kind::Busy | Kind::Frozen => ErrorKind::Timeout,
            Kind::Unenforced(_) | Kind::Unsupported => ErrorKind::Unenforced,
            Kind::NotFound => ErrorKind::NotFound,
            Kind::Invalid => ErrorKind::InvalidInput,
            Kind::Denied => ErrorKind::PermissionDenied,
            _ => cause.raw_os_error().map_or(ErrorKind::Internal, ErrorKind::from_errno),
        };
        Self::new(kind, step, subject).because(cause)
    }

    /// The same error with a cause.
    #[must_use]
    pub fn because(mut self, cause: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.cause = Some(Arc::new(cause));
        self
    }

    /// The same error with another kind.
    #[must_use]
    pub fn with_kind(mut self, kind: ErrorKind) -> Self {
        self.kind = kind;
        self
    }

    /// The same error as a failure to start a program.
    #[must_use]
    pub fn in_exec(mut self, failure: impl Into<Option<ExecFailure>>) -> Self {
        self.exec = failure.into();
        self
    }

    /// The part of starting a program that failed, if that is what failed.
    #[must_use]
    pub fn exec_failure(&self) -> Option<ExecFailure> {
        self.exec
    }

    /// The class of the failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The step that failed.
    #[must_use]
    pub fn step(&self) -> &str {
        &self.step
    }

    /// The subject of the step.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// The causes below this error, joined by ": "; empty if there are none.
    #[must_use]
    pub fn causes(&self) -> String {
        let mut text = String::new();
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        text
    }

    /// The whole report on one line: step, subject and every cause. For the edge only.
    #[must_use]
    pub fn report(&self) -> String {
        let causes = self.causes();
        if causes.is_empty() { self.to_string() } else { format!("{self}: {causes}") }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.subject.is_empty() { f.write_str(&self.step) } else { write!(f, "{}: {}", self.step, self.subject) }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as &(dyn std::error::Error + 'static))
    }
}
