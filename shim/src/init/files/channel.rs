//! The connection of a file operation, which its child has taken over.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use icebox_runtime::process::close_all_but;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use crate::error::{Error, ErrorKind};
use crate::init::conn::Connection;
use crate::protocol::{Answer, Decoder, Envelope, Frame, FrameType, VERSION, WireError, encode, header};

/// The client must take or give bytes within this time.
const CLIENT_IDLE_SECONDS_MAX: u64 = 120;
/// An operation ends after this time, counted anew with each piece of data.
const OPERATION_SECONDS_MAX: u32 = 600;
/// One read of the connection.
const READ_BYTES: usize = 64 * 1024;

/// The client's connection, blocking.
#[derive(Debug)]
pub(super) struct Channel {
    fd: OwnedFd,
    decoder: Decoder,
}

impl Channel {
    /// Keeps the connection and closes everything else.
    pub(super) fn take(conn: Connection) -> Option<Self> {
        let Connection { fd, decoder, .. } = conn;
        close_all_but(std::iter::once(fd.as_raw_fd())).ok()?;
        rustix::io::ioctl_fionbio(&fd, false).ok()?;
        let idle = Some(Duration::from_secs(CLIENT_IDLE_SECONDS_MAX));
        set_socket_timeout(&fd, Timeout::Recv, idle).ok()?;
        set_socket_timeout(&fd, Timeout::Send, idle).ok()?;
        nix::unistd::alarm::set(OPERATION_SECONDS_MAX);
        Some(Self { fd, decoder })
    }

    pub(super) fn answer(&mut self, answer: Result<Answer, &Error>) -> Result<(), Error> {
        let message = Envelope { v: VERSION, m: answer.map_err(WireError::from) };
        self.send(FrameType::Response, &encode(&message)?)
    }

    pub(super) fn send(&mut self, kind: FrameType, payload: &[u8]) -> Result<(), Error> {
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
    pub(super) fn receive(&mut self) -> Result<Option<Frame>, Error> {
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
