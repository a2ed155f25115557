//! nftables requests and transactions.
//!
//! Why this is not `netlink-packet-netfilter` (0.4): more than half of the ruleset's expressions (`ct`, `counter`,
//! `limit`, `connlimit`, `masq`, `redir`, `reject`, `log`, `fib`) are untyped bytes there, so more would be written by
//! hand than reused. It has no batch, and it reads set elements only together with expressions it knows. The rest of
//! the work is this file and [`wire`](crate::netlink).

use crate::error::Error;
use crate::netlink::{self, ACK, Attrs, FAMILY_HEADER, REQUEST, Request, push_message};

/// The netfilter subsystem (`NFNL_SUBSYS_NFTABLES`).
pub(crate) const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// `NFPROTO_INET`: IPv4 and IPv6.
pub(crate) const FAMILY: u8 = 1;
/// The header after a message's netlink header.
const FAMILY_BYTES: [u8; FAMILY_HEADER] = [FAMILY, 0, 0, 0];

/// The operation of a message (`enum nf_tables_msg_types`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Verb {
    NewTable = 0,
    GetTable = 1,
    DeleteTable = 2,
    NewChain = 3,
    NewRule = 6,
    DeleteRule = 8,
    NewSet = 9,
    NewElements = 12,
    GetElements = 13,
    DeleteElements = 14,
}

impl Verb {
    /// The full message type. The kernel's notifications use the same.
    fn kind(self) -> u16 {
        SUBSYSTEM << 8 | u16::from(self as u8)
    }
}

/// The connection to nftables.
#[derive(Debug)]
pub(super) struct Socket(netlink::Socket);

impl Socket {
    pub(super) fn open() -> Result<Self, Error> {
        netlink::Socket::open("netlink socket for nftables").map(Self)
    }

    /// The port id, which the kernel's notifications name.
    pub(super) fn port(&self) -> Result<u32, Error> {
        self.0.port()
    }

    /// Commits all of `batch`, or nothing.
    pub(super) fn commit(&mut self, what: &'static str, subject: &str, batch: &Batch) -> Result<(), Error> {
        if batch.is_empty() { Ok(()) } else { self.0.commit(what, subject, |begin| batch.encode(begin)) }
    }

    /// The bodies of a request's answer. `None`: the kernel has no such object.
    pub(super) fn ask(&mut self, verb: Verb, subject: &str, body: &Attrs) -> Result<Option<Vec<Vec<u8>>>, Error> {
        self.0.ask("read nftables", subject, &Request { kind: verb.kind(), flags: 0, family: FAMILY_BYTES, body })
    }

    /// The bodies of all parts of a consistent dump. `None`: the kernel has no such object.
    pub(super) fn dump(&mut self, verb: Verb, subject: &str, body: &Attrs) -> Result<Option<Vec<Vec<u8>>>, Error> {
        self.0.dump("read nftables", subject, &Request { kind: verb.kind(), flags: 0, family: FAMILY_BYTES, body })
    }
}

/// Changes that are applied atomically.
#[derive(Debug, Default)]
pub(super) struct Batch {
    messages: Vec<(Verb, u16, Attrs)>,
}

impl Batch {
    pub(super) fn push(&mut self, verb: Verb, flags: u16, body: Attrs) {
        self.messages.push((verb, flags, body));
    }

    pub(super) fn append(&mut self, mut other: Self) {
        self.messages.append(&mut other.messages);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// The bytes to send, and the sequence number of the last message, which the kernel acknowledges. The first message
    /// has the number `sequence`.
    pub(super) fn encode(&self, sequence: u32) -> (Vec<u8>, u32) {
        let mut out = Vec::new();
        let mut number = sequence;
        let [high, low] = SUBSYSTEM.to_be_bytes();
        push_message(&mut out, BATCH_BEGIN, REQUEST, number, [0, 0, high, low], &[]);
        for (index, (verb, flags, body)) in self.messages.iter().enumerate() {
            number = number.wrapping_add(1);
            let ack = if index + 1 == self.messages.len() { ACK } else { 0 };
            let kind = verb.kind();
            push_message(&mut out, kind, REQUEST | flags | ack, number, FAMILY_BYTES, body.as_bytes());
        }
        push_message(&mut out, BATCH_END, REQUEST, number.wrapping_add(1), [0, 0, high, low], &[]);
        (out, number)
    }
}

#[cfg(test)]
mod tests {
    use super::super::nfta::{chain, table};
    use super::*;
    use crate::netlink::CREATE;

    #[test]
    fn only_the_last_message_of_a_batch_is_acknowledged() {
        let mut batch = Batch::default();
        assert!(batch.is_empty());
        batch.push(Verb::NewTable, CREATE, Attrs::new().text(table::NAME, "icebox"));
        batch.push(Verb::NewChain, CREATE, Attrs::new().text(chain::TABLE, "icebox"));
        let (bytes, last) = batch.encode(100);
        assert_eq!(last, 102);
        let mut found = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let length = u32::from_ne_bytes(rest[..4].try_into().expect("four")) as usize;
            let kind = u16::from_ne_bytes(rest[4..6].try_into().expect("two"));
            found.push((kind, u16::from_ne_bytes(rest[6..8].try_into().expect("two"))));
            rest = &rest[length..];
        }
        assert_eq!(found, [(0x10, 1), (0xa00, 0x401), (0xa03, 0x405), (0x11, 1)]);
    }
}
