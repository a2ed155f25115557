//! The network of all boxes, as `boxes` uses it.
//!
//! Owns: the assignment of addresses, and the order in which table, link and firewall change together. The proxies know
//! a box before its first packet can arrive, and forget it after its last.
//!
//! Leaves out: the mechanisms ([`HostSide`] and the proxies).

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::address::{Pair, Pool};
use super::authority::Authority;
use super::config::NetworkConfig;
use super::conntrack::Connection;
use super::denial::{Denial, Denied};
use super::dns::{DnsConfig, DnsCounters, DnsProxy};
use super::egress::{Egress, EgressConfig, EgressCounters, NameSource, SlotLimits};
use super::firewall::{Counters, ProxyPorts};
use super::headers::HeaderRules;
use super::host::{Attachment, HostConfig, HostSide, Swept};
use super::namespace::Namespace;
use super::nflog::{Events, Refused};
use super::policy::BoxPolicy;
use super::secret::{KEY_FILE, SealingKey};
use super::sockets::Sockets;
use super::table::{BoxNet, NetTable, OnDenial};
use crate::error::{Cause, Error};
use futures::future::BoxFuture;

/// File in the data directory: the authority of this installation.
const AUTHORITY_FILE: &str = "authority.sealed";
/// The host's list of DNS servers.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Takes the id of a box and a line for its log.
pub type OnRefusal = Box<dyn Fn(&str, String) + Send + Sync>;

/// The network state of one connected box.
#[derive(Debug)]
pub struct Report {
    /// The MTU.
    pub mtu: u32,
    /// Packets sent, received and refused.
    pub counters: Counters,
    /// The latest refusals, the newest first.
    pub denials: Vec<Denied>,
    /// Its connections, at most as many as a screen shows.
    pub connections: Vec<Connection>,
    /// Number of its connections.
    pub connections_total: u64,
}

/// The parameters of the network.
pub struct NetworkParts<'a> {
    /// The section `[network]`.
    pub config: &'a NetworkConfig,
    /// The namespace of the host side; none means that of this process.
    pub netns: Option<&'a str>,
    /// The directory of the installation's secrets.
    pub data_dir: &'a Path,
    /// Receives refusals that deserve a line in the box's log: the box's id and the text.
    pub on_refusal: OnRefusal,
}

/// The outbound rights of a box, its added headers, and the account that it belongs to.
#[derive(Debug, Clone)]
pub struct Rights {
    /// The account's id.
    pub account: String,
    /// The reachable destinations.
    pub policy: BoxPolicy,
    /// The headers that are added to its requests.
    pub headers: Option<Arc<HeaderRules>>,
}

/// The DNS proxy, as the egress proxy uses it.
struct Resolver(DnsProxy);

impl NameSource for Resolver {
    fn addresses<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Vec<Ipv4Addr>> {
        Box::pin(async move {
            let found = self.0.addresses(name).await;
            found
                .inspect_err(|error| tracing::debug!(name, error = error.chain(), "cannot resolve"))
                .unwrap_or_default()
        })
    }
}

fn headers_of(id: &str) -> String {
    format!("attach_headers/{id}")
}

/// Stores refusals with their box. The first of its kind is also a line in the box's log.
fn note_denials(on_refusal: OnRefusal) -> OnDenial {
    Arc::new(move |box_: &BoxNet, denial: Denial| {
        let text = format!("refused: {denial}");
        if box_.denials.record(denial, super::clock::unix_ms()) {
            tracing::info!(box_id = box_.id, "{text}");
            on_refusal(&box_.id, text);
        }
    })
}

/// The network of all boxes. Cheap to clone.
#[derive(Clone)]
pub struct Network {
    inner: Arc<Inner>,
}

struct Inner {
    on_denial: OnDenial,
    config: NetworkConfig,
    host: Arc<HostSide>,
    key: SealingKey,
    authority: Arc<Authority>,
    dns: DnsProxy,
    egress: Egress,
    sockets: Arc<Sockets>,
    table: Arc<NetTable>,
    pool: Mutex<Pool>,
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Network").field("host", &self.inner.host).finish_non_exhaustive()
    }
}

impl Network {
    /// Starts the host side in the namespace that `netns` names, or in that of this process. Boxes that a former
    /// process has connected are unchanged.
    pub async fn start(parts: NetworkParts<'_>) -> Result<Self, Error> {
        let NetworkParts { config, netns, data_dir, on_refusal } = parts;
        let namespace = netns.map_or_else(Namespace::own, Namespace::open)?;
        let key = SealingKey::load_or_create(&data_dir.join(KEY_FILE))?;
        let authority = Arc::new(Authority::load_or_create(&data_dir.join(AUTHORITY_FILE), &key)?);
        let host = HostConfig {
            pool: config.pool,
            smtp_allowed: config.smtp_allowed,
            ports: ProxyPorts::default(),
            connections_max: config.limits.connections_max(),
            guarded: true,
        };
        let ports = host.ports;
        let host = Arc::new(HostSide::start(namespace.clone(), host).await?);
        let sockets = Arc::new(Sockets::start().await?);
        let table: Arc<NetTable> = Arc::default();
        let on_denial = note_denials(on_refusal);
        let dns = DnsConfig {
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, ports.dns)),
            upstreams: config.resolvers.clone(),
            resolv_conf: RESOLV_CONF.into(),
            pool: config.pool,
        };
        let pinner = Arc::new(Arc::clone(&host));
        let (names, boxes) = (namespace.clone(), Arc::clone(&table));
        let dns = DnsProxy::start(dns, names, Arc::clone(&sockets), boxes, pinner, Arc::clone(&on_denial)).await?;
        let egress = EgressConfig {
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, ports.egress)),
            pool: config.pool,
            extra_roots: config.extra_roots.clone(),
            ech_allowed: config.ech_allowed,
            slots: SlotLimits::default(),
        };
        let names = Arc::new(Resolver(dns.clone()));
        let (boxes, trusted, told) = (Arc::clone(&table), Arc::clone(&authority), Arc::clone(&on_denial));
        let egress = Egress::start(egress, namespace, Arc::clone(&sockets), boxes, names, trusted, told).await?;
        let inner = Inner {
            on_denial,
            config: config.clone(),
            host,
            sockets,
            table,
            key,
            authority,
            dns,
            egress,
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

    /// The addresses of a box. Assigns a pair if it has none.
    pub fn assign(&self, id: &str) -> Result<Pair, Error> {
        self.pool().assign(id)
    }

    /// Restores the addresses that a box's record names. A changed pool or a foreign record may make that impossible;
    /// then the box gets others at its next start.
    pub fn claim(&self, id: &str, guest: Ipv4Addr) -> Result<Pair, Error> {
        let pair = Pair::of(guest);
        self.pool().claim(id, pair)?;
        Ok(pair)
    }

    /// Releases the addresses of a deleted box.
    pub fn release(&self, id: &str) {
        self.pool().release(id);
    }

    /// Connects a box whose PID 1 is `pid`, or completes its connection.
    pub async fn attach(&self, id: &str, pair: Pair, pid: i32, rights: Rights) -> Result<(), Error> {
        let Rights { account, policy, headers } = rights;
        let namespace = u32::try_from(pid).map_err(|_| Error::new("connect", id, Cause::Invalid("no such process")))?;
        let namespace = Namespace::of_process(namespace)?;
        let rules = policy.of_firewall();
        let intercept_tls = headers.is_some();
        self.inner.table.insert(Arc::new(BoxNet::new(id, &account, pair, policy, headers)));
        let limits = self.inner.config.limits.of_firewall();
        let attachment = Attachment { id: id.to_owned(), pair, namespace, policy: rules, limits, intercept_tls };
        let attached = self.inner.host.attach(attachment).await;
        if attached.is_err() {
            self.inner.table.remove(pair);
        }
        attached
    }

    /// Disconnects a box, even a partly connected one. It keeps its addresses.
    pub async fn detach(&self, id: &str) -> Result<(), Error> {
        let Some(pair) = self.pool().pair_of(id) else { return Ok(()) };
        let detached = self.inner.host.detach(id, pair).await;
        self.inner.table.remove(pair);
        detached
    }

    /// Removes the remains of detached boxes before the process stops. Boxes stay connected.
    pub async fn close(&self) -> Result<(), Error> {
        self.inner.host.see_off_all().await
    }

    /// Sets another policy for a connected box; when this returns, it is in force. On failure the box is closed.
    pub async fn set_policy(&self, id: &str, policy: BoxPolicy) -> Result<(), Error> {
        let Some((pair, box_)) = self.find(id) else { return Ok(()) };
        let (rules, pins) = (policy.of_firewall(), box_.names.pins(|name| policy.allows_name(name)));
        // Proxies first: they cut the connections that they pass on for the box.
        box_.set_policy(policy);
        let pins = if matches!(rules, super::firewall::Policy::Custom { .. }) { pins } else { Vec::new() };
        let changed = self.inner.host.set_policy(pair, rules, pins).await;
        if changed.is_err() {
            self.detach(id).await?;
        }
        changed
    }

    /// Gives a connected box that has sent nothing yet another account, policy and headers. On return they are in force;
    /// on failure the box is closed.
    pub async fn set_rights(&self, id: &str, rights: Rights) -> Result<(), Error> {
        let Some((pair, _)) = self.find(id) else {
            return Err(Error::new("set the rights of", id, Cause::Invalid("it is not connected")));
        };
        let Rights { account, policy, headers } = rights;
        let (rules, intercept_tls) = (policy.of_firewall(), headers.is_some());
        self.inner.table.insert(Arc::new(BoxNet::new(id, &account, pair, policy, headers)));
        let changed = self.inner.host.set_rights(pair, rules, intercept_tls).await;
        if changed.is_err() {
            self.detach(id).await?;
        }
        changed
    }

    /// Removes the remains of boxes that are not among `kept`, after a crash.
    pub async fn sweep(&self, kept: Vec<String>) -> Result<(), Error> {
        let swept = self.inner.host.sweep(kept).await?;
        if swept != Swept::default() {
            tracing::info!(links = ?swept.links, boxes = swept.boxes.len(), "removed what was left of boxes' networks");
        }
        Ok(())
    }

    /// The state of a box; none if it is not connected.
    pub async fn report(&self, id: &str) -> Result<Option<Report>, Error> {
        let Some((pair, box_)) = self.find(id) else { return Ok(None) };
        let counters = self.inner.host.counters(pair).await?;
        let mtu = self.inner.host.uplink().await?.mtu;
        let connections = self.inner.host.connections(pair).await?;
        Ok(Some(Report {
            mtu,
            counters,
            denials: box_.denials.latest(),
            connections_total: connections.count as u64,
            connections: connections.listed,
        }))
    }

    /// The events from now on; only the first caller gets them.
    pub fn events(&self) -> Option<Events> {
        self.inner.host.events()
    }

    /// See [`HostSide::set_frozen`].
    pub async fn set_frozen(&self, pair: Pair, frozen: bool) -> Result<(), Error> {
        self.inner.host.set_frozen(pair, frozen).await
    }

    /// See [`HostSide::traffic`].
    pub async fn traffic(&self, of: Vec<Pair>) -> Result<BTreeMap<Ipv4Addr, u64>, Error> {
        self.inner.host.traffic(of).await
    }

    /// The traffic of every connected box, by its id, and its number of logged refusals.
    pub async fn all_counters(&self) -> Result<Vec<(String, Counters, u64)>, Error> {
        let counted = self.inner.host.all_counters().await?;
        let of = |(guest, counters)| {
            let box_ = self.inner.table.at(guest)?;
            Some((box_.id.clone(), counters, box_.denials.total()))
        };
        Ok(counted.into_iter().filter_map(of).collect())
    }

    /// Records a refusal by the firewall.
    pub fn note_refusal(&self, refused: &Refused) {
        if let Some(box_) = self.inner.table.at(refused.guest) {
            (self.inner.on_denial)(&box_, refused.denial());
        }
    }

    /// The id of the box that is connected at this address.
    #[must_use]
    pub fn box_at(&self, guest: Ipv4Addr) -> Option<String> {
        self.inner.table.at(guest).map(|box_| box_.id.clone())
    }

    /// Seals another secret of a box, for the database.
    pub fn seal_secret(&self, context: &str, plain: &[u8]) -> Result<Vec<u8>, Error> {
        self.inner.key.seal(context, plain)
    }

    /// Seals the headers of a box, for the database.
    pub fn seal_headers(&self, id: &str, headers: &HeaderRules) -> Result<Vec<u8>, Error> {
        headers.seal(&self.inner.key, &headers_of(id))
    }

    /// The headers of a box, from the database.
    pub fn open_headers(&self, id: &str, sealed: &[u8]) -> Result<HeaderRules, Error> {
        HeaderRules::open(&self.inner.key, &headers_of(id), sealed)
    }

    /// The authority's certificate, which boxes with headers must trust.
    #[must_use]
    pub fn certificate_pem(&self) -> String {
        self.inner.authority.certificate_pem()
    }

    /// The DNS proxy's counters.
    #[must_use]
    pub fn dns_counters(&self) -> DnsCounters {
        self.inner.dns.counters()
    }

    /// The egress proxy's counters.
    #[must_use]
    pub fn egress_counters(&self) -> EgressCounters {
        self.inner.egress.counters()
    }

    /// The entry of a box that is connected.
    #[must_use]
    pub fn find(&self, id: &str) -> Option<(Pair, Arc<BoxNet>)> {
        let pair = self.pool().pair_of(id)?;
        let box_ = self.inner.table.at(pair.guest())?;
        Some((pair, box_))
    }
}
