//! The egress proxy: finds the name that a box's connection is for, and adds headers.
//!
//! Owns: the proxy to which the firewall redirects such connections. It identifies the box by the peer's address and
//! the destination by the kernel's NAT record. It decides ([`connection`]) and passes on ([`pass`]): unchanged
//! ([`wire`]), as HTTP request by request ([`http`]), or as HTTP inside TLS that ends here ([`Authority`]).
//!
//! Invariants: nothing is sent to an address before it is known to be allowed. A connection that is no longer allowed
//! is reset. Each connection of a box leads to at most one connection, only to the address that the box wanted.
//!
//! Leaves out: which connections are redirected (`firewall`), name resolution (`dns`), and the storage of refusals:
//! each is reported to the caller of [`Egress::start`].

mod connection;
mod hello;
mod http;
mod pass;
mod shared;
mod slots;
#[cfg(test)]
mod tests;
mod way;
mod wire;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use self::connection::Connection;
use self::shared::{Counts, Shared};
pub use self::shared::{EgressConfig, EgressCounters, NameSource};
pub use self::slots::SlotLimits;
use self::slots::Slots;
pub(crate) use self::way::client;
use self::way::{HostWay, Way};
use super::authority::Authority;
use super::namespace::Namespace;
use super::sockets::Sockets;
use super::table::{NetTable, OnDenial};
use crate::error::Error;

/// Connections that wait for accept.
const BACKLOG: u32 = 1024;
/// Pause of accepting when no descriptors are left.
const PAUSE: Duration = Duration::from_millis(50);

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
        on_denial: OnDenial,
    ) -> Result<Self, Error> {
        let failed = |e: std::io::Error| Error::new("listen at", config.listen.to_string(), e);
        let socket = sockets.tcp(&namespace, config.listen).await?;
        socket.set_reuseaddr(true).map_err(failed)?;
        socket.bind(config.listen).map_err(failed)?;
        let listener = socket.listen(BACKLOG).map_err(failed)?;
        let way = Box::new(HostWay::new(namespace, sockets).await?);
        Self::start_with(config, listener, way, table, names, authority, on_denial)
    }

    fn start_with(
        config: EgressConfig,
        listener: TcpListener,
        way: Box<dyn Way>,
        table: Arc<NetTable>,
        names: Arc<dyn NameSource>,
        authority: Arc<Authority>,
        on_denial: OnDenial,
    ) -> Result<Self, Error> {
        let client = way::client(config.extra_roots.as_deref())?;
        let (counts, slots, ended) = (Counts::default(), Slots::new(config.slots), CancellationToken::new());
        let shared = Shared { config, table, names, authority, client, on_denial, way, counts, slots, ended };
        let shared = Arc::new(shared);
        tokio::spawn(accept(Arc::clone(&shared), listener));
        Ok(Self { shared })
    }

    /// The counters so far.
    #[must_use]
    pub fn counters(&self) -> EgressCounters {
        self.shared.counters()
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
    let slot = shared.slots.take(&box_);
    let connection = Arc::new(Connection::new(shared, box_, wanted));
    let _slot = match slot {
        Ok(slot) => slot,
        Err(limit) => {
            connection.deny(limit, "tcp", None);
            return reset(stream);
        }
    };
    if let Err(error) = pass::run(&connection, stream).await {
        tracing::debug!(%error, to = %wanted, "a connection of a box ended");
    }
}
