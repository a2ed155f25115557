//! Per-packet events of the firewall: a packet was refused, or a packet arrived for a frozen box.
//!
//! Owns: two NFLOG groups, read from their sockets into one bounded queue each. A slow consumer loses what does not
//! fit, and learns how much; no reader and no packet ever waits for it. The kernel limits the events of each box
//! ([`firewall`](super::firewall)), so one box does not hide another's refusals.
//!
//! Leaves out: the reaction to events.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;

use super::denial::{Denial, protocol_name};
use super::firewall::reason::{GROUP_ARRIVED, GROUP_REFUSED, Reason};
use super::netlink::{Attrs, FAMILY_HEADER, Heard, Heed, Listener, Request, Socket, attribute, be32};
use crate::error::Error;

/// Most queued events of each kind.
const EVENTS_MAX: usize = 1024;
/// `NFNL_SUBSYS_ULOG`
const SUBSYSTEM: u16 = 4;
const MESSAGE_PACKET: u16 = SUBSYSTEM << 8;
const MESSAGE_CONFIG: u16 = SUBSYSTEM << 8 | 1;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;

/// A refused packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The box that sent it.
    pub guest: Ipv4Addr,
    /// The reason, in readable words.
    pub rule: &'static str,
    /// The protocol number.
    pub protocol: u8,
    /// The destination; none if it was not IPv4.
    pub destination: Option<Ipv4Addr>,
    /// The destination port, if the protocol has ports.
    pub port: Option<u16>,
}

impl Refused {
    /// The form that is kept for the box's owner.
    #[must_use]
    pub fn denial(&self) -> Denial {
        let protocol = protocol_name(self.protocol);
        Denial { rule: self.rule.to_owned(), protocol, address: self.destination, port: self.port, name: None }
    }
}

/// An event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A packet of a box was refused.
    Refused(Refused),
    /// A packet arrived for a frozen box, other than a bare acknowledgement or a keep-alive probe.
    Arrived {
        /// The box.
        guest: Ipv4Addr,
    },
}

/// The queued events; arrivals come first.
#[derive(Debug)]
pub struct Events {
    refused: mpsc::Receiver<Refused>,
    arrived: mpsc::Receiver<Ipv4Addr>,
    lost: Arc<AtomicU64>,
}

impl Events {
    /// The next event. `None` when the host's side has ended.
    pub async fn next(&mut self) -> Option<Event> {
        tokio::select! {
            biased;
            Some(guest) = self.arrived.recv() => Some(Event::Arrived { guest }),
            Some(refused) = self.refused.recv() => Some(Event::Refused(refused)),
            else => None,
        }
    }

    /// Number of events lost because the consumer was too slow. One loss in the kernel counts as one.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

/// Opens both groups in the namespace of the calling thread.
pub(super) fn listeners() -> Result<(Vec<Listener>, Events), Error> {
    let lost = Arc::new(AtomicU64::new(0));
    let (refuse, refused) = mpsc::channel(EVENTS_MAX);
    let (arrive, arrived) = mpsc::channel(EVENTS_MAX);
    let listeners = vec![
        Listener::new(bind(GROUP_REFUSED)?, queue(refuse, Arc::clone(&lost), refused_in))?,
        Listener::new(bind(GROUP_ARRIVED)?, queue(arrive, Arc::clone(&lost), arrived_in))?,
    ];
    Ok((listeners, Events { refused, arrived, lost }))
}

fn queue<T: Send + 'static>(
    to: mpsc::Sender<T>,
    lost: Arc<AtomicU64>,
    read: fn(&[u8]) -> Option<T>,
) -> impl FnMut(Heed<'_>) + Send + 'static {
    move |heed| {
        let is_lost = match heed {
            Heed::Message(Heard { kind: MESSAGE_PACKET, body, .. }) => {
                let event = body.get(FAMILY_HEADER..).and_then(read);
                event.is_some_and(|event| matches!(to.try_send(event), Err(mpsc::error::TrySendError::Full(_))))
            }
            Heed::Message(_) => false,
            Heed::Lost => true,
        };
        if is_lost {
            lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A socket bound to a group: it receives the beginning of each packet, without delay.
fn bind(group: u16) -> Result<Socket, Error> {
    const BIND: u8 = 1;
    const COPY_PACKET: u8 = 2;
    /// More bytes than the rules ask for.
    const COPY_BYTES: u32 = 128;
    let mut socket = Socket::open("netlink socket for netfilter's log")?;
    let mut mode = COPY_BYTES.to_be_bytes().to_vec();
    mode.extend([COPY_PACKET, 0]);
    let body = Attrs::new().bytes(1, &[BIND]).bytes(2, &mode).be32(5, 1);
    let [high, low] = group.to_be_bytes();
    let request = Request { kind: MESSAGE_CONFIG, flags: 0, family: [0, 0, high, low], body: &body };
    socket.ask("listen to netfilter's log", &format!("group {group}"), &request)?;
    Ok(socket)
}

fn arrived_in(attributes: &[u8]) -> Option<Ipv4Addr> {
    Packet::read(attribute(attributes, 9)?)?.destination
}

fn refused_in(attributes: &[u8]) -> Option<Refused> {
    let name = attribute(attributes, 10)?.strip_suffix(&[0])?;
    let reason = Reason::ALL.into_iter().find(|reason| reason.name().as_bytes() == name)?;
    let packet = Packet::read(attribute(attributes, 9)?)?;
    let guest = if reason.has_trusted_source() {
        packet.source?
    } else {
        // The source is not trusted; the packet mark holds the address of the sending box.
        Ipv4Addr::from(be32(attribute(attributes, 2)?)?.to_ne_bytes())
    };
    let Packet { protocol, destination, port, .. } = packet;
    Some(Refused { guest, rule: reason.name(), protocol, destination, port })
}

/// The fields at the beginning of a packet.
struct Packet {
    protocol: u8,
    source: Option<Ipv4Addr>,
    destination: Option<Ipv4Addr>,
    port: Option<u16>,
}

impl Packet {
    fn read(bytes: &[u8]) -> Option<Self> {
        let first = *bytes.first()?;
        if first >> 4 != 4 {
            return Some(Self { protocol: *bytes.get(6)?, source: None, destination: None, port: None });
        }
        let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?));
        let protocol = *bytes.get(9)?;
        let transport = usize::from(first & 0x0f) * 4;
        let is_first_part = u16::from_be_bytes([*bytes.get(6)?, *bytes.get(7)?]) & 0x1fff == 0;
        let has_port = matches!(protocol, IPPROTO_TCP | IPPROTO_UDP) && is_first_part;
        let port = bytes.get(transport + 2..transport + 4).filter(|_| has_port);
        let port = port.map(|two| u16::from_be_bytes([two[0], two[1]]));
        Some(Self { protocol, source: Some(address(12)?), destination: Some(address(16)?), port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(protocol: u8) -> Vec<u8> {
        let mut bytes = vec![0x45, 0, 0, 40, 0, 1, 0, 0, 64, protocol, 0, 0, 10, 88, 0, 3, 192, 0, 2, 8];
        bytes.extend([0x9c, 0x40, 0x01, 0xbb]);
        bytes
    }

    fn told(name: &str, packet: &[u8]) -> Attrs {
        Attrs::new().be32(2, u32::from_ne_bytes([10, 88, 0, 7])).bytes(9, packet).text(10, name)
    }

    #[test]
    fn a_refusal_says_who_why_and_where() {
        let read = |attrs: &Attrs| refused_in(attrs.as_bytes());
        let refused = read(&told("deny-all", &packet(IPPROTO_TCP))).expect("a refusal");
        assert_eq!((refused.guest, refused.rule), ([10, 88, 0, 3].into(), "deny-all"));
        assert_eq!((refused.destination, refused.port), (Some([192, 0, 2, 8].into()), Some(443)));
        assert_eq!(refused.denial().protocol, "tcp");
        // An invalid source is not trusted.
        assert_eq!(read(&told("source address", &packet(47))).expect("a refusal").guest, Ipv4Addr::new(10, 88, 0, 7));
        assert_eq!(read(&told("deny-all", &packet(47))).expect("a refusal").port, None);
        let ipv6 = read(&told("IPv6", &[0x60, 0, 0, 0, 0, 8, 58, 255])).expect("a refusal");
        assert_eq!((ipv6.protocol, ipv6.destination), (58, None));
        assert_eq!(read(&told("another program's", &packet(IPPROTO_TCP))), None);
    }

    #[test]
    fn what_is_cut_short_is_no_event() {
        let whole = packet(IPPROTO_UDP);
        for length in 0..20 {
            assert_eq!(refused_in(told("host", &whole[..length]).as_bytes()), None, "{length} bytes");
        }
        let cut = refused_in(told("host", &whole[..21]).as_bytes()).expect("the header is there");
        assert_eq!(cut.port, None);
    }

    #[test]
    fn who_takes_nothing_loses_and_is_told() {
        let (to, mut from) = mpsc::channel(2);
        let lost = Arc::new(AtomicU64::new(0));
        let mut take = queue(to, Arc::clone(&lost), arrived_in);
        let body = [&[0; FAMILY_HEADER][..], told("arrived", &packet(IPPROTO_TCP)).as_bytes()].concat();
        (0..5).for_each(|_| take(Heed::Message(Heard::of(MESSAGE_PACKET, &body))));
        take(Heed::Lost);
        assert_eq!(lost.load(Ordering::Relaxed), 4);
        assert_eq!(from.try_recv(), Ok([192, 0, 2, 8].into()));
    }
}
