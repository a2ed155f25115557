//! Counts the packets that come to a namespace, by where they want to go.
//!
//! It sees what the wire carries, before anything there could refuse it. So a test that finds nothing here knows that
//! nothing was let out, not only that no answer came.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, sockopt};

use crate::netns::Netns;

/// Every packet (`ETH_P_ALL`).
const ALL_PROTOCOLS: u16 = 3;
/// Room for what arrives while this thread does not run.
const BUFFER_BYTES: usize = 32 << 20;
/// As much of a packet as is looked at: the longest header of IPv4, and ports.
const HEAD_BYTES: usize = 128;
/// How long it may take until a capture that is not needed any more notices.
const LOOK_INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Where a packet wants to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// The address.
    pub address: IpAddr,
    /// The protocol's number.
    pub protocol: u8,
    /// The port; 0 for protocols that have none, and for fragments that do not begin a packet.
    pub port: u16,
}

type Counts = BTreeMap<Target, u64>;

#[derive(Debug)]
struct Shared {
    socket: OwnedFd,
    counts: Mutex<Counts>,
}

impl Shared {
    /// Counts what has come until now. Taking it off the socket and counting it is one step for all readers.
    fn drain(&self) -> MutexGuard<'_, Counts> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = [0; HEAD_BYTES];
        while let Ok((length, _)) = rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::DONTWAIT) {
            if let Some(target) = target(&buffer[..length]) {
                *counts.entry(target).or_default() += 1;
            }
        }
        counts
    }
}

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    shared: Arc<Shared>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Begins to count.
    #[must_use]
    pub fn start(namespace: &Netns) -> Self {
        let shared = Arc::new(Shared { socket: namespace.run(open), counts: Mutex::default() });
        let ends = Arc::new(AtomicBool::new(false));
        let (to, end) = (Arc::clone(&shared), Arc::clone(&ends));
        // So that the socket never fills up.
        let thread = thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                let mut poll = [PollFd::new(&to.socket, PollFlags::IN)];
                let _ = rustix::event::poll(&mut poll, Some(&LOOK_INTERVAL));
                drop(to.drain());
            }
        });
        Self { shared, ends, thread: Some(thread) }
    }

    /// All packets until now.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<Target, u64> {
        self.shared.drain().clone()
    }

    /// Packets to an address until now.
    #[must_use]
    pub fn to(&self, address: impl Into<IpAddr>) -> u64 {
        let address = address.into();
        self.counts().iter().filter(|(t, _)| t.address == address).map(|(_, n)| n).sum()
    }

    /// Packets to a port of any address until now.
    #[must_use]
    pub fn to_port(&self, protocol: u8, port: u16) -> u64 {
        self.counts().iter().filter(|(t, _)| t.protocol == protocol && t.port == port).map(|(_, n)| n).sum()
    }

    /// What came since `before`.
    #[must_use]
    pub fn since(&self, before: &BTreeMap<Target, u64>) -> BTreeMap<Target, u64> {
        let more = |(target, now): (Target, u64)| (target, now - before.get(&target).copied().unwrap_or(0));
        self.counts().into_iter().map(more).filter(|(_, n)| *n > 0).collect()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn open() -> OwnedFd {
    let protocol = Protocol::from_raw(u32::from(ALL_PROTOCOLS.to_be()).try_into().expect("a number"));
    let socket =
        rustix::net::socket_with(AddressFamily::PACKET, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(protocol));
    let socket = socket.expect("a packet socket");
    sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER_BYTES).expect("room for packets");
    socket
}

/// Reads the header. None for what is not IP.
fn target(packet: &[u8]) -> Option<Target> {
    let (address, protocol, payload): (IpAddr, u8, Option<&[u8]>) = match packet.first()? >> 4 {
        4 => {
            let octets: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
            let begins = u16::from_be_bytes(packet.get(6..8)?.try_into().ok()?) & 0x1fff == 0;
            let head = usize::from(packet[0] & 15) * 4;
            (Ipv4Addr::from(octets).into(), packet[9], begins.then(|| packet.get(head..)).flatten())
        }
        6 => {
            let octets: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
            (Ipv6Addr::from(octets).into(), packet[6], packet.get(40..))
        }
        _ => return None,
    };
    let port = match protocol {
        TCP | UDP => payload.and_then(|p| Some(u16::from_be_bytes(p.get(2..4)?.try_into().ok()?))).unwrap_or(0),
        _ => 0,
    };
    Some(Target { address, protocol, port })
}
