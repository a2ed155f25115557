//! The conversation between the caller and the container's first process while it is being set up: one packet per
//! message, descriptors beside them, end of file when `execve` has closed the socket.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
};

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};

use crate::{Error, Result, Step, error::OnStep as _};

const MESSAGE_BYTES_MAX: usize = 16 * 1024;

/// From the first process to the caller.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToParent {
    /// Set-up failed; the process ends.
    Failed(Error),
    /// Something was degraded; the container runs.
    Warning(String),
    /// The pseudo terminal's own side comes with this message.
    Terminal,
    /// Everything is done but `execve`, which waits for `start`.
    Waiting,
}

/// From the caller to the first process.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) enum ToChild {
    /// The id maps are written.
    Mapped,
    /// The root file system comes with this message as a detached mount.
    Root,
    /// The next mount from a block device comes with this message, detached.
    Mounted,
}

/// One end.
pub(crate) struct Sync(OwnedFd);

impl Sync {
    pub(crate) fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Self(a), Self(b)))
    }

    pub(crate) fn send<T: Serialize>(&self, message: &T, fd: Option<&OwnedFd>) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        let raw: Vec<RawFd> = fd.iter().map(|fd| fd.as_raw_fd()).collect();
        let control = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &control[..0] } else { &control[..] };
        sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(&bytes)], control, MsgFlags::MSG_NOSIGNAL, None)?;
        Ok(())
    }

    /// Waits for this message of the caller. Returns the descriptor beside it.
    pub(super) fn expect(&self, wanted: &ToChild, step: Step) -> Result<Option<OwnedFd>> {
        match self.receive::<ToChild>().on(step, "the caller's message")? {
            Some((message, fd)) if message == *wanted => Ok(fd),
            Some((other, _)) => Err(Error::invalid(step, "sync", format!("{other:?} came, {wanted:?} was due"))),
            None => Err(Error::invalid(step, "sync", "the caller went away")),
        }
    }

    /// The next message and the descriptor beside it; `None` at end of file.
    pub(crate) fn receive<T: for<'a> Deserialize<'a>>(&self) -> io::Result<Option<(T, Option<OwnedFd>)>> {
        let mut bytes = vec![0_u8; MESSAGE_BYTES_MAX];
        let mut space = nix::cmsg_space!(RawFd);
        let (length, fd) = loop {
            let mut buffer = [IoSliceMut::new(&mut bytes)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            match recvmsg::<()>(self.0.as_raw_fd(), &mut buffer, Some(&mut space), flags) {
                Ok(message) => {
                    let mut fd = None;
                    for control in message.cmsgs()? {
                        if let ControlMessageOwned::ScmRights(raw) = control {
                            fd = raw.into_iter().map(crate::sys::fd::own).next_back();
                        }
                    }
                    break (message.bytes, fd);
                }
                Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        };
        if length == 0 {
            return Ok(None);
        }
        Ok(Some((serde_json::from_slice(&bytes[..length])?, fd)))
    }
}

impl AsFd for Sync {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for Sync {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}
