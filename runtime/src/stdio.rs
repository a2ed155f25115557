//! The owner of standard streams. A program that opens `/dev/stdout` or `/proc/self/fd/1` opens the pipe or terminal
//! behind it anew, and the kernel then asks for the right of its user, not for that of the open descriptor.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

use rustix::{
    fs::{FileType, Uid, fchown, fstat},
    io::Errno,
};

/// Makes `uid` the owner of a pipe or a terminal, so that programs of that user can open it by name.
///
/// Everything else stays as it is: a regular file or a device of the host may serve others, and standard input may be a
/// file such as `/etc/passwd`. So does a stream that does not belong to this process's user. The group stays too; on a
/// terminal it is `tty`.
///
/// # Errors
/// Those of fstat(2) and fchown(2), but for a user that the file system cannot hold.
pub fn give_to_user(stream: impl AsFd, uid: u32) -> io::Result<()> {
    let stream = stream.as_fd();
    if FileType::from_raw_mode(fstat(stream)?.st_mode) == FileType::CharacterDevice && rustix::termios::isatty(stream) {
        return give(stream, uid);
    }
    give_pipe_to_user(stream, uid)
}

/// As [`give_to_user`], but a terminal stays as it is: it is the caller's own, not one that was made for the program.
pub(crate) fn give_pipe_to_user(stream: BorrowedFd<'_>, uid: u32) -> io::Result<()> {
    match fstat(stream) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Fifo => give(stream, uid),
        // A closed standard stream has no owner.
        Ok(_) | Err(Errno::BADF) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn give(stream: BorrowedFd<'_>, uid: u32) -> io::Result<()> {
    let owner = fstat(stream)?.st_uid;
    if owner == uid || owner != rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    match fchown(stream, Some(Uid::from_raw(uid)), None) {
        // The id is not mapped here, or the file system is read-only: the stream can still be used by its descriptor.
        Err(Errno::INVAL | Errno::PERM | Errno::ROFS) => Ok(()),
        other => Ok(other?),
    }
}
