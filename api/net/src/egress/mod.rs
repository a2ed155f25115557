//! The egress proxy: finds the name that a box's connection is for, and adds headers.
//!
//! Owns: the proxy to which the firewall redirects such connections. It identifies the box by the peer's address and
//! the destination by the kernel's NAT record. It decides ([`connection`]) and passes on: unchanged ([`wire`]), as HTTP
//! request by request ([`http`]), or as HTTP inside TLS that ends here ([`Authority`]).
//!
//! Invariants: nothing is sent to an address before it is known to be allowed. A connection that is no longer allowed
//! is reset. Each connection of a box leads to at most one connection, only to the address that the box wanted.
//!
//! Leaves out: which connections are redirected (`firewall`), name resolution (`dns`), and the storage of refusals:
//! each is reported to the caller of [`Egress::start`].

mod connection;
mod hello;
mod http;
#[cfg(test)]
mod tests;
mod way;
mod wire;

use std::collections::HashMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use rustls::ClientConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use self::connection::Connection;
use self::way::{HostWay, Way};
use super::authority::Authority;
use super::cidr::Cidr;
use super::denial::Denial;
use super::namespace::Namespace;
use super::sockets::Sockets;
use super::table::{BoxNet, NetTable, OnDenial};
use crate::error::Error;

/// Connections that wait for accept.
const BACKLOG: u32 = 1024;
/// Pause of accepting when no descriptors are left.
const PAUSE: Duration = Duration::from_millis(50);

/// The operator's choices.
#[derive(Debug, Clone)]
pub struct EgressConfig {
    /// The port to which the firewall redirects.
    pub listen: SocketAddr,
    /// The addresses of boxes, which no box reaches.
    pub pool: Cidr,
    /// More certificate authorities for servers, beside those of the host (PEM).
    pub extra_roots: Option<PathBuf>,
    /// Allows TLS with an encrypted ClientHello by its visible name.
    pub ech_allowed: bool,
    /// Connections of all boxes.
    pub connections_max: usize,
    /// Connections of one box.
    pub connections_per_box_max: usize,
}

/// Resolves names that a box has not asked recently, e.g. after a restart.
pub trait NameSource: Send + Sync {
    /// The addresses of a name in its normal form; none if it has none or no server answers.
    fn addresses<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Vec<Ipv4Addr>>;
}

/// Called for every chunk that passes, so often.
pub type OnActivity = Arc<dyn Fn(&BoxNet) + Send + Sync>;

/// The proxy's counters.
#[derive(Debug, Default)]
struct Counts {
    accepted: AtomicU64,
    refused: AtomicU64,
    cut: AtomicU64,
    failed: AtomicU64,
    requests: AtomicU64,
}

/// The proxy's counters since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EgressCounters {
    /// Connections of boxes that arrived.
    pub accepted: u64,
    /// Connections and requests that were refused.
    pub refused: u64,
    /// Connections reset because they are no longer allowed.
    pub cut: u64,
    /// Connections to servers that failed.
    pub failed: u64,
    /// HTTP requests that were passed on.
    pub requests: u64,
    /// Connections that are open now.
    pub open: u64,
}

/// A box's connection, for `icebox net`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressConnection {
    /// The destination.
    pub address: SocketAddrV4,
    /// The name in the connection, if any.
    pub name: Option<String>,
    /// `tcp`, `tls`, `http`, or `headers` where headers are added.
    pub kind: &'static str,
    /// Start time in Unix milliseconds.
    pub since_ms: i64,
    /// Bytes from the box.
    pub sent: u64,
    /// Bytes to the box.
    pub received: u64,
}

/// The open connections, and their number per box.
#[derive(Default)]
struct Open {
    connections: HashMap<u64, Arc<Connection>>,
    of_boxes: HashMap<Ipv4Addr, usize>,
    next: u64,
}

struct Shared {
    config: EgressConfig,
    table: Arc<NetTable>,
    names: Arc<dyn NameSource>,
    authority: Arc<Authority>,
    client: Arc<ClientConfig>,
    on_denial: OnDenial,
    on_activity: OnActivity,
    way: Box<dyn Way>,
    counts: Counts,
    open: Mutex<Open>,
    ended: CancellationToken,
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn denied(&self, box_: &BoxNet, denial: Denial) {
        self.counts.refused.fetch_add(1, Ordering::Relaxed);
        (self.on_denial)(box_, denial);
    }
}

/// The proxy. Dropping it ends it and all its connections.
pub struct Egress {
    shared: Arc<Shared>,
}

impl fmt::Debug for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Egress").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

impl Drop for Egress {
    fn drop(&mut self) {
        self.shared.ended.cancel();
    }
}

/// The callbacks of the proxy.
pub struct Told {
    /// Receives refusals.
    pub on_denial: OnDenial,
    /// Receives traffic.
    pub on_activity: OnActivity,
}

impl Egress {
    /// Begins to listen in `namespace`, and connects from there.
    ///
    /// # Errors
    /// The port is taken, or a file with roots cannot be read.
    pub async fn start(
        config: EgressConfig,
        namespace: Namespace,
        sockets: Arc<Sockets>,
        table: Arc<NetTable>,
        names: Arc<dyn NameSource>,
        authority: Arc<Authority>,
        told: Told,
    ) -> Result<Self, Error> {
        let failed = |e: std::io::Error| Error::new("listen at", config.listen.to_string(), e);
        let socket = sockets.tcp(&namespace, config.listen).await?;
        socket.set_reuseaddr(true).map_err(failed)?;
        socket.bind(config.listen).map_err(failed)?;
        let listener = socket.listen(BACKLOG).map_err(failed)?;
        let way = Box::new(HostWay::new(namespace, sockets).await?);
        Self::start_with(config, listener, way, table, names, authority, told)
    }

    fn start_with(
        config: EgressConfig,
        listener: TcpListener,
        way: Box<dyn Way>,
        table: Arc<NetTable>,
        names: Arc<dyn NameSource>,
        authority: Arc<Authority>,
        told: Told,
    ) -> Result<Self, Error> {
        let client = way::client(config.extra_roots.as_deref())?;
        let Told { on_denial, on_activity } = told;
        let (counts, open, ended) = (Counts::default(), Mutex::default(), CancellationToken::new());
        let shared =
            Shared { config, table, names, authority, client, on_denial, on_activity, way, counts, open, ended };
        let shared = Arc::new(shared);
        tokio::spawn(accept(Arc::clone(&shared), listener));
        Ok(Self { shared })
    }

    /// The counters so far.
    #[must_use]
    pub fn counters(&self) -> EgressCounters {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let counts = &self.shared.counts;
        EgressCounters {
            accepted: of(&counts.accepted),
            refused: of(&counts.refused),
            cut: of(&counts.cut),
            failed: of(&counts.failed),
            requests: of(&counts.requests),
            open: self.shared.open().connections.len() as u64,
        }
    }

    /// The open connections of the box with this id, the oldest first.
    #[must_use]
    pub fn connections(&self, id: &str) -> Vec<EgressConnection> {
        let open = self.shared.open();
        let mut list: Vec<_> = open.connections.iter().filter(|(_, c)| c.is_of(id)).collect();
        list.sort_by_key(|(number, _)| **number);
        list.into_iter().map(|(_, connection)| connection.told()).collect()
    }
}

async fn accept(shared: Arc<Shared>, listener: TcpListener) {
    let ended = shared.ended.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = ended.cancelled() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                shared.counts.accepted.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(connected(Arc::clone(&shared), stream, peer));
            }
            Err(error) => {
                tracing::warn!(%error, "the egress proxy cannot accept");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Removes a connection from the list on drop.
struct Listed {
    shared: Arc<Shared>,
    number: u64,
    guest: Ipv4Addr,
}

impl Drop for Listed {
    fn drop(&mut self) {
        let mut open = self.shared.open();
        open.connections.remove(&self.number);
        if let Some(count) = open.of_boxes.get_mut(&self.guest) {
            *count -= 1;
            if *count == 0 {
                open.of_boxes.remove(&self.guest);
            }
        }
    }
}

/// Lists a connection, if the limits allow one more.
fn list(shared: &Arc<Shared>, connection: &Arc<Connection>, guest: Ipv4Addr) -> Option<Listed> {
    let mut open = shared.open();
    let count = open.of_boxes.get(&guest).copied().unwrap_or_default();
    let full = open.connections.len() >= shared.config.connections_max;
    if full || count >= shared.config.connections_per_box_max {
        return None;
    }
    let number = open.next;
    open.next += 1;
    open.connections.insert(number, Arc::clone(connection));
    open.of_boxes.insert(guest, count + 1);
    Some(Listed { shared: Arc::clone(shared), number, guest })
}

async fn connected(shared: Arc<Shared>, stream: TcpStream, peer: SocketAddr) {
    let reset = |stream: TcpStream| {
        let _ = stream.set_zero_linger();
    };
    let box_ = match peer {
        SocketAddr::V4(peer) => shared.table.at(*peer.ip()),
        SocketAddr::V6(_) => None,
    };
    let (Some(box_), Ok(wanted), Ok(here)) = (box_, shared.way.wanted(&stream), stream.local_addr()) else {
        return reset(stream);
    };
    // Not redirected: the client connected to our port directly.
    if SocketAddr::V4(wanted) == here {
        return reset(stream);
    }
    let guest = box_.pair.guest();
    let connection = Arc::new(Connection::new(Arc::clone(&shared), box_, wanted));
    let Some(listed) = list(&shared, &connection, guest) else {
        connection.deny("connection limit of the proxy", "tcp", None);
        return reset(stream);
    };
    if let Err(error) = connection.run(stream).await {
        tracing::debug!(%error, to = %wanted, "a connection of a box ended");
    }
    drop(listed);
}
