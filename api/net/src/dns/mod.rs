//! The DNS proxy of boxes, on the host's side: it answers what a box's policy allows.
//!
//! Owns: [`DnsProxy`], its parts and its counters. The firewall redirects a box's questions here, wherever the box
//! sends them. The proxy identifies the box by its address alone.
//!
//! The path of a question: [`server`] receives it within [`limits`]; [`question`] parses it; [`judge`] decides, asking
//! [`resolver`] if needed; [`reply`] writes the answer. An address is pinned in the firewall before the box receives
//! it.
//!
//! Leaves out: DNSSEC validation (upstream's task), search domains (the box's task), and IPv6 addresses, which no box
//! can use.

mod cache;
mod judge;
mod limits;
mod metrics;
mod pinner;
mod question;
mod reply;
mod resolved;
mod resolver;
mod reverse;
mod server;
#[cfg(test)]
mod tests;
pub(crate) mod upstream;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use tokio_util::sync::{CancellationToken, DropGuard};

use self::judge::Judge;
pub use self::metrics::DnsCounters;
use self::metrics::Metrics;
pub use self::pinner::Pinner;
use self::resolver::Resolver;
use self::upstream::{Place, Upstreams};
use super::cidr::Cidr;
use super::namespace::Namespace;
use super::sockets::Sockets;
use super::table::{NetTable, OnDenial};
use crate::error::Error;

/// The operator's choices.
#[derive(Debug, Clone)]
pub struct DnsConfig {
    /// The listening address, UDP and TCP.
    pub listen: SocketAddr,
    /// The upstream servers. If empty, those of `resolv_conf`.
    pub upstreams: Vec<SocketAddr>,
    /// A file that lists servers, read again when it changes.
    pub resolv_conf: PathBuf,
    /// The pool of box addresses, which appear in no answer.
    pub pool: Cidr,
}

/// The proxy. It ends when the last of its clones is dropped.
#[derive(Clone)]
pub struct DnsProxy {
    judge: Arc<Judge>,
    listening: SocketAddr,
    _end: Arc<DropGuard>,
}

impl std::fmt::Debug for DnsProxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DnsProxy").field("listening", &self.listening).finish_non_exhaustive()
    }
}

impl DnsProxy {
    /// Begins to listen in `namespace`. Upstreams are asked from there too.
    pub async fn start(
        config: DnsConfig,
        namespace: Namespace,
        sockets: Arc<Sockets>,
        table: Arc<NetTable>,
        pinner: Arc<dyn Pinner>,
        on_denial: OnDenial,
    ) -> Result<Self, Error> {
        let place = Place::In(sockets, namespace);
        Self::start_at(config, place, table, pinner, on_denial).await
    }

    async fn start_at(
        config: DnsConfig,
        place: Place,
        table: Arc<NetTable>,
        pinner: Arc<dyn Pinner>,
        on_denial: OnDenial,
    ) -> Result<Self, Error> {
        let ends = server::Ends::open(&place, config.listen).await?;
        let listening = ends.address()?;
        let metrics = Arc::new(Metrics::default());
        let upstreams = Upstreams::new(config.upstreams, config.resolv_conf);
        let resolver = Resolver::new(place, upstreams, Arc::clone(&metrics));
        let judge = Arc::new(Judge::new(resolver, config.pool, pinner, on_denial, metrics));
        let end = CancellationToken::new();
        server::serve(ends, Arc::clone(&judge), table, end.clone());
        Ok(Self { judge, listening, _end: Arc::new(end.drop_guard()) })
    }

    /// The listening address.
    #[must_use]
    pub fn listening(&self) -> SocketAddr {
        self.listening
    }

    /// Resolves a name for our own use, without addresses that no box reaches. `name` is in its normal form.
    pub async fn addresses(&self, name: &str) -> Result<Vec<Ipv4Addr>, Error> {
        self.judge.addresses(name).await
    }

    /// The counters.
    #[must_use]
    pub fn counters(&self) -> DnsCounters {
        self.judge.metrics.read()
    }
}
