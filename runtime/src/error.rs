//! The crate's error: the failed step, its subject, and the cause. Printed once, at the edge; no other code logs it.

use std::{fmt, io};

use crate::{Step, cgroup, seccomp};

/// The class of a failure, for callers that must act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub enum Kind {
    /// The request itself is wrong: bad id, bad bundle, bad argument.
    Invalid,
    /// Part of the specification that this version does not implement.
    Unsupported,
    /// No such container.
    NotFound,
    /// A container of that name exists.
    Exists,
    /// The container is in the wrong state for the verb.
    WrongState,
    /// A limit cannot be enforced on this host.
    Unenforced,
    /// The kernel refused.
    Os,
}

/// A failed step.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Error {
    /// The step that failed.
    pub step: Step,
    /// The subject of the step: a path, an id, a pid, a field of the configuration.
    pub subject: String,
    /// The class of the failure.
    pub kind: Kind,
    /// The cause in words. For a kernel error the text of the errno.
    pub cause: String,
    /// The errno, where there was one.
    pub errno: Option<i32>,
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A failure that the kernel reported.
    pub fn os(step: Step, subject: impl fmt::Display, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        Self {
            step,
            subject: subject.to_string(),
            kind: Kind::Os,
            errno: source.raw_os_error(),
            cause: source.to_string(),
        }
    }

    /// A request that is wrong in itself.
    pub fn invalid(step: Step, subject: impl fmt::Display, cause: impl fmt::Display) -> Self {
        Self::of(Kind::Invalid, step, subject, cause)
    }

    /// An unsupported part of the request.
    pub fn unsupported(step: Step, subject: impl fmt::Display, cause: impl fmt::Display) -> Self {
        Self::of(Kind::Unsupported, step, subject, cause)
    }

    /// Any kind, without an errno.
    pub fn of(kind: Kind, step: Step, subject: impl fmt::Display, cause: impl fmt::Display) -> Self {
        Self { step, subject: subject.to_string(), kind, cause: cause.to_string(), errno: None }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.step, self.subject, self.cause)
    }
}

impl std::error::Error for Error {}

/// Shorthand to turn any kernel result into a step's error.
pub(crate) trait OnStep<T> {
    /// Names the step and the subject of a failure.
    fn on(self, step: Step, subject: impl fmt::Display) -> Result<T>;
}

impl<T, E: Into<io::Error>> OnStep<T> for std::result::Result<T, E> {
    fn on(self, step: Step, subject: impl fmt::Display) -> Result<T> {
        self.map_err(|source| Error::os(step, subject, source))
    }
}

impl<T> OnStep<T> for std::result::Result<T, cgroup::Error> {
    fn on(self, step: Step, subject: impl fmt::Display) -> Result<T> {
        self.map_err(|error| Error { step, subject: subject.to_string(), ..Error::from(error) })
    }
}

/// As a failure to make the cgroup; [`OnStep::on`] names another step.
impl From<cgroup::Error> for Error {
    fn from(error: cgroup::Error) -> Self {
        let kind = match error.kind {
            cgroup::ErrorKind::Unenforced(_) => Kind::Unenforced,
            cgroup::ErrorKind::Invalid => Kind::Invalid,
            _ => Kind::Os,
        };
        let subject = error.subject.display();
        Self { errno: error.raw_os_error(), ..Self::of(kind, Step::Cgroup, subject, chain(&error)) }
    }
}

/// As a failure to compile or to load a filter.
impl From<seccomp::Error> for Error {
    fn from(error: seccomp::Error) -> Self {
        let (kind, errno) = match &error {
            seccomp::Error::Load { .. } | seccomp::Error::ThreadSync { .. } => {
                (Kind::Os, Some(error.errno().raw_os_error()))
            }
            seccomp::Error::Unsupported { .. } => (Kind::Unsupported, None),
            _ => (Kind::Invalid, None),
        };
        Self { errno, ..Self::of(kind, Step::Seccomp, "filter", chain(&error)) }
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errno_and_kind_of_a_cgroup_error_are_kept() {
        let denied = Err::<(), _>(cgroup::Error::errno("create", "/x", rustix::io::Errno::ACCESS));
        let error = denied.on(Step::JoinCgroup, "v1 hierarchies").unwrap_err();
        assert_eq!((error.step, error.kind, error.errno), (Step::JoinCgroup, Kind::Os, Some(libc::EACCES)));
        assert!(error.to_string().starts_with("join-cgroup: v1 hierarchies: cgroup: create /x: "), "{error}");
        assert!(error.to_string().starts_with("join-cgroup: v1 hierarchies: cgroup: "), "{error}");

        let error = Error::from(cgroup::CgroupPath::new("../x").unwrap_err());
        assert_eq!((error.step, error.kind, error.errno), (Step::Cgroup, Kind::Invalid, None), "{error}");
    }

    #[test]
    fn errno_and_kind_of_a_seccomp_error_are_kept() {
        let source = io::Error::from_raw_os_error(libc::EACCES);
        let error = Error::from(seccomp::Error::Load { insns: 1, source });
        assert_eq!((error.step, error.kind, error.errno), (Step::Seccomp, Kind::Os, Some(libc::EACCES)), "{error}");
        assert_eq!(Error::from(seccomp::Error::TooLong { insns: 5000 }).kind, Kind::Invalid);
    }
}
