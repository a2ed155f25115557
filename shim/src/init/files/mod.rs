//! File operations as the box's user, each in a child of its own.
//!
//! Invariants: the child gives up every descriptor but the connection and becomes the user before it looks at a path,
//! so the kernel checks every permission and a path can be as hostile as it likes; magic links are never followed;
//! only regular files are opened for their content, and never blocking; the child ends by itself when the client or
//! the disk stalls too long. Operations of several calls work relative to directory descriptors.
//!
//! An answered change is on disk: files are flushed before they get their name, and the directory afterwards.
//!
//! Not here: ownership and extended attributes of a replaced file (it becomes the user's own).

mod change;
mod list;
mod path;
mod read;
mod remove;
mod write;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use icebox_runtime::process::{become_user, close_all_but, exit_now};
use rustix::fs::Mode;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use super::conn::Connection;
use super::user::Accounts;
use crate::error::{Error, ErrorKind};
use crate::protocol::{Answer, Decoder, Envelope, Frame, FrameType, Operation, VERSION, WireError, encode, header};

/// The client must take or give bytes within this time.
const CLIENT_IDLE_SECONDS_MAX: u64 = 120;
/// An operation ends after this time, counted anew with each piece of data.
const OPERATION_SECONDS_MAX: u32 = 600;
/// One read of the connection.
const READ_BYTES: usize = 64 * 1024;

/// Does one operation and ends. Only in a forked child.
pub(crate) fn work(conn: Option<Connection>, operation: Operation) -> ! {
    if let Some(conn) = conn
        && let Some(mut channel) = Channel::take(conn)
    {
        let result = become_box_user().and_then(|()| perform(&mut channel, operation));
        if let Err(error) = result {
            // The client may be gone; there is no other receiver.
            let _ = channel.answer(Err(&error));
        }
    }
    exit_now(0)
}

fn become_box_user() -> Result<(), Error> {
    let identity = Accounts::read().resolve(None)?;
    become_user(&identity.user()).map_err(|failure| Error::io(failure.step.name(), "", failure.errno))?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    Ok(())
}

fn perform(channel: &mut Channel, operation: Operation) -> Result<(), Error> {
    match operation {
        Operation::FileRead { path, range } => return read::read(channel, &path, range),
        Operation::FileWrite { path } => return write::write(channel, &path),
        Operation::FileList { path } => return list::list(channel, &path),
        Operation::FileStat { path, follow } => {
            let stat = change::stat(&path, follow)?;
            return channel.answer(Ok(Answer::Stat(stat)));
        }
        Operation::FileMkdir { path, parents } => change::mkdir(&path, parents)?,
        Operation::FileRename { from, to } => change::rename(&from, &to)?,
        Operation::FileRemove { path, recursive } => remove::remove(&path, recursive)?,
        _ => {
            return Err(Error::new(ErrorKind::InvalidInput, "read operation", ""));
        }
    }
    channel.answer(Ok(Answer::Done))
}

/// The client's connection, blocking.
#[derive(Debug)]
struct Channel {
    fd: OwnedFd,
    decoder: Decoder,
}

impl Channel {
    /// Keeps the connection and closes everything else.
    fn take(conn: Connection) -> Option<Self> {
        let Connection { fd, decoder, .. } = conn;
        close_all_but(std::iter::once(fd.as_raw_fd())).ok()?;
        rustix::io::ioctl_fionbio(&fd, false).ok()?;
        let idle = Some(Duration::from_secs(CLIENT_IDLE_SECONDS_MAX));
        set_socket_timeout(&fd, Timeout::Recv, idle).ok()?;
        set_socket_timeout(&fd, Timeout::Send, idle).ok()?;
        nix::unistd::alarm::set(OPERATION_SECONDS_MAX);
        Some(Self { fd, decoder })
    }

    fn answer(&mut self, answer: Result<Answer, &Error>) -> Result<(), Error> {
        let message = Envelope { v: VERSION, m: answer.map_err(WireError::from) };
        self.send(FrameType::Response, &encode(&message)?)
    }

    fn send(&mut self, kind: FrameType, payload: &[u8]) -> Result<(), Error> {
        nix::unistd::alarm::set(OPERATION_SECONDS_MAX);
        let head = header(kind, payload.len());
        self.send_all(&head)?;
        self.send_all(payload)
    }

    fn send_all(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            match rustix::io::write(&self.fd, bytes) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(Error::io("send to client", "", e)),
            }
        }
        Ok(())
    }

    /// The client's next frame; `None` when it is gone.
    fn receive(&mut self) -> Result<Option<Frame>, Error> {
        nix::unistd::alarm::set(OPERATION_SECONDS_MAX);
        let mut bytes = [0; READ_BYTES];
        loop {
            let frame = self.decoder.next_frame();
            if let Some(frame) =
                frame.map_err(|e| Error::new(ErrorKind::InvalidInput, "decode frame from client", "").because(e))?
            {
                return Ok(Some(frame));
            }
            match rustix::io::read(&self.fd, &mut bytes) {
                Ok(0) => return Ok(None),
                Ok(count) => self.decoder.push(bytes.get(..count).unwrap_or_default()),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(Error::io("receive from client", "", io::Error::from(e))),
            }
        }
    }
}
