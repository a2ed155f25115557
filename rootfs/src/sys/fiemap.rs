//! The ioctl that lists the extents of a file.

use std::io;
use std::mem::size_of;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Extents asked for at once.
const EXTENTS: usize = 256;
/// `_IOWR('f', 11, struct fiemap)`.
const FS_IOC_FIEMAP: libc::Ioctl = 0xc020_660b;
const FIEMAP_EXTENT_LAST: u32 = 1;
const FIEMAP_EXTENT_SHARED: u32 = 0x2000;
const FIEMAP_EXTENT_UNWRITTEN: u32 = 0x800;

/// `struct fiemap_extent` of `<linux/fiemap.h>`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved_long: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

/// `struct fiemap` with room for extents.
#[repr(C)]
struct Map {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    room: u32,
    reserved: u32,
    extents: [Extent; EXTENTS],
}

const _: () = assert!(size_of::<Extent>() == 56 && size_of::<Map>() == 32 + 56 * EXTENTS);

/// Bytes of the file's extents that it shares with other files. Zero on a file system that shares none.
pub(crate) fn shared_bytes(file: BorrowedFd<'_>) -> io::Result<u64> {
    let mut shared = 0;
    each(file, |one| shared += if one.flags & FIEMAP_EXTENT_SHARED != 0 { one.length } else { 0 })?;
    Ok(shared)
}

/// The parts of the file that have blocks which were never written.
pub(crate) fn unwritten(file: BorrowedFd<'_>) -> io::Result<Vec<Range<u64>>> {
    let mut parts = Vec::new();
    each(file, |one| {
        if one.flags & FIEMAP_EXTENT_UNWRITTEN != 0 {
            parts.push(one.logical..one.logical + one.length);
        }
    })?;
    Ok(parts)
}

/// Visits each extent of the file.
fn each(file: BorrowedFd<'_>, mut visit: impl FnMut(&Extent)) -> io::Result<()> {
    let mut start = 0;
    loop {
        let mut map = Map {
            start,
            length: u64::MAX - start,
            flags: 0,
            mapped: 0,
            room: EXTENTS as u32,
            reserved: 0,
            extents: [Extent::default(); EXTENTS],
        };
        // SAFETY: `map` is a valid `struct fiemap` with the room that it states, the kernel writes no more extents than
        // that, and it lives through the call.
        if unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, &raw mut map) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let found = &map.extents[..EXTENTS.min(map.mapped as usize)];
        found.iter().for_each(&mut visit);
        match found.last() {
            Some(last) if last.flags & FIEMAP_EXTENT_LAST == 0 => start = last.logical + last.length,
            _ => return Ok(()),
        }
    }
}
