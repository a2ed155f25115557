//! Taking ownership of descriptors that arrive as numbers.

use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};

/// Owns a descriptor that the kernel has just installed for this process (`SCM_RIGHTS`), or that the caller handed
/// over by number and does not use again.
pub(crate) fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: received descriptors are new in this process and have no other owner.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
