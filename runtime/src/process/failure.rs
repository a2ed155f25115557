//! A failed step of becoming the program: plain numbers, so that it can be made and sent without the heap.

use std::io;

use rustix::io::Errno;

/// No detail.
const NONE: i32 = -1;
/// The kernel's largest errno.
const ERRNO_MAX: i32 = 4095;

macro_rules! steps {
    ($($(#[$doc:meta])* $step:ident = $number:literal, $name:literal;)*) => {
        /// A step of a child between its clone and `execve`. The numbers are those of [`Failure::to_bytes`].
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum ProcessStep { $($(#[$doc])* $step = $number,)* }

        impl ProcessStep {
            /// The step as errors name it.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$step => $name,)* }
            }

            fn from_u8(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$step),)* _ => None }
            }
        }
    };
}

steps! {
    /// Joining the cgroup.
    JoinCgroup = 1, "join run's cgroup";
    /// Starting a session.
    Session = 2, "start session";
    /// Taking the controlling terminal.
    Terminal = 3, "take terminal";
    /// Giving descriptors their numbers and closing the others. The detail is the number.
    Descriptors = 4, "set up descriptors";
    /// Resource limits. The detail is the limit.
    Limits = 5, "set limits";
    /// Supplementary groups.
    Groups = 6, "set groups";
    /// The group.
    Group = 7, "set group";
    /// The user.
    User = 8, "set user";
    /// The five capability sets. The detail is the capability.
    Capabilities = 9, "set capabilities";
    /// Setting `no_new_privs`.
    NoNewPrivs = 10, "set no_new_privs";
    /// The kernel shows another user or other capabilities than were set.
    Verify = 11, "verify user and capabilities";
    /// Entering the folder.
    Folder = 12, "enter folder";
    /// Signals to their defaults.
    Signals = 13, "reset signals";
    /// Loading the system call filter.
    Filter = 14, "load system call filter";
    /// `execve`.
    Execute = 15, "execute";
}

/// Where it failed, and the kernel's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// The step.
    pub step: ProcessStep,
    /// Which one of the step's objects, see [`ProcessStep`].
    pub detail: Option<i32>,
    /// The kernel's answer.
    pub errno: Errno,
}

impl Failure {
    /// Size of [`Failure::to_bytes`].
    pub const BYTES: usize = 9;

    /// A failure of a whole step.
    #[must_use]
    pub fn new(step: ProcessStep, errno: Errno) -> Self {
        Self { step, detail: None, errno }
    }

    pub(super) fn of(step: ProcessStep, detail: i32, error: io::Error) -> Self {
        Self { detail: Some(detail), ..at(step)(error) }
    }

    /// The failure as it is sent from a child to its parent.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [self.step as u8; Self::BYTES];
        bytes[1..5].copy_from_slice(&self.detail.unwrap_or(NONE).to_le_bytes());
        bytes[5..].copy_from_slice(&self.errno.raw_os_error().to_le_bytes());
        bytes
    }

    /// Reads what [`Failure::to_bytes`] has written; `None` if it is something else.
    #[must_use]
    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> Option<Self> {
        let [step, d0, d1, d2, d3, e0, e1, e2, e3] = bytes;
        let detail = i32::from_le_bytes([d0, d1, d2, d3]);
        let errno = Some(i32::from_le_bytes([e0, e1, e2, e3])).filter(|errno| (1..=ERRNO_MAX).contains(errno))?;
        Some(Self {
            step: ProcessStep::from_u8(step)?,
            detail: Some(detail).filter(|d| *d != NONE),
            errno: Errno::from_raw_os_error(errno),
        })
    }
}

/// The failure of a step, from what the kernel said.
pub(super) fn at<E: Into<io::Error>>(step: ProcessStep) -> impl FnOnce(E) -> Failure {
    move |error| Failure::new(step, Errno::from_io_error(&error.into()).unwrap_or(Errno::IO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_survives_the_pipe() {
        for failure in [
            Failure::new(ProcessStep::Execute, Errno::NOENT),
            Failure { detail: Some(7), ..Failure::new(ProcessStep::Limits, Errno::PERM) },
            Failure { detail: Some(0), ..Failure::new(ProcessStep::Capabilities, Errno::INVAL) },
        ] {
            assert_eq!(Failure::from_bytes(failure.to_bytes()), Some(failure));
        }
        for errno in [0, -1, 4096, i32::MAX] {
            let mut bytes = Failure::new(ProcessStep::Execute, Errno::NOENT).to_bytes();
            bytes[5..].copy_from_slice(&i32::to_le_bytes(errno));
            assert_eq!(Failure::from_bytes(bytes), None);
        }
        assert_eq!(Failure::from_bytes([0; Failure::BYTES]), None);
        assert_eq!(Failure::from_bytes([200; Failure::BYTES]), None);
    }
}
