//! The errors of a filter. No variant that `load` returns owns heap memory.

use std::fmt;

use rustix::io::Errno;

use super::rules::Action;

/// A failed compilation or load of a filter.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// No supported architecture has a system call of this name.
    UnknownSyscall {
        /// The name as written in the entry.
        name: String,
    },
    /// An argument index above 5.
    ArgumentIndex {
        /// First name of the entry.
        name: String,
        /// The index asked for.
        index: usize,
    },
    /// More conditions in one entry than `CONDITIONS_PER_ENTRY_MAX`.
    TooManyConditions {
        /// First name of the entry.
        name: String,
        /// How many there are.
        count: usize,
    },
    /// An errno above the kernel's 4095, which it would silently cut.
    Errno {
        /// The value asked for.
        errno: u32,
    },
    /// An errno given with an action that takes none.
    ErrnoWithoutUse {
        /// The value given.
        errno: u32,
        /// The action.
        action: Action,
    },
    /// A part of an OCI profile that this runtime does not offer.
    Unsupported {
        /// Its name in the specification.
        what: &'static str,
    },
    /// seccompiler refused a condition.
    Condition {
        /// Its answer.
        source: seccompiler::BackendError,
    },
    /// More instructions than the kernel accepts.
    TooLong {
        /// Instructions of the compiled program.
        insns: usize,
    },
    /// seccomp(2) refused the program.
    Load {
        /// Instructions of the program.
        insns: usize,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// seccomp(2) could not synchronize another thread of the process; nothing was loaded.
    ThreadSync {
        /// The thread that could not be synchronized.
        tid: i64,
    },
}

impl Error {
    /// The kernel's answer, or the errno that says as much. Allocates nothing.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            Self::Load { source, .. } => Errno::from_io_error(source).unwrap_or(Errno::IO),
            Self::ThreadSync { .. } => Errno::SRCH,
            _ => Errno::INVAL,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownSyscall { name } => write!(f, "seccomp: unknown system call {name:?}"),
            Self::ArgumentIndex { name, index } => {
                write!(f, "seccomp: entry of {name:?}: argument index {index} is above 5")
            }
            Self::TooManyConditions { name, count } => {
                write!(f, "seccomp: entry of {name:?}: {count} conditions are too many")
            }
            Self::Errno { errno } => write!(f, "seccomp: errno {errno} is above 4095"),
            Self::ErrnoWithoutUse { errno, action } => {
                write!(f, "seccomp: errno {errno} is given, but the action {action:?} takes none")
            }
            Self::Unsupported { what } => write!(f, "seccomp: {what} is not supported"),
            Self::Condition { .. } => write!(f, "seccomp: cannot compile a condition"),
            Self::TooLong { insns } => write!(f, "seccomp: the filter needs {insns} instructions, more than 4096"),
            Self::Load { insns, .. } => {
                write!(f, "seccomp: cannot load the filter of {insns} instructions")
            }
            Self::ThreadSync { tid } => write!(f, "seccomp: thread {tid} cannot follow the filter"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Load { source, .. } => Some(source),
            Self::Condition { source } => Some(source),
            _ => None,
        }
    }
}
