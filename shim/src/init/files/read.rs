//! Reading a regular file, whole or a range of it.

use std::os::fd::OwnedFd;

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use super::channel::Channel;
use super::path;
use crate::error::{Error, ErrorKind, Reported};
use crate::protocol::{Answer, DATA_BYTES_MAX, FrameType};

/// Most bytes read of a file without a reliable size, as in /proc.
const SIZELESS_BYTES_MAX: usize = 16 * 1024 * 1024;
/// File systems whose files are made by the kernel while they are read: their sizes mean nothing (0, or a page).
const KERNEL_FILE_SYSTEMS: [u64; 7] =
    [PROC_MAGIC, SYSFS_MAGIC, CGROUP_MAGIC, CGROUP2_MAGIC, 0x6462_6720, 0x7472_6163, 0x6b5f_0b0d];
const PROC_MAGIC: u64 = 0x9fa0;
const SYSFS_MAGIC: u64 = 0x6265_6572;
const CGROUP_MAGIC: u64 = 0x0027_e0eb;
const CGROUP2_MAGIC: u64 = 0x6367_7270;

/// Sends a file whole, or the range (offset, length) of it, with exactly the announced size: a file that grows
/// meanwhile is read up to its first size, one that shrinks ends with an error.
pub(super) fn read(channel: &mut Channel, path: &str, range: Option<(u64, u64)>) -> Result<(), Error> {
    let (fd, size) = open(path)?;
    match size {
        Some(size) => send_file(channel, path, &fd, size, range),
        None => send_bytes(channel, &read_sizeless(path, &fd)?, range),
    }
}

/// A regular file, and its size where that can be relied on.
fn open(path: &str) -> Result<(OwnedFd, Option<u64>), Error> {
    let step = "read file";
    // Non-blocking, since opening a FIFO would wait for its other side.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = path::open(&path::absolute(path)?, flags).map_err(|e| match e {
        // A socket, or a device that is not there.
        Errno::NXIO | Errno::NODEV => not_regular(path),
        e => Error::io("open file", path, e),
    })?;
    let stat = rustix::fs::fstat(&fd).map_err(|e| Error::io(step, path, e))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        FileType::Directory => return Err(Error::new(ErrorKind::IsADirectory, step, path)),
        _ => return Err(not_regular(path)),
    }
    let system = rustix::fs::fstatfs(&fd).map_err(|e| Error::io(step, path, e))?;
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    let told = size > 0 && !KERNEL_FILE_SYSTEMS.contains(&system.f_type.cast_unsigned());
    Ok((fd, told.then_some(size)))
}

/// The content of a file without a reliable size, read whole before the answer.
fn read_sizeless(path: &str, fd: &OwnedFd) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let mut piece = vec![0; DATA_BYTES_MAX];
    loop {
        match rustix::io::read(fd, piece.as_mut_slice()) {
            Ok(0) => return Ok(bytes),
            Ok(count) => bytes.extend_from_slice(piece.get(..count).unwrap_or_default()),
            Err(Errno::INTR) => {}
            Err(e) => return Err(Error::io("read file", path, e)),
        }
        if bytes.len() > SIZELESS_BYTES_MAX {
            let cause = format!("it does not tell its size and has more than {SIZELESS_BYTES_MAX} bytes");
            return Err(Error::new(ErrorKind::TooLarge, "read file", path).because(Reported(cause)));
        }
    }
}

fn send_bytes(channel: &mut Channel, bytes: &[u8], range: Option<(u64, u64)>) -> Result<(), Error> {
    channel.answer(Ok(Answer::File { size: bytes.len() as u64 }))?;
    let (offset, length) = range.unwrap_or((0, u64::MAX));
    let offset = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
    let rest = bytes.get(offset..).unwrap_or_default();
    let wanted = rest.get(..usize::try_from(length).unwrap_or(usize::MAX).min(rest.len())).unwrap_or_default();
    for piece in wanted.chunks(DATA_BYTES_MAX) {
        channel.send(FrameType::Data, piece)?;
    }
    channel.send(FrameType::End, &[])
}

fn send_file(
    channel: &mut Channel,
    path: &str,
    fd: &OwnedFd,
    size: u64,
    range: Option<(u64, u64)>,
) -> Result<(), Error> {
    let step = "read file";
    channel.answer(Ok(Answer::File { size }))?;
    let (mut offset, mut left) = match range {
        None => (0, size),
        Some((offset, length)) => (offset, length.min(size.saturating_sub(offset))),
    };
    let mut buffer = vec![0; DATA_BYTES_MAX];
    while left > 0 {
        let most = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let space = buffer.get_mut(..most).unwrap_or_default();
        match rustix::io::pread(fd, space, offset) {
            Ok(0) => {
                let cause = "the file became shorter while it was read; try again";
                return Err(Error::new(ErrorKind::AlreadyExists, step, path).because(Reported(cause.to_owned())));
            }
            Ok(count) => {
                channel.send(FrameType::Data, buffer.get(..count).unwrap_or_default())?;
                offset += count as u64;
                left -= count as u64;
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(Error::io(step, path, e)),
        }
    }
    channel.send(FrameType::End, &[])
}

fn not_regular(path: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, "read what is no regular file", path)
}
