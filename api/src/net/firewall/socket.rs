//! A netlink socket to nftables in the namespace of the thread that opened it.
//!
//! Owns: sending and hearing. A transaction is answered for its last message, or with an error for each message that
//! failed; whichever was first is told.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::wire::{Attrs, Batch, DUMP, FAMILY_HEADER, HEADER, Verb, question};
use crate::error::{Cause, Error};

/// Room for the largest transaction: a few hundred bytes for each element of each box.
const SEND_BYTES_MAX: usize = 64 << 20;
/// Room for the answer to a dump; the kernel sends it in parts of at most 32 KiB.
const RECEIVE_BYTES: usize = 1 << 18;
/// The kernel answers at once, if it does at all.
const ANSWER_SECONDS_MAX: u64 = 20;
/// Times a dump is begun again because somebody changed something meanwhile.
const DUMPS_MAX: u32 = 100;

const MESSAGE_ERROR: u16 = 2;
const MESSAGE_DONE: u16 = 3;
/// `NLM_F_DUMP_INTR`: what was told is of different moments.
const INTERRUPTED: u16 = 0x10;

/// The connection.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

/// A message heard: type, flags, number, and what follows the header.
struct Heard<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

impl Socket {
    pub(super) fn open() -> Result<Self, Error> {
        let failed = |e: Errno| Error::new("open", "netlink socket for nftables", e);
        let protocol = Some(rustix::net::netlink::NETFILTER);
        let fd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)
            .map_err(failed)?;
        rustix::net::bind(&fd, &SocketAddrNetlink::new(0, 0)).map_err(failed)?;
        sockopt::set_socket_send_buffer_size_force(&fd, SEND_BYTES_MAX).map_err(failed)?;
        sockopt::set_socket_timeout(&fd, Timeout::Recv, Some(Duration::from_secs(ANSWER_SECONDS_MAX)))
            .map_err(failed)?;
        Ok(Self { fd, sequence: 0, buffer: vec![0; RECEIVE_BYTES] })
    }

    /// Does all of `batch`, or nothing.
    pub(super) fn commit(&mut self, what: &'static str, subject: &str, batch: &Batch) -> Result<(), Error> {
        if batch.is_empty() {
            return Ok(());
        }
        let begin = self.sequence.wrapping_add(1);
        let (bytes, last) = batch.encode(begin);
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
                // An error of the whole transaction has the number of its begin, and nothing follows it.
                done |= heard.sequence == last || heard.sequence == begin;
            })
            .map_err(failed)?;
            if done {
                return first.map_or(Ok(()), |errno| Err(failed(errno)));
            }
        }
    }

    /// The bodies of the answer to a question. `None`: the kernel has no such thing.
    pub(super) fn ask(&mut self, verb: Verb, subject: &str, body: &Attrs) -> Result<Option<Vec<Vec<u8>>>, Error> {
        self.question(verb, 0, subject, body).map(|(bodies, _)| bodies)
    }

    /// The bodies of all parts of a dump, all of one moment. `None`: the kernel has no such thing.
    pub(super) fn dump(&mut self, verb: Verb, subject: &str, body: &Attrs) -> Result<Option<Vec<Vec<u8>>>, Error> {
        for _ in 0..DUMPS_MAX {
            let (bodies, interrupted) = self.question(verb, DUMP, subject, body)?;
            if !interrupted {
                return Ok(bodies);
            }
        }
        Err(Error::new("read nftables", subject, Cause::Invalid("it changes all the time")))
    }

    fn question(&mut self, verb: Verb, flags: u16, subject: &str, body: &Attrs) -> Result<Answer, Error> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        let failed = |e: Errno| Error::new("read nftables", subject, e);
        self.send(&question(verb, flags | super::wire::ACK, sequence, body)).map_err(failed)?;
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

    /// Waits for one packet, and hands on each message in it.
    fn hear(&mut self, mut take: impl FnMut(&Heard<'_>)) -> Result<(), Errno> {
        let length = loop {
            match rustix::net::recv(&self.fd, &mut self.buffer[..], RecvFlags::TRUNC) {
                Err(Errno::INTR) => {}
                other => break other?.1,
            }
        };
        // Never seen; half an answer must not be taken for a whole one.
        let mut rest = self.buffer.get(..length).ok_or(Errno::MSGSIZE)?;
        while let Some(header) = rest.get(..HEADER) {
            let word = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
            let half = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
            let length = word(0) as usize;
            let body = rest.get(HEADER..length).ok_or(Errno::BADMSG)?;
            take(&Heard { kind: half(4), flags: half(6), sequence: word(8), body });
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(())
    }
}

type Answer = (Option<Vec<Vec<u8>>>, bool);

/// The error in the body of an error message; none in an acknowledgement.
fn errno(body: &[u8]) -> Option<Errno> {
    let number = i32::from_ne_bytes(body.get(..4)?.try_into().ok()?);
    (number != 0).then(|| Errno::from_raw_os_error(-number))
}
