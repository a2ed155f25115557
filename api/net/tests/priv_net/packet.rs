//! IPv4 packets made and read by hand, so that a test can send what no decent socket would.

use std::net::{Ipv4Addr, SocketAddrV4};

use icebox_net::error::Error;
use icebox_net::namespace::Namespace;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
/// `IPPROTO_RAW`: the sender writes the IP header.
const RAW: u32 = 255;
/// `ETH_P_IP`
const ETHERTYPE_IPV4: u16 = 0x0800;
/// Room for what is seen between two looks.
const RECORDER_BYTES: usize = 32 << 20;
const SOURCE_PORT: u16 = 40_000;

/// A packet that is to be sent.
#[derive(Debug, Clone)]
pub(crate) struct Packet {
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
    pub(crate) protocol: u8,
    pub(crate) port: u16,
    pub(crate) options: Vec<u8>,
    pub(crate) text: String,
}

/// What a packet that came along says of itself.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
    pub(crate) bytes: Vec<u8>,
}

impl Seen {
    pub(crate) fn has(&self, text: &str) -> bool {
        self.bytes.windows(text.len()).any(|w| w == text.as_bytes())
    }
}

fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let bytes = parts.concat();
    let pairs = bytes.chunks(2).map(|c| u32::from(u16::from_be_bytes([c[0], *c.get(1).unwrap_or(&0)])));
    let mut sum: u32 = pairs.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

impl Packet {
    pub(crate) fn new(protocol: u8, source: Ipv4Addr, destination: Ipv4Addr, text: &str) -> Self {
        Self { source, destination, protocol, port: 9, options: Vec::new(), text: text.to_owned() }
    }

    fn body(&self) -> Vec<u8> {
        let text = self.text.as_bytes();
        let (source, destination) = (self.source.octets(), self.destination.octets());
        let ports = [SOURCE_PORT.to_be_bytes(), self.port.to_be_bytes()].concat();
        let pseudo =
            |length: usize| [&source[..], &destination, &[0, self.protocol], &(length as u16).to_be_bytes()].concat();
        match self.protocol {
            UDP => {
                let length = (8 + text.len()) as u16;
                let mut head = [&ports[..], &length.to_be_bytes(), &[0, 0]].concat();
                let sum = checksum(&[&pseudo(length.into()), &head, text]);
                head[6..8].copy_from_slice(&sum);
                [&head[..], text].concat()
            }
            TCP => {
                // A SYN.
                let mut head = [&ports[..], &[0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]].concat();
                let sum = checksum(&[&pseudo(head.len() + text.len()), &head, text]);
                head[16..18].copy_from_slice(&sum);
                [&head[..], text].concat()
            }
            ICMP => {
                let mut head = vec![8, 0, 0, 0, 0, 1, 0, 1];
                let sum = checksum(&[&head, text]);
                head[2..4].copy_from_slice(&sum);
                [&head[..], text].concat()
            }
            _ => text.to_vec(),
        }
    }

    fn encode(&self) -> Vec<u8> {
        let body = self.body();
        assert_eq!(self.options.len() % 4, 0, "options are whole words");
        let words = 5 + self.options.len() / 4;
        let length = (words * 4 + body.len()) as u16;
        let mut head = vec![0x40 | words as u8, 0];
        head.extend(length.to_be_bytes());
        head.extend([0, 1, 0, 0, 64, self.protocol, 0, 0]);
        head.extend(self.source.octets());
        head.extend(self.destination.octets());
        head.extend(&self.options);
        let sum = checksum(&[&head]);
        head[10..12].copy_from_slice(&sum);
        [head, body].concat()
    }

    /// The same in two parts: the first eight bytes, which are all of a UDP header, and the rest.
    pub(crate) fn send_in_parts(&self, namespace: &Namespace) -> Result<(), rustix::io::Errno> {
        const FIRST: usize = 8;
        const MORE: u16 = 0x2000;
        let whole = self.encode();
        let (head, body) = whole.split_at(20);
        let part = |offset: u16, body: &[u8]| {
            let mut head = head.to_vec();
            head[2..4].copy_from_slice(&((20 + body.len()) as u16).to_be_bytes());
            head[6..8].copy_from_slice(&offset.to_be_bytes());
            head[10..12].copy_from_slice(&[0, 0]);
            let sum = checksum(&[&head]);
            head[10..12].copy_from_slice(&sum);
            [&head[..], body].concat()
        };
        let parts = [part(MORE, &body[..FIRST]), part(FIRST as u16 / 8, &body[FIRST..])];
        let send = || Ok(parts.iter().try_for_each(|bytes| self.send_bytes(bytes)));
        namespace.run(send).expect("a thread in the namespace")
    }

    /// Sends it from `namespace`. What the sender's own kernel refuses is told.
    pub(crate) fn send(&self, namespace: &Namespace) -> Result<(), rustix::io::Errno> {
        let sent = namespace.run(|| Ok(self.send_here()));
        sent.expect("a thread in the namespace")
    }

    fn send_here(&self) -> Result<(), rustix::io::Errno> {
        self.send_bytes(&self.encode())
    }

    fn send_bytes(&self, bytes: &[u8]) -> Result<(), rustix::io::Errno> {
        let protocol = Protocol::from_raw(RAW.try_into().expect("a number"));
        let socket =
            rustix::net::socket_with(AddressFamily::INET, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol))?;
        sockopt::set_socket_broadcast(&socket, true)?;
        let to = SocketAddrV4::new(self.destination, 0);
        rustix::net::sendto(&socket, bytes, SendFlags::empty(), &to).map(|_| ())
    }
}

/// Sees every IPv4 packet that comes into or leaves a namespace.
pub(crate) struct Recorder(rustix::fd::OwnedFd);

impl Recorder {
    pub(crate) fn new(namespace: &Namespace) -> Self {
        let open = || -> Result<_, Error> {
            let protocol = Protocol::from_raw(u32::from(ETHERTYPE_IPV4.to_be()).try_into().expect("a number"));
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = rustix::net::socket_with(AddressFamily::PACKET, SocketType::DGRAM, flags, Some(protocol));
            let socket = socket.expect("a packet socket");
            sockopt::set_socket_recv_buffer_size_force(&socket, RECORDER_BYTES).expect("room for packets");
            Ok(socket)
        };
        Self(namespace.run(open).expect("a recorder"))
    }

    /// What was seen since the last time.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        let mut buffer = [0; 65_536];
        let mut all = Vec::new();
        while let Ok((length, _)) = rustix::net::recv(&self.0, &mut buffer[..], RecvFlags::empty()) {
            let bytes = buffer[..length].to_vec();
            let address = |at: usize| Ipv4Addr::from([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
            if length >= 20 {
                all.push(Seen { source: address(12), destination: address(16), bytes });
            }
        }
        all
    }
}
