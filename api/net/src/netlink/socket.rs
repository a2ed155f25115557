//! A netlink socket to netfilter in the namespace of the thread that opened it.
//!
//! Owns: sending and receiving. The kernel acknowledges a transaction's last message, or sends an error for each failed
//! message; the first error is returned.

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt;
use rustix::net::{RecvFlags, SendFlags};

use super::open::bound_socket;
use super::wire::{ACK, Attrs, DUMP, FAMILY_HEADER, HEADER, REQUEST, push_message};
use crate::error::{Cause, Error};

/// Send buffer for the largest transaction: a few hundred bytes for each element of each box.
const SEND_BYTES_MAX: usize = 64 << 20;
/// Receive buffer for a dump; the kernel sends parts of at most 32 KiB.
pub(super) const RECEIVE_BYTES: usize = 1 << 18;
/// Most repetitions of a dump that concurrent changes interrupt.
const DUMPS_MAX: u32 = 100;

const MESSAGE_ERROR: u16 = 2;
const MESSAGE_DONE: u16 = 3;
/// `NLM_F_DUMP_INTR`: the dump is inconsistent.
const INTERRUPTED: u16 = 0x10;

#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

/// A single request outside any transaction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request<'a> {
    /// The full type.
    pub(crate) kind: u16,
    /// Flags beside those that all requests have.
    pub(crate) flags: u16,
    /// The family header.
    pub(crate) family: [u8; FAMILY_HEADER],
    /// The attributes.
    pub(crate) body: &'a Attrs,
}

/// A received message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heard<'a> {
    /// Its full type.
    pub(crate) kind: u16,
    flags: u16,
    sequence: u32,
    /// The port id of the socket that caused it.
    pub(crate) port: u32,
    /// The content after the header.
    pub(crate) body: &'a [u8],
}

#[cfg(test)]
impl<'a> Heard<'a> {
    pub(crate) fn of(kind: u16, body: &'a [u8]) -> Self {
        Self { kind, flags: 0, sequence: 0, port: 0, body }
    }
}

/// The messages of one datagram. A truncated one ends the list.
pub(crate) fn messages(bytes: &[u8]) -> impl Iterator<Item = Heard<'_>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let header = rest.get(..HEADER)?;
        let word = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let half = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let length = word(0) as usize;
        let body = rest.get(HEADER..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Heard { kind: half(4), flags: half(6), sequence: word(8), port: word(12), body })
    })
}

impl Socket {
    pub(crate) fn open(what: &'static str) -> Result<Self, Error> {
        Self::open_in_groups(what, 0)
    }

    /// A socket that also receives the multicast groups whose bits are set.
    pub(crate) fn open_in_groups(what: &'static str, groups: u32) -> Result<Self, Error> {
        let failed = |e: Errno| Error::new("open", what, e);
        let fd = bound_socket(Some(rustix::net::netlink::NETFILTER), groups).map_err(failed)?;
        sockopt::set_socket_send_buffer_size_force(&fd, SEND_BYTES_MAX).map_err(failed)?;
        Ok(Self { fd, sequence: 0, buffer: vec![0; RECEIVE_BYTES] })
    }

    /// The descriptor, for a caller that only listens.
    pub(crate) fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// The socket's port id.
    pub(crate) fn port(&self) -> Result<u32, Error> {
        let failed = |e: Errno| Error::new("ask for the number of", "netlink socket", e);
        let own = rustix::net::getsockname(self.fd.as_fd()).map_err(failed)?;
        Ok(SocketAddrNetlink::try_from(own).map_err(failed)?.pid())
    }

    /// Commits a transaction, all or nothing. `encode` makes its bytes; it gets the sequence number of the first
    /// message and returns that of the last.
    pub(crate) fn commit(
        &mut self,
        what: &'static str,
        subject: &str,
        encode: impl FnOnce(u32) -> (Vec<u8>, u32),
    ) -> Result<(), Error> {
        let begin = self.sequence.wrapping_add(1);
        let (bytes, last) = encode(begin);
        self.sequence = last.wrapping_add(1);
        let failed = |e: Errno| Error::new(what, subject, e);
        self.send(&bytes).map_err(failed)?;
        let mut first = None;
        loop {
            let mut done = false;
            self.hear(|heard| {
                if heard.kind != MESSAGE_ERROR || heard.sequence.wrapping_sub(begin) > last.wrapping_sub(begin) {
                    return;
                }
                if let Some(errno) = errno(heard.body) {
                    first.get_or_insert(errno);
                }
                // An error of the whole transaction has the sequence number of the batch begin, and is the last
                // message.
                done |= heard.sequence == last || heard.sequence == begin;
            })
            .map_err(failed)?;
            if done {
                return first.map_or(Ok(()), |errno| Err(failed(errno)));
            }
        }
    }

    /// The bodies of a request's answer. `None`: the kernel has no such object.
    pub(crate) fn ask(
        &mut self,
        what: &'static str,
        subject: &str,
        request: &Request<'_>,
    ) -> Result<Option<Vec<Vec<u8>>>, Error> {
        self.question(what, subject, request).map(|(bodies, _)| bodies)
    }

    /// The bodies of all parts of a consistent dump. `None`: the kernel has no such object.
    pub(crate) fn dump(
        &mut self,
        what: &'static str,
        subject: &str,
        request: &Request<'_>,
    ) -> Result<Option<Vec<Vec<u8>>>, Error> {
        for _ in 0..DUMPS_MAX {
            let request = Request { flags: request.flags | DUMP, ..*request };
            let (bodies, interrupted) = self.question(what, subject, &request)?;
            if !interrupted {
                return Ok(bodies);
            }
        }
        Err(Error::new(what, subject, Cause::Invalid("it changes all the time")))
    }

    fn question(&mut self, what: &'static str, subject: &str, request: &Request<'_>) -> Result<Answer, Error> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        let failed = |e: Errno| Error::new(what, subject, e);
        let mut bytes = Vec::new();
        let Request { kind, flags, family, body } = *request;
        push_message(&mut bytes, kind, REQUEST | ACK | flags, sequence, family, body.as_bytes());
        self.send(&bytes).map_err(failed)?;
        let (mut bodies, mut interrupted) = (Vec::new(), false);
        loop {
            let mut end = None;
            self.hear(|heard| {
                if heard.sequence != sequence {
                    return;
                }
                interrupted |= heard.flags & INTERRUPTED != 0;
                match heard.kind {
                    MESSAGE_ERROR | MESSAGE_DONE => end = Some(errno(heard.body)),
                    _ => bodies.push(heard.body.get(FAMILY_HEADER..).unwrap_or_default().to_vec()),
                }
            })
            .map_err(failed)?;
            match end {
                None => {}
                Some(None) => return Ok((Some(bodies), interrupted)),
                Some(Some(Errno::NOENT)) => return Ok((None, false)),
                Some(Some(Errno::INTR)) => return Ok((Some(bodies), true)),
                Some(Some(errno)) => return Err(failed(errno)),
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<(), Errno> {
        rustix::net::sendto(&self.fd, bytes, SendFlags::empty(), &SocketAddrNetlink::new(0, 0)).map(|_| ())
    }

    /// Waits for one datagram, and passes each of its messages on.
    fn hear(&mut self, mut take: impl FnMut(&Heard<'_>)) -> Result<(), Errno> {
        let length = loop {
            match rustix::net::recv(&self.fd, &mut self.buffer[..], RecvFlags::TRUNC) {
                Err(Errno::INTR) => {}
                other => break other?.1,
            }
        };
        // Not observed; a truncated answer must not count as complete.
        let all = self.buffer.get(..length).ok_or(Errno::MSGSIZE)?;
        messages(all).for_each(|heard| take(&heard));
        Ok(())
    }
}

type Answer = (Option<Vec<Vec<u8>>>, bool);

/// The error in the body of an error message; none in an acknowledgement.
fn errno(body: &[u8]) -> Option<Errno> {
    let number = i32::from_ne_bytes(body.get(..4)?.try_into().ok()?);
    (number != 0).then(|| Errno::from_raw_os_error(-number))
}
