//! Taking ownership of descriptors that arrive as numbers.

use std::{
    io,
    os::fd::{FromRawFd as _, OwnedFd, RawFd},
};

/// Takes ownership of a descriptor that this process was started with, and marks it close-on-exec. Each number may be
/// taken once.
///
/// # Errors
/// If there is no such descriptor.
pub fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD on any number is harmless; an error says that it is not open.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, it was inherited by number, and nothing else in this process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Owns a descriptor that the kernel has just installed for this process (`SCM_RIGHTS`).
pub(crate) fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: received descriptors are new in this process and have no other owner.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
