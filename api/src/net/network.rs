//! The network of all boxes as one thing: what `boxes` calls.
//!
//! Owns: which box has which addresses, and the order in which table, link and firewall change together. A box is known
//! to the proxies before a packet of it can arrive, and forgotten when none can any more.
//!
//! Leaves out: how any of it is done ([`HostSide`] and the proxies).

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::address::{Pair, Pool};
use super::config::NetworkConfig;
use super::firewall::{Count, ProxyPorts};
use super::namespace::Namespace;
use super::policy::BoxPolicy;
use super::sockets::Sockets;
use super::table::{BoxNet, NetTable};
use super::{Attachment, HostConfig, HostSide};
use crate::error::{Cause, Error};
use crate::wire::{BoxNetwork, Counted};

/// The network of all boxes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Network {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: NetworkConfig,
    host: HostSide,
    sockets: Arc<Sockets>,
    table: Arc<NetTable>,
    pool: Mutex<Pool>,
}

impl Network {
    /// Puts the host side in place: in the namespace that `netns` names, or in that of this process. Boxes that a former
    /// process has connected are as they were.
    pub async fn start(config: &NetworkConfig, netns: Option<&str>) -> Result<Self, Error> {
        let namespace = netns.map_or_else(Namespace::own, Namespace::open)?;
        let host = HostConfig { pool: config.pool, smtp_allowed: config.smtp_allowed, ports: ProxyPorts::default() };
        let inner = Inner {
            config: config.clone(),
            host: HostSide::start(namespace, host).await?,
            sockets: Arc::new(Sockets::start().await?),
            table: Arc::default(),
            pool: Mutex::new(Pool::new(config.pool, Vec::new())?),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Sockets in namespaces of boxes.
    #[must_use]
    pub fn sockets(&self) -> &Sockets {
        &self.inner.sockets
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.inner.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The addresses of a box; new ones if it has none yet.
    pub fn assign(&self, id: &str) -> Result<Pair, Error> {
        self.pool().assign(id)
    }

    /// Takes the addresses that the record of a box names. Another pool in the configuration, or a record from elsewhere,
    /// may make that impossible: then it gets others at its next start.
    pub fn claim(&self, id: &str, guest: Ipv4Addr) -> Result<Pair, Error> {
        let pair = Pair::of(guest);
        self.pool().claim(id, pair)?;
        Ok(pair)
    }

    /// Gives the addresses of a box back that is no more.
    pub fn release(&self, id: &str) {
        self.pool().release(id);
    }

    /// Connects a box whose PID 1 is `pid`, or does what is missing of it.
    pub async fn attach(&self, id: &str, pair: Pair, pid: i32, policy: BoxPolicy) -> Result<(), Error> {
        let namespace = u32::try_from(pid).map_err(|_| Error::new("connect", id, Cause::Invalid("no such process")))?;
        let namespace = Namespace::of_process(namespace)?;
        let rules = policy.of_firewall();
        self.inner.table.insert(Arc::new(BoxNet::new(id, pair, policy, None)));
        let limits = self.inner.config.limits.of_firewall();
        let attachment = Attachment { id: id.to_owned(), pair, namespace, policy: rules, limits, intercept_tls: false };
        let attached = self.inner.host.attach(attachment).await;
        if attached.is_err() {
            self.inner.table.remove(pair);
        }
        attached
    }

    /// Disconnects a box, whatever there is of it. It keeps its addresses.
    pub async fn detach(&self, id: &str) -> Result<(), Error> {
        let Some(pair) = self.pool().pair_of(id) else { return Ok(()) };
        let detached = self.inner.host.detach(id, pair).await;
        self.inner.table.remove(pair);
        detached
    }

    /// Another policy for a box that is connected; when this returns, it is in force. If that fails, the box is closed.
    pub async fn set_policy(&self, id: &str, policy: BoxPolicy) -> Result<(), Error> {
        let Some((pair, box_)) = self.find(id) else { return Ok(()) };
        let (rules, pins) = (policy.of_firewall(), box_.names.pins(|name| policy.allows_name(name)));
        // Proxies first: they cut what they pass on for the box.
        box_.set_policy(policy);
        let pins = if matches!(rules, super::firewall::Policy::Custom { .. }) { pins } else { Vec::new() };
        let changed = self.inner.host.set_policy(pair, rules, pins).await;
        if changed.is_err() {
            self.detach(id).await?;
        }
        changed
    }

    /// Removes what is left of boxes that are not among `kept`, after a crash.
    pub async fn sweep(&self, kept: Vec<String>) -> Result<(), Error> {
        let swept = self.inner.host.sweep(kept).await?;
        if swept != super::Swept::default() {
            tracing::info!(links = ?swept.links, boxes = swept.boxes.len(), "removed what was left of boxes' networks");
        }
        Ok(())
    }

    /// Fills in what is known of a box that is connected.
    pub async fn report(&self, id: &str, told: &mut BoxNetwork) -> Result<(), Error> {
        let Some((pair, box_)) = self.find(id) else { return Ok(()) };
        let counters = self.inner.host.counters(pair).await?;
        let counted = |count: Count| Counted { packets: count.packets, bytes: count.bytes };
        told.connected = true;
        told.mtu = Some(self.inner.host.uplink().await?.mtu);
        told.sent = counted(counters.sent);
        told.received = counted(counters.received);
        told.refused = counted(counters.refused);
        told.denials = box_.denials.latest();
        Ok(())
    }

    /// The entry of a box that is connected.
    #[must_use]
    pub fn find(&self, id: &str) -> Option<(Pair, Arc<BoxNet>)> {
        let pair = self.pool().pair_of(id)?;
        let box_ = self.inner.table.at(pair.guest())?;
        Some((pair, box_))
    }
}
