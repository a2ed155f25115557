//! The upstream servers, and the exchange with one of them.
//!
//! Owns: the list of upstreams, and the exchange of one question. Each question has its own socket in the host side's
//! namespace: an unpredictable source port, connected, so the kernel drops datagrams of other senders. Its identifier
//! comes from the system's random numbers. A response counts only if it repeats both identifier and question.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::time::timeout;

use super::reply::PAYLOAD_BYTES_MAX;
use super::resolved::is_answer;
use crate::error::{Cause, Error};
use crate::namespace::Namespace;
use crate::sockets::Sockets;

const PORT_DNS: u16 = 53;
pub(super) const TRY_TIMEOUT: Duration = Duration::from_secs(2);
/// Most servers read from a file, as in the C library.
const SERVERS_MAX: usize = 3;
/// Bytes of a file that lists servers.
const FILE_BYTES_MAX: u64 = 64 << 10;
/// Interval between checks of the file.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The upstream servers.
#[derive(Debug)]
pub(super) struct Upstreams {
    fixed: Vec<SocketAddr>,
    path: PathBuf,
    known: Mutex<Known>,
}

/// Identifies a version of a file.
type Stamp = (SystemTime, u64, u64);

#[derive(Debug, Default)]
struct Known {
    looked: Option<Instant>,
    stamp: Option<Stamp>,
    servers: Vec<SocketAddr>,
}

impl Upstreams {
    /// `fixed` if not empty, otherwise the servers of the file.
    pub(super) fn new(fixed: Vec<SocketAddr>, path: PathBuf) -> Self {
        Self { fixed, path, known: Mutex::default() }
    }

    /// The current servers.
    pub(super) async fn servers(&self) -> Vec<SocketAddr> {
        if !self.fixed.is_empty() {
            return self.fixed.clone();
        }
        let stamp = {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if known.looked.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
                return known.servers.clone();
            }
            // Concurrent questions use the old list, unless there is none yet.
            if known.stamp.is_some() {
                known.looked = Some(Instant::now());
            }
            known.stamp
        };
        let read = read_servers(self.path.clone(), stamp).await;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.looked = Some(Instant::now());
        match read {
            Ok(None) => {}
            Ok(Some((stamp, servers))) => {
                tracing::info!(path = %self.path.display(), ?servers, "DNS servers");
                known.stamp = Some(stamp);
                known.servers = servers;
            }
            // A file that is being replaced may be missing for a moment; the old servers are better than none.
            Err(error) => tracing::warn!(error = error.chain(), "cannot read the list of DNS servers"),
        }
        known.servers.clone()
    }
}

/// The servers in the file, unless it is unchanged.
async fn read_servers(path: PathBuf, known: Option<Stamp>) -> Result<Option<(Stamp, Vec<SocketAddr>)>, Error> {
    use std::io::Read as _;
    use std::os::unix::fs::MetadataExt as _;
    let work = move || {
        let failed = |cause: std::io::Error| Error::new("read", path.display().to_string(), cause);
        let mut file = std::fs::File::open(&path).map_err(failed)?;
        let facts = file.metadata().map_err(failed)?;
        let stamp = (facts.modified().map_err(failed)?, facts.len(), facts.ino());
        if known == Some(stamp) {
            return Ok(None);
        }
        let mut text = Vec::new();
        file.by_ref().take(FILE_BYTES_MAX).read_to_end(&mut text).map_err(failed)?;
        Ok(Some((stamp, servers_in(&String::from_utf8_lossy(&text)))))
    };
    let ended = |_| Error::new("read", "list of DNS servers", Cause::WorkerEnded);
    tokio::task::spawn_blocking(work).await.map_err(ended)?
}

/// The servers in the text of a `resolv.conf`.
fn servers_in(text: &str) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let address: IpAddr = words.next().filter(|word| *word == "nameserver").and(words.next())?.parse().ok()?;
        Some(SocketAddr::new(address, PORT_DNS))
    };
    text.lines().filter_map(server).take(SERVERS_MAX).collect()
}

/// The namespace of upstream sockets.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// A given namespace.
    In(Arc<Sockets>, Namespace),
    /// The namespace of the test.
    #[cfg(test)]
    Here,
}

impl Place {
    pub(crate) async fn udp(&self, address: SocketAddr) -> Result<UdpSocket, Error> {
        match self {
            Self::In(sockets, namespace) => sockets.udp(namespace, address).await,
            #[cfg(test)]
            Self::Here => UdpSocket::bind(address).await.map_err(|e| Error::new("bind", address.to_string(), e)),
        }
    }

    pub(crate) async fn tcp(&self, for_address: SocketAddr) -> Result<TcpSocket, Error> {
        match self {
            Self::In(sockets, namespace) => sockets.tcp(namespace, for_address).await,
            #[cfg(test)]
            Self::Here => TcpSocket::new_v4().map_err(|e| Error::new("make a socket", "", e)),
        }
    }
}

/// Asks one server: by UDP, and again by TCP if the answer was truncated.
pub(crate) async fn exchange(
    place: &Place,
    server: SocketAddr,
    name: &Name,
    kind: RecordType,
) -> Result<Message, Error> {
    let response = within(server, by_udp(place, server, name, kind, true)).await?;
    let response = match response.response_code {
        // An old server without EDNS.
        ResponseCode::FormErr | ResponseCode::NotImp => {
            within(server, by_udp(place, server, name, kind, false)).await?
        }
        _ => response,
    };
    if response.truncation {
        return within(server, by_tcp(place, server, name, kind)).await;
    }
    Ok(response)
}

async fn within<T>(server: SocketAddr, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let late = |_| failed(server, std::io::ErrorKind::TimedOut.into());
    timeout(TRY_TIMEOUT, work).await.map_err(late)?
}

fn failed(server: SocketAddr, cause: std::io::Error) -> Error {
    Error::new("ask DNS server", server.to_string(), cause)
}

/// The message to send, and its identifier.
fn question(name: &Name, kind: RecordType, edns: bool) -> Result<(Vec<u8>, u16), Error> {
    let id = rand::random();
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name.clone(), kind));
    if edns {
        let mut edns = Edns::new();
        edns.set_max_payload(PAYLOAD_BYTES_MAX).set_version(0);
        message.set_edns(edns);
    }
    let unwritable = |_| Error::new("ask for", name.to_ascii(), Cause::Invalid("the name cannot be written"));
    Ok((message.to_vec().map_err(unwritable)?, id))
}

async fn by_udp(
    place: &Place,
    server: SocketAddr,
    name: &Name,
    kind: RecordType,
    edns: bool,
) -> Result<Message, Error> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = place.udp(SocketAddr::new(any, 0)).await?;
    socket.connect(server).await.map_err(|e| failed(server, e))?;
    let (bytes, id) = question(name, kind, edns)?;
    socket.send(&bytes).await.map_err(|e| failed(server, e))?;
    let mut buffer = vec![0; usize::from(PAYLOAD_BYTES_MAX) + 1];
    loop {
        let length = socket.recv(&mut buffer).await.map_err(|e| failed(server, e))?;
        // Other datagrams may be forgeries: the wait for the true answer goes on.
        if let Some(response) = read_response(&buffer[..length], id, name, kind) {
            return Ok(response);
        }
    }
}

async fn by_tcp(place: &Place, server: SocketAddr, name: &Name, kind: RecordType) -> Result<Message, Error> {
    let io = |e| failed(server, e);
    let mut stream = place.tcp(server).await?.connect(server).await.map_err(io)?;
    let (bytes, id) = question(name, kind, true)?;
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    stream.write_all(&[&length.to_be_bytes(), bytes.as_slice()].concat()).await.map_err(io)?;
    let length = stream.read_u16().await.map_err(io)?;
    let mut buffer = vec![0; usize::from(length)];
    stream.read_exact(&mut buffer).await.map_err(io)?;
    let response = read_response(&buffer, id, name, kind).filter(|response| !response.truncation);
    response.ok_or_else(|| Error::new("ask DNS server", server.to_string(), Cause::Invalid("this is no answer")))
}

fn read_response(bytes: &[u8], id: u16, name: &Name, kind: RecordType) -> Option<Message> {
    // The count is checked first: the parser allocates for as many questions as a message claims.
    if bytes.get(4..6)? != [0, 1] {
        return None;
    }
    let response = match Message::from_vec(bytes) {
        Ok(response) => response,
        Err(_) => cut_response(bytes)?,
    };
    is_answer(&response, id, name, kind).then_some(response)
}

/// The header and question of a response that was cut inside a record.
fn cut_response(bytes: &[u8]) -> Option<Message> {
    const COUNTS_OF_RECORDS: std::ops::Range<usize> = 6..12;
    let is_cut = bytes.get(2)? & 0x02 != 0;
    let mut head = is_cut.then(|| bytes.to_vec())?;
    head.get_mut(COUNTS_OF_RECORDS)?.fill(0);
    Message::from_vec(&head).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn servers_are_read_from_a_file() {
        let text = "# nameserver 192.0.2.9\nsearch example\nnameserver\nnameserver 192.0.2.1 \n\tnameserver ::1\n\
                    nameserver x\noptions edns0\nnameserver 127.0.0.53 # local\nnameserver 192.0.2.4\n";
        let servers: Vec<String> = servers_in(text).iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["192.0.2.1:53", "[::1]:53", "127.0.0.53:53"]);
    }

    #[tokio::test]
    async fn a_file_that_has_changed_is_read_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("resolv.conf");
        let upstreams = Upstreams::new(Vec::new(), path.clone());
        let look_again = || upstreams.known.lock().unwrap().looked = None;
        assert!(upstreams.servers().await.is_empty(), "there is no file");
        let write = |text: &str| {
            let new = dir.path().join("new");
            std::fs::write(&new, text).expect("write");
            std::fs::rename(&new, &path).expect("rename");
        };
        write("nameserver 192.0.2.1\n");
        look_again();
        assert_eq!(upstreams.servers().await, [SocketAddr::from(([192, 0, 2, 1], 53))]);
        write("nameserver 192.0.2.2\n");
        assert_eq!(upstreams.servers().await, [SocketAddr::from(([192, 0, 2, 1], 53))], "not looked at each time");
        look_again();
        assert_eq!(upstreams.servers().await, [SocketAddr::from(([192, 0, 2, 2], 53))]);
        std::fs::remove_file(&path).expect("remove");
        look_again();
        assert_eq!(upstreams.servers().await.len(), 1, "what is known stays");
        let fixed = Upstreams::new(vec![SocketAddr::from(([192, 0, 2, 7], 5353))], path);
        assert_eq!(fixed.servers().await.len(), 1);
    }

    #[test]
    fn questions_have_identifiers_of_their_own_and_nothing_of_the_box() {
        let name = Name::from_ascii("a.example.").expect("name");
        let ids: std::collections::HashSet<u16> =
            (0..64).map(|_| question(&name, RecordType::A, true).expect("question").1).collect();
        assert!(ids.len() > 56, "{} of 64 are different", ids.len());
        let (bytes, id) = question(&name, RecordType::A, true).expect("question");
        let message = Message::from_vec(&bytes).expect("a message");
        assert_eq!((message.id, message.recursion_desired, message.max_payload()), (id, true, PAYLOAD_BYTES_MAX));
        assert!(message.edns.expect("EDNS").options().as_ref().is_empty());
    }

    #[test]
    fn a_response_that_was_cut_in_a_record_is_a_cut_response() {
        let name = Name::from_ascii("a.example.").expect("name");
        let (mut bytes, id) = question(&name, RecordType::A, false).expect("question");
        bytes[2] |= 0x82;
        bytes[7] = 3;
        bytes.extend([0xc0, 0x0c, 0, 1]);
        assert!(read_response(&bytes, id, &name, RecordType::A).is_some_and(|m| m.truncation));
        bytes[2] &= !0x02;
        assert!(read_response(&bytes, id, &name, RecordType::A).is_none(), "damaged, and not said to be cut");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = read_response(&bytes, 7, &Name::root(), RecordType::A);
            let _ = servers_in(&String::from_utf8_lossy(&bytes));
        }
    }
}
