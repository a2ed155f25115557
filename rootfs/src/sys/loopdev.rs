//! The ioctls of the loop driver, and the one that flushes a block device with the file system on it. Two of them attach a
//! file in one atomic step (Linux 5.8 and later).
//!
//! `LOOP_CONFIGURE` sets the file, the flags and the block size at once. The older `LOOP_SET_FD` + `LOOP_SET_STATUS64`
//! leaves a window in which a killed process leaks an attached device without the autoclear flag.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Detach when the last opener (a mount counts as one) is gone.
pub(crate) const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// Bypass the page cache of the host.
pub(crate) const LO_FLAGS_DIRECT_IO: u32 = 16;
/// Bytes of a name in `struct loop_info64`, its terminating zero included.
pub(crate) const LO_NAME_BYTES: usize = 64;

const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
const LOOP_SET_CAPACITY: libc::Ioctl = 0x4c07;
const LOOP_GET_STATUS64: libc::Ioctl = 0x4c05;
const LOOP_CTL_ADD: libc::Ioctl = 0x4c80;
const LOOP_CLR_FD: libc::Ioctl = 0x4c01;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
/// `BLKFLSBUF` of `<linux/fs.h>`.
const BLOCK_FLUSH: libc::Ioctl = 0x1261;
/// `BLKRASET` of `<linux/fs.h>`.
const BLOCK_SET_READ_AHEAD: libc::Ioctl = 0x1262;

/// `struct loop_info64` of `<linux/loop.h>`.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; LO_NAME_BYTES],
    crypt_name: [u8; LO_NAME_BYTES],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of `<linux/loop.h>`.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo64>() == 232 && size_of::<LoopConfig>() == 304);

const EMPTY_INFO: LoopInfo64 = LoopInfo64 {
    device: 0,
    inode: 0,
    rdevice: 0,
    offset: 0,
    size_limit: 0,
    number: 0,
    encrypt_type: 0,
    encrypt_key_size: 0,
    flags: 0,
    file_name: [0; LO_NAME_BYTES],
    crypt_name: [0; LO_NAME_BYTES],
    encrypt_key: [0; 32],
    init: [0; 2],
};

/// Asks the driver for the number of an unattached device; it makes a new one when there is none.
pub(crate) fn get_free(control: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: LOOP_CTL_GET_FREE takes no argument and touches no memory of ours; the fd lives through the call.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
    u32::try_from(number).map_err(|_| io::Error::last_os_error())
}

/// Makes the device with this number. An existing one is an error, `EEXIST`.
pub(crate) fn add(control: BorrowedFd<'_>, number: u32) -> io::Result<()> {
    // SAFETY: LOOP_CTL_ADD takes a number and touches no memory of ours; the fd lives through the call.
    let made = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_ADD, libc::c_ulong::from(number)) };
    if made >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Attaches `backing` to `device`. `name` is what `losetup` shows and is cut to fit.
pub(crate) fn configure(
    device: BorrowedFd<'_>,
    backing: BorrowedFd<'_>,
    block_size: u32,
    flags: u32,
    name: &[u8],
) -> io::Result<()> {
    let mut info = LoopInfo64 { flags, ..EMPTY_INFO };
    let kept = name.len().min(LO_NAME_BYTES - 1);
    info.file_name[..kept].copy_from_slice(&name[..kept]);
    let fd = u32::try_from(backing.as_raw_fd()).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    let config = LoopConfig { fd, block_size, info, reserved: [0; 8] };
    // SAFETY: `config` is a valid `struct loop_config` that the kernel only reads, and it lives through the call, as do
    // both file descriptors.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What the driver says of an attached device.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Status {
    /// Device number of the file system of the file, as in `st_dev`.
    pub(crate) device: u64,
    /// Inode number of the file.
    pub(crate) inode: u64,
    /// The flags that it really set; it drops direct I/O silently where the file cannot do it.
    pub(crate) flags: u32,
}

/// Asks the driver; `ENXIO` if nothing is attached.
pub(crate) fn status(device: BorrowedFd<'_>) -> io::Result<Status> {
    let mut info = EMPTY_INFO;
    // SAFETY: the kernel writes exactly one `struct loop_info64` into `info`, which lives through the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, &raw mut info) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Status { device: info.device, inode: info.inode, flags: info.flags })
}

/// Detaches the file. With other users of the device, the last of them does it.
pub(crate) fn clear(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: LOOP_CLR_FD takes no argument and touches no memory of ours; the fd lives through the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CLR_FD, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Writes out everything that is dirty in the file system that is mounted from this block device, and in the device's
/// own cache, as sync(2) does for all of them. It needs no path into the file system.
pub(crate) fn flush(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: BLKFLSBUF takes no argument and touches no memory of ours; the fd lives through the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), BLOCK_FLUSH, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets how much the kernel reads ahead of a program that reads a file on the device in sequence, in sectors of 512 bytes.
pub(crate) fn set_read_ahead(device: BorrowedFd<'_>, sectors: u32) -> io::Result<()> {
    // SAFETY: BLKRASET takes a number and touches no memory of ours; the fd lives through the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), BLOCK_SET_READ_AHEAD, libc::c_ulong::from(sectors)) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes the device as large as its file is now.
pub(crate) fn set_capacity(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: LOOP_SET_CAPACITY takes no argument and touches no memory of ours; the fd lives through the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_CAPACITY) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
