//! What a launch takes beside its plan.

use std::os::fd::{OwnedFd, RawFd};

/// What goes with a plan but is not data.
#[derive(Debug, Default)]
pub struct Inherit {
    /// Descriptors for the program and the numbers they get. Standard input, output and error are the caller's own
    /// unless given here.
    pub fds: Vec<(OwnedFd, RawFd)>,
    /// A listening `SOCK_SEQPACKET` socket for a plan with `wait_for_start`.
    pub start_socket: Option<OwnedFd>,
}
