//! Reading a regular file, whole or a range of it.

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use super::{Channel, path};
use crate::error::{Error, ErrorKind};
use crate::protocol::{Answer, DATA_BYTES_MAX, FrameType};

/// Files of /proc and the like say they are empty and are not; no more than this is read of them.
const SIZELESS_BYTES_MAX: u64 = 16 * 1024 * 1024;

pub(super) fn read(channel: &mut Channel, path: &str, range: Option<(u64, u64)>) -> Result<(), Error> {
    let step = "read file";
    let file = path::absolute(path)?;
    // Non-blocking, since opening a FIFO would wait for its other side.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = path::open(file, flags).map_err(|e| match e {
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
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    channel.answer(Ok(Answer::File { size }))?;
    // A file that grows while it is read must end somewhere.
    let end = if size == 0 { SIZELESS_BYTES_MAX } else { size };
    let (mut offset, mut left) = match range {
        None => (0, end),
        Some((offset, length)) => (offset, length.min(end.saturating_sub(offset))),
    };
    let mut buffer = vec![0; DATA_BYTES_MAX];
    while left > 0 {
        let most = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let space = buffer.get_mut(..most).unwrap_or_default();
        match rustix::io::pread(&fd, space, offset) {
            Ok(0) => break,
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
