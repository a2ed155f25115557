//! The kernel's connection tracking table, for one box at a time.
//!
//! Owns: listing and forgetting a box's connections. They are the connections that the box began; connections to a box
//! do not exist. The kernel filters them, so the entries of others cost only the walk.

use std::net::Ipv4Addr;

use super::netlink::{Attrs, FAMILY_HEADER, Request, Socket, attribute, be32, be64};
use crate::error::Error;

/// Most connections listed.
pub(crate) const LISTED_MAX: usize = 200;
/// `NFNL_SUBSYS_CTNETLINK`
const SUBSYSTEM: u16 = 1;
const MESSAGE_GET: u16 = SUBSYSTEM << 8 | 1;
const MESSAGE_DELETE: u16 = SUBSYSTEM << 8 | 2;
/// `AF_INET`
const FAMILY: [u8; FAMILY_HEADER] = [2, 0, 0, 0];
const STATUS_DNAT: u32 = 1 << 5;
const STATUS_ANSWERED: u32 = 1 << 1;
const IPPROTO_UDP: u8 = 17;
const PORT_DNS: u16 = 53;
/// Names of `enum tcp_conntrack`, as `ss` prints them.
const TCP_STATES: [&str; 10] = [
    "none",
    "syn-sent",
    "syn-recv",
    "established",
    "fin-wait",
    "close-wait",
    "last-ack",
    "time-wait",
    "closed",
    "syn-sent",
];

/// A tracked connection of a box. The kernel tracks datagrams and their answers as connections too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// The protocol number.
    pub protocol: u8,
    /// The destination address, as the box sent it.
    pub destination: Ipv4Addr,
    /// The destination port, if the protocol has ports.
    pub port: Option<u16>,
    /// For TCP, its state; for other protocols, whether an answer came.
    pub state: &'static str,
    /// The connection goes to one of our proxies.
    pub is_proxied: bool,
    /// Bytes from the box and to it, if the kernel counts them (`nf_conntrack_acct`).
    pub bytes: Option<(u64, u64)>,
}

impl Connection {
    /// True for a DNS question that does not go to our proxy.
    pub(super) fn asks_names_directly(&self) -> bool {
        self.protocol == IPPROTO_UDP && self.port == Some(PORT_DNS) && !self.is_proxied
    }
}

/// Connections of a box.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Connections {
    /// Number of connections.
    pub count: usize,
    /// Some of them, at most [`LISTED_MAX`].
    pub listed: Vec<Connection>,
}

/// The netlink socket to the table, in the namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct Tracker {
    socket: Socket,
}

impl Tracker {
    pub(super) fn open() -> Result<Self, Error> {
        Ok(Self { socket: Socket::open("netlink socket for connections")? })
    }

    /// The tracked connections of a box.
    pub(super) fn connections(&mut self, guest: Ipv4Addr) -> Result<Connections, Error> {
        let bodies = self.of(guest)?;
        let all = bodies.iter().filter_map(|body| read(body, guest));
        Ok(Connections { count: all.clone().count(), listed: all.take(LISTED_MAX).collect() })
    }

    /// Forgets the connections of a box that `which` selects. Later packets for them belong to no connection.
    pub(super) fn forget(&mut self, guest: Ipv4Addr, which: impl Fn(&Connection) -> bool) -> Result<(), Error> {
        let bodies = self.of(guest)?;
        let picked = bodies.iter().filter(|body| read(body, guest).is_some_and(|connection| which(&connection)));
        picked.into_iter().try_for_each(|body| self.forget_one(body))
    }

    /// Forgets all connections from an address that `whose` selects. This lists the connections of all sources.
    pub(super) fn forget_all(&mut self, whose: impl Fn(Ipv4Addr) -> bool) -> Result<(), Error> {
        let request = Request { kind: MESSAGE_GET, flags: 0, family: FAMILY, body: &Attrs::new() };
        let bodies = self.socket.dump("list connections of", "boxes", &request)?.unwrap_or_default();
        let picked = bodies.iter().filter(|body| source(body).is_some_and(&whose));
        picked.into_iter().try_for_each(|body| self.forget_one(body))
    }

    fn forget_one(&mut self, body: &[u8]) -> Result<(), Error> {
        let Some(tuple) = attribute(body, 1) else { return Ok(()) };
        // The id is included, so a new connection with the same tuple is not deleted instead.
        let attrs = Attrs::new().nested_bytes(1, tuple);
        let attrs = attribute(body, 12).map_or(attrs.clone(), |id| attrs.bytes(12, id));
        let request = Request { kind: MESSAGE_DELETE, flags: 0, family: FAMILY, body: &attrs };
        // An entry that expired by itself is fine too.
        let subject = source(body).map_or_else(String::new, |address| address.to_string());
        self.socket.ask("forget connection of", &subject, &request).map(drop)
    }

    fn of(&mut self, guest: Ipv4Addr) -> Result<Vec<Vec<u8>>, Error> {
        const BY_SOURCE: u32 = 1;
        let address = Attrs::new().nested(1, &Attrs::new().bytes(1, &guest.octets()));
        let filter = Attrs::new().bytes(1, &BY_SOURCE.to_ne_bytes()).bytes(2, &0_u32.to_ne_bytes());
        let body = Attrs::new().nested(1, &address).nested(25, &filter);
        let request = Request { kind: MESSAGE_GET, flags: 0, family: FAMILY, body: &body };
        Ok(self.socket.dump("list connections of", &guest.to_string(), &request)?.unwrap_or_default())
    }
}

/// An address of a connection's first packet: 1 is the source, 2 the destination.
fn address(body: &[u8], kind: u16) -> Option<Ipv4Addr> {
    let bytes = attribute(attribute(attribute(body, 1)?, 1)?, kind)?;
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?))
}

fn source(body: &[u8]) -> Option<Ipv4Addr> {
    address(body, 1)
}

/// Parses a connection from the kernel; none if it is not the box's.
fn read(body: &[u8], guest: Ipv4Addr) -> Option<Connection> {
    if source(body)? != guest {
        return None;
    }
    let ports = attribute(attribute(body, 1)?, 2)?;
    let protocol = *attribute(ports, 1)?.first()?;
    let port = attribute(ports, 3).and_then(|two| Some(u16::from_be_bytes(two.try_into().ok()?)));
    let status = attribute(body, 3).and_then(be32)?;
    let tcp = attribute(body, 4).and_then(|info| attribute(attribute(info, 1)?, 1)?.first());
    let state = match tcp {
        Some(state) => TCP_STATES.get(usize::from(*state)).copied().unwrap_or("unknown"),
        None if status & STATUS_ANSWERED != 0 => "answered",
        None => "unanswered",
    };
    let counted = |kind: u16| attribute(attribute(body, kind)?, 2).and_then(be64);
    let bytes = counted(9).zip(counted(10));
    Some(Connection {
        protocol,
        destination: address(body, 2)?,
        port,
        state,
        is_proxied: status & STATUS_DNAT != 0,
        bytes,
    })
}
