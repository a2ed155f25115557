//! Every raw call of this crate.
//!
//! Invariant: nothing here decides; each function is one kernel call (or one indivisible pair) with a safe signature.
//! Leaves out: what `rustix` and `nix` offer safely.

#[cfg(feature = "handle")]
use std::{io, os::fd::OwnedFd};

#[cfg(feature = "handle")]
use tokio::io::{Interest, unix::AsyncFd};

/// Makes the allocator give blocks of this size and more back to the kernel when they are freed.
pub(crate) fn return_large_blocks(bytes: i32) {
    // SAFETY: sets two numbers of the allocator; called before anything large is allocated.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, bytes);
        libc::mallopt(libc::M_TRIM_THRESHOLD, bytes);
    }
}

/// Gives all free pages of the heap back to the kernel.
pub(crate) fn return_free_memory() {
    // SAFETY: only looks at the allocator's own free lists, in a single-threaded process.
    unsafe { libc::malloc_trim(0) };
}

/// Registers a descriptor with tokio for reading alone.
#[cfg(feature = "handle")]
pub(crate) fn watch_readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is the same open descriptor for as long as it lives, and AsyncFd owns it.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(io::Error::from)
}

/// Registers a descriptor with tokio for writing alone.
#[cfg(feature = "handle")]
pub(crate) fn watch_writable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: as in `watch_readable`.
    unsafe { AsyncFd::register_with_interest(fd, Interest::WRITABLE) }.map_err(io::Error::from)
}
