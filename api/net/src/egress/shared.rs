//! What all connections of the proxy share: the operator's choices, the boxes, callbacks, counters and slots.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::future::BoxFuture;
use rustls::ClientConfig;
use tokio_util::sync::CancellationToken;

use super::slots::{SlotLimits, Slots};
use super::way::Way;
use crate::authority::Authority;
use crate::cidr::Cidr;
use crate::denial::Denial;
use crate::table::{BoxNet, NetTable, OnDenial};

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
    /// Connections at once.
    pub slots: SlotLimits,
}

/// Resolves names that a box has not asked recently, e.g. after a restart.
pub trait NameSource: Send + Sync {
    /// The addresses of a name in its normal form; none if it has none or no server answers.
    fn addresses<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Vec<Ipv4Addr>>;
}

/// The proxy's counters.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) accepted: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) cut: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) requests: AtomicU64,
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

pub(super) struct Shared {
    pub(super) config: EgressConfig,
    pub(super) table: Arc<NetTable>,
    pub(super) names: Arc<dyn NameSource>,
    pub(super) authority: Arc<Authority>,
    pub(super) client: Arc<ClientConfig>,
    pub(super) on_denial: OnDenial,
    pub(super) way: Box<dyn Way>,
    pub(super) counts: Counts,
    pub(super) slots: Slots,
    pub(super) ended: CancellationToken,
}

impl Shared {
    pub(super) fn denied(&self, box_: &BoxNet, denial: Denial) {
        self.counts.refused.fetch_add(1, Ordering::Relaxed);
        (self.on_denial)(box_, denial);
    }

    pub(super) fn counters(&self) -> EgressCounters {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let counts = &self.counts;
        EgressCounters {
            accepted: of(&counts.accepted),
            refused: of(&counts.refused),
            cut: of(&counts.cut),
            failed: of(&counts.failed),
            requests: of(&counts.requests),
            open: self.slots.taken() as u64,
        }
    }
}
