//! A server that listens on some ports of all addresses, reads its input, and answers with a word.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::{DEADLINE, listen};
use crate::netns::Netns;

/// The answer to each connection or datagram.
pub const WORD: &[u8] = b"SINK\n";

/// Something that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// Where it came to; of UDP only the port is told.
    pub to: SocketAddr,
    /// Who it came from.
    pub from: IpAddr,
    /// The bytes that came: of TCP the first ones only.
    pub bytes: Vec<u8>,
}

/// Listening sockets, and what came to them.
#[derive(Debug, Clone)]
pub struct Sink {
    hits: Arc<Mutex<Vec<Hit>>>,
}

impl Sink {
    /// Listens.
    #[must_use]
    pub fn start(namespace: &Netns, ports: &[u16]) -> Self {
        let sink = Self { hits: Arc::default() };
        for port in ports {
            sink.tcp(namespace, *port);
            sink.udp(namespace, *port);
        }
        sink
    }

    /// All that came until now.
    #[must_use]
    pub fn hits(&self) -> Vec<Hit> {
        self.hits.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Adds what came to another one.
    pub fn add(&self, more: Vec<Hit>) {
        more.into_iter().for_each(|hit| self.note(hit));
    }

    fn note(&self, hit: Hit) {
        self.hits.lock().unwrap_or_else(PoisonError::into_inner).push(hit);
    }

    fn tcp(&self, namespace: &Netns, port: u16) {
        let listener = listen(namespace, port);
        let sink = self.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                let (Ok(to), Ok(from)) = (stream.local_addr(), stream.peer_addr()) else { continue };
                // A connection counts even if nothing is sent.
                sink.note(Hit { protocol: "tcp", to, from: from.ip(), bytes: Vec::new() });
                let sink = sink.clone();
                thread::spawn(move || {
                    let _ = stream.set_read_timeout(Some(DEADLINE));
                    let _ = stream.write_all(WORD);
                    let mut buffer = vec![0; 4096];
                    if let Ok(length @ 1..) = stream.read(&mut buffer) {
                        buffer.truncate(length);
                        sink.note(Hit { protocol: "tcp", to, from: from.ip(), bytes: buffer });
                    }
                });
            }
        });
    }

    fn udp(&self, namespace: &Netns, port: u16) {
        let bind = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).expect("bind");
        let socket = namespace.run(bind);
        let sink = self.clone();
        thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let to = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
                sink.note(Hit { protocol: "udp", to, from: from.ip(), bytes: buffer[..length].to_vec() });
                let _ = socket.send_to(WORD, from);
            }
        });
    }
}
