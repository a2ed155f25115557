//! The ioctls of XFS that grow a mounted file system.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `struct xfs_fsop_geom_v1` of `<xfs/xfs_fs.h>`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Geometry {
    block_size: u32,
    realtime_extent_size: u32,
    ag_blocks: u32,
    ag_count: u32,
    log_blocks: u32,
    sector_size: u32,
    inode_size: u32,
    inode_max_percent: u32,
    data_blocks: u64,
    realtime_blocks: u64,
    realtime_extents: u64,
    log_start: u64,
    uuid: [u8; 16],
    stripe_unit: u32,
    stripe_width: u32,
    version: i32,
    flags: u32,
    log_sector_size: u32,
    realtime_sector_size: u32,
    directory_block_size: u32,
    padding: u32,
}

/// `struct xfs_growfs_data`.
#[repr(C)]
#[derive(Clone, Copy)]
struct GrowData {
    new_blocks: u64,
    inode_max_percent: u32,
    padding: u32,
}

const _: () = assert!(size_of::<Geometry>() == 112 && size_of::<GrowData>() == 16);

/// `_IOR('X', 100, struct xfs_fsop_geom_v1)`.
const XFS_IOC_FSGEOMETRY_V1: libc::Ioctl = 0x8070_5864;
/// `_IOW('X', 110, struct xfs_growfs_data)`.
const XFS_IOC_FSGROWFSDATA: libc::Ioctl = 0x4010_586e;

/// Grows the XFS of `directory` to `bytes`; a file system that is as large already stays as it is.
pub(crate) fn grow(directory: BorrowedFd<'_>, bytes: u64) -> io::Result<()> {
    let mut geometry = Geometry::default();
    // SAFETY: the kernel writes exactly one `struct xfs_fsop_geom_v1` into `geometry`, which lives through the call.
    if unsafe { libc::ioctl(directory.as_raw_fd(), XFS_IOC_FSGEOMETRY_V1, &raw mut geometry) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let new_blocks = bytes / u64::from(geometry.block_size.max(1));
    if new_blocks <= geometry.data_blocks {
        return Ok(());
    }
    let wanted = GrowData { new_blocks, inode_max_percent: geometry.inode_max_percent, padding: 0 };
    // SAFETY: `wanted` is a valid `struct xfs_growfs_data` that the kernel only reads, and it lives through the call.
    let result = unsafe { libc::ioctl(directory.as_raw_fd(), XFS_IOC_FSGROWFSDATA, &raw const wanted) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
