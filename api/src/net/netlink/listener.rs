//! A netlink socket that the kernel tells something by itself, on the async runtime.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::RecvFlags;
use tokio::io::unix::AsyncFd;

use super::socket::{Heard, RECEIVE_BYTES, Socket, messages};
use crate::error::Error;

/// What was heard.
#[derive(Debug)]
pub(in crate::net) enum Heed<'a> {
    /// A message.
    Message(Heard<'a>),
    /// There was more than there was room for: some of it is lost.
    Lost,
}

/// The listener. It may be made in one namespace and heard anywhere.
#[derive(Debug)]
pub(in crate::net) struct Listener {
    fd: AsyncFd<OwnedFd>,
    buffer: Vec<u8>,
}

impl Listener {
    /// Of a socket that is bound already. Needs the runtime.
    pub(in crate::net) fn new(socket: Socket) -> Result<Self, Error> {
        let failed = |e: io::Error| Error::new("listen to", "netlink", e);
        let fd = socket.into_fd();
        rustix::io::ioctl_fionbio(&fd, true).map_err(|e| failed(e.into()))?;
        Ok(Self { fd: AsyncFd::new(fd).map_err(failed)?, buffer: vec![0; RECEIVE_BYTES] })
    }

    /// Waits for what comes next, and hands it on. An error is the end.
    pub(in crate::net) async fn hear(&mut self, mut take: impl FnMut(Heed<'_>)) -> io::Result<()> {
        let Self { fd, buffer } = self;
        let mut ready = fd.readable().await?;
        let received = ready.try_io(|fd| Ok(rustix::net::recv(fd, &mut buffer[..], RecvFlags::TRUNC)?.1));
        match received {
            Err(_) => Ok(()),
            Ok(Ok(length)) => {
                match self.buffer.get(..length) {
                    Some(bytes) => messages(bytes).for_each(|heard| take(Heed::Message(heard))),
                    None => take(Heed::Lost),
                }
                Ok(())
            }
            Ok(Err(e)) if e.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => {
                take(Heed::Lost);
                Ok(())
            }
            Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => Ok(()),
            Ok(Err(e)) => Err(e),
        }
    }
}
