//! A netlink socket to rtnetlink in the namespace of the thread that opened it.
//!
//! Owns: sending requests and receiving their answers. Several requests go in one datagram; the kernel carries them out in
//! order, also those that follow one that has failed. It reports each failure; only the last request is acknowledged, since
//! an acknowledgement is a datagram of its own. Leaves out: the content of messages.
//!
//! Why this is not `rtnetlink`'s own connection: that is a task with channels, and thus a runtime, for a socket that is used
//! by one thread for a few requests. The messages are that crate's.

use std::os::fd::OwnedFd;

use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{RecvFlags, SendFlags};

use super::open::bound_socket;

/// Receive buffer; the kernel sends parts of a dump of at most 32 KiB.
const RECEIVE_BYTES: usize = 1 << 16;
/// The group of changes of links (`RTMGRP_LINK`).
const LINK_GROUP: u32 = 1;

/// The socket.
#[derive(Debug)]
pub(crate) struct RouteSocket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

/// A request: flags beside those that all have, and the message.
pub(crate) type RouteRequest = (u16, RouteNetlinkMessage);

/// The answers to some requests.
#[derive(Debug, Default)]
pub(crate) struct RouteAnswers {
    /// For each request: the error, if it has failed.
    pub(crate) outcomes: Vec<Option<Errno>>,
    /// The messages that were asked for.
    pub(crate) messages: Vec<RouteNetlinkMessage>,
}

impl RouteSocket {
    /// A socket for requests.
    pub(crate) fn open() -> Result<Self, Errno> {
        Self::in_groups(0)
    }

    /// A socket that receives the changes of all links from now on.
    pub(crate) fn of_link_changes() -> Result<Self, Errno> {
        Self::in_groups(LINK_GROUP)
    }

    fn in_groups(groups: u32) -> Result<Self, Errno> {
        let fd = bound_socket(None, groups)?;
        Ok(Self { fd, sequence: 0, buffer: vec![0; RECEIVE_BYTES] })
    }

    /// Sends all requests and waits for all answers.
    pub(crate) fn ask(&mut self, requests: Vec<RouteRequest>) -> Result<RouteAnswers, Errno> {
        let first = self.sequence.wrapping_add(1);
        let mut datagram = Vec::new();
        let count = requests.len();
        for (index, (flags, message)) in requests.into_iter().enumerate() {
            self.sequence = self.sequence.wrapping_add(1);
            let mut header = NetlinkHeader::default();
            let ack = if index + 1 == count { NLM_F_ACK } else { 0 };
            header.flags = NLM_F_REQUEST | ack | flags;
            header.sequence_number = self.sequence;
            let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
            message.finalize();
            let start = datagram.len();
            datagram.resize((start + message.buffer_len()).next_multiple_of(4), 0);
            message.serialize(&mut datagram[start..]);
        }
        rustix::net::sendto(&self.fd, &datagram, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        let mut answers = RouteAnswers { outcomes: vec![None; count], messages: Vec::new() };
        let mut is_over = count == 0;
        while !is_over {
            for (header, payload) in self.receive()? {
                let index = header.sequence_number.wrapping_sub(first) as usize;
                let Some(outcome) = answers.outcomes.get_mut(index) else { continue };
                match payload {
                    NetlinkPayload::InnerMessage(message) => answers.messages.push(message),
                    NetlinkPayload::Error(error) => {
                        *outcome = (error.raw_code() != 0).then(|| Errno::from_raw_os_error(-error.raw_code()));
                        is_over |= index + 1 == count;
                    }
                    NetlinkPayload::Done(_) => is_over |= index + 1 == count,
                    _ => {}
                }
            }
        }
        Ok(answers)
    }

    /// The index of an interface in the socket's namespace. Unlike a request, the question does not wait for others that
    /// change links.
    pub(crate) fn index_of(&self, interface: &str) -> Result<u32, Errno> {
        rustix::net::netdevice::name_to_index(&self.fd, interface)
    }

    /// All objects of a kind.
    pub(crate) fn dump(&mut self, message: RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, Errno> {
        let answers = self.ask(vec![(NLM_F_DUMP, message)])?;
        answers.outcomes.into_iter().flatten().next().map_or(Ok(answers.messages), Err)
    }

    /// The messages of the next datagram about a change. None if there were more changes than the socket could hold.
    pub(crate) fn changes(&mut self) -> Result<Vec<RouteNetlinkMessage>, Errno> {
        match self.receive() {
            Ok(received) => Ok(received
                .into_iter()
                .filter_map(|(_, payload)| match payload {
                    NetlinkPayload::InnerMessage(message) => Some(message),
                    _ => None,
                })
                .collect()),
            Err(Errno::NOBUFS) => Ok(Vec::new()),
            Err(errno) => Err(errno),
        }
    }

    /// Waits for one datagram.
    fn receive(&mut self) -> Result<Vec<(NetlinkHeader, NetlinkPayload<RouteNetlinkMessage>)>, Errno> {
        let length = loop {
            match rustix::net::recv(&self.fd, &mut self.buffer[..], RecvFlags::TRUNC) {
                Err(Errno::INTR) => {}
                other => break other?.1,
            }
        };
        let mut rest = self.buffer.get(..length).ok_or(Errno::MSGSIZE)?;
        let mut messages = Vec::new();
        while let Some(Ok(word)) = rest.get(..4).map(<[u8; 4]>::try_from) {
            let length = u32::from_ne_bytes(word) as usize;
            let Some(bytes) = rest.get(..length).filter(|bytes| !bytes.is_empty()) else { break };
            // A message that the crate cannot read is none that was asked for.
            if let Ok(message) = NetlinkMessage::deserialize(bytes) {
                messages.push(message.into_parts());
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(messages)
    }
}
