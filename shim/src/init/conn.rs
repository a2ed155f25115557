//! A connection of the init: frames in, frames out, never blocking.
//!
//! Invariants: descriptors are accepted only with the first bytes; bytes that cannot be sent at once are queued, and
//! every producer of data asks [`Connection::congested`] first, so the queue stays below [`QUEUE_BYTES_HIGH`] plus the
//! frames of one step. Leaves out: the meaning of frames.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SocketFlags};

use super::reactor::{Happened, Interest, Reactor, Token};
use crate::error::{Error, ErrorKind};
use crate::protocol::{
    Answer, Decoder, Envelope, Frame, FrameError, FrameType, HEADER_BYTES, REQUEST_FDS_MAX, VERSION, WireError, encode,
    header,
};

/// Above this, no more output is read for the connection.
pub(crate) const QUEUE_BYTES_HIGH: usize = 64 * 1024;

/// One peer.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) fd: OwnedFd,
    pub(crate) decoder: Decoder,
    /// Descriptors that came with the first bytes.
    pub(crate) fds: Vec<OwnedFd>,
    fds_max: usize,
    token: Token,
    queue: Vec<u8>,
    interest: Interest,
    /// To be closed as soon as the queue is sent.
    pub(crate) ending: bool,
    /// The peer is gone or broke the protocol.
    pub(crate) dead: bool,
}

/// The result of a read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// Bytes, now in the decoder.
    Bytes,
    /// No bytes are available now.
    Nothing,
    /// The peer sends no more.
    End,
}

impl Connection {
    /// Accepts a connection and watches it. `None`: the peer went away, or descriptors are short until others end.
    pub(crate) fn accept(
        listener: &OwnedFd,
        token: Token,
        limit: usize,
        fds_max: usize,
        reactor: &Reactor,
    ) -> Option<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = rustix::net::accept_with(listener, flags).ok()?;
        reactor.add(&fd, token, Interest::READ).ok()?;
        Some(Self {
            fd,
            decoder: Decoder::with_limit(limit),
            fds: Vec::new(),
            fds_max: fds_max.min(REQUEST_FDS_MAX),
            token,
            queue: Vec::new(),
            interest: Interest::READ,
            ending: false,
            dead: false,
        })
    }

    /// Reads on an event, through `scratch`. A connection that hangs up, fails, or breaks the protocol is at its end.
    pub(crate) fn receive_on(&mut self, event: Happened, scratch: &mut [u8]) -> Received {
        if event.readable && !self.ending {
            self.receive(scratch).unwrap_or(Received::End)
        } else if event.hung_up {
            Received::End
        } else {
            Received::Nothing
        }
    }

    /// Reads once, through `scratch`. Descriptors beyond the limit, or after the first bytes, are closed and end the
    /// connection.
    fn receive(&mut self, scratch: &mut [u8]) -> io::Result<Received> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(REQUEST_FDS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let mut parts = [IoSliceMut::new(scratch)];
        let message = match rustix::net::recvmsg(&self.fd, &mut parts, &mut control, flags) {
            Ok(message) => message,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(Received::Nothing),
            Err(e) => return Err(e.into()),
        };
        let mut came = Vec::new();
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = part {
                came.extend(fds);
            }
        }
        let truncated = message.flags.contains(ReturnFlags::CTRUNC);
        if truncated || self.fds.len() + came.len() > self.fds_max {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.fds.extend(came);
        if message.bytes == 0 {
            return Ok(Received::End);
        }
        // A read on a full stream may be the start of the next message: only the first read may carry descriptors.
        self.fds_max = self.fds.len();
        self.decoder.push(scratch.get(..message.bytes).unwrap_or_default());
        Ok(Received::Bytes)
    }

    /// The next whole frame that was received; nothing more once the connection ends.
    pub(crate) fn next_frame(&mut self) -> Option<Result<Frame, Error>> {
        if self.ending {
            return None;
        }
        let broken = |e: FrameError| Error::new(ErrorKind::InvalidInput, "decode frame", "").because(e);
        self.decoder.next_frame().map_err(broken).transpose()
    }

    /// Answers a request; with `last` the connection ends then.
    pub(crate) fn answer(&mut self, answer: Result<Answer, &Error>, last: bool) {
        let message = Envelope { v: VERSION, m: answer.map_err(WireError::from) };
        match encode(&message) {
            Ok(payload) => self.send(FrameType::Response, &payload),
            Err(_) => self.dead = true,
        }
        self.ending |= last;
    }

    /// True if the connection is to be closed.
    pub(crate) fn over(&self) -> bool {
        self.dead || (self.ending && self.idle())
    }

    /// True if the send queue is so long that producers must stop.
    pub(crate) fn congested(&self) -> bool {
        self.queue.len() >= QUEUE_BYTES_HIGH
    }

    /// Sends a frame, or queues the part that the socket does not take now.
    pub(crate) fn send(&mut self, kind: FrameType, payload: &[u8]) {
        if self.dead {
            return;
        }
        let head = header(kind, payload.len());
        let mut sent = 0;
        if self.queue.is_empty() {
            let parts = [IoSlice::new(&head), IoSlice::new(payload)];
            match rustix::io::writev(&self.fd, &parts) {
                Ok(count) => sent = count,
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => {
                    self.dead = true;
                    return;
                }
            }
        }
        if sent < HEADER_BYTES + payload.len() {
            let (head_sent, payload_sent) = (sent.min(HEADER_BYTES), sent.saturating_sub(HEADER_BYTES));
            self.queue.extend_from_slice(head.get(head_sent..).unwrap_or_default());
            self.queue.extend_from_slice(payload.get(payload_sent..).unwrap_or_default());
        }
    }

    /// Sends queued bytes, as far as the socket takes them.
    pub(crate) fn flush(&mut self) {
        let mut sent = 0;
        while let Some(rest) = self.queue.get(sent..).filter(|rest| !rest.is_empty()) {
            match rustix::io::write(&self.fd, rest) {
                Ok(count) => sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    self.dead = true;
                    break;
                }
            }
        }
        if sent == self.queue.len() {
            self.queue = Vec::new();
        } else {
            self.queue.drain(..sent);
        }
    }

    /// True if the send queue is empty.
    pub(crate) fn idle(&self) -> bool {
        self.queue.is_empty()
    }

    /// Watches for the events that are needed now. `reading` is false while no bytes are accepted from the peer.
    pub(crate) fn watch(&mut self, reactor: &Reactor, reading: bool) {
        let wanted = Interest { read: reading && !self.ending, write: !self.queue.is_empty() };
        if wanted != self.interest {
            if reactor.modify(&self.fd, self.token, wanted).is_err() {
                self.dead = true;
            }
            self.interest = wanted;
        }
    }
}
