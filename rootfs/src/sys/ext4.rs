//! The ioctl of ext4 that grows a mounted file system.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `_IOW('f', 16, __u64)`.
const EXT4_IOC_RESIZE_FS: libc::Ioctl = 0x4008_6610;
const BLOCK_BYTES: u64 = 4096;

/// Grows the ext4 of `directory`, which has blocks of 4096 bytes, to `bytes`.
pub(crate) fn grow(directory: BorrowedFd<'_>, bytes: u64) -> io::Result<()> {
    let blocks: u64 = bytes / BLOCK_BYTES;
    // SAFETY: the kernel only reads the number of blocks, which lives through the call, as does the descriptor.
    let result = unsafe { libc::ioctl(directory.as_raw_fd(), EXT4_IOC_RESIZE_FS, &raw const blocks) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
