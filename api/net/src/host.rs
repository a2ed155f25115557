//! The host's side of all boxes: addresses, links and firewall.
//!
//! Owns: [`HostSide`], which performs the multi-step operations of a box in order. It works on a dedicated thread that
//! has entered the namespace of the host side.
//!
//! The order keeps a box closed in if this process dies at any point: first the firewall's table, which drops all
//! packets from interfaces with the prefix; then the link; last the box's elements in the firewall, which open the way.
//! Removal takes the elements first; the link goes when the box's namespace ends ([`leaving`](super::leaving)).

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;

use super::address::Pair;
use super::cidr::Cidr;
use super::conntrack::{Connection, Connections, Tracker};
use super::firewall::{BoxRules, Counters, Firewall, Limits, Pin, Policy, ProxyPorts, Settings};
use super::leaving::Leaving;
use super::link::{LinkSpec, Links, Uplink, host_name};
use super::namespace::{Namespace, Remote, Worker};
use super::netlink::{Ears, Listener};
use super::nflog::Events;
use super::{nflog, sysctl, watch};
use crate::error::{Cause, Error};

/// The operator's choices for all boxes.
#[derive(Debug, Clone)]
pub struct HostConfig {
    /// The addresses of boxes.
    pub pool: Cidr,
    /// Allows boxes to send mail directly (TCP 25).
    pub smtp_allowed: bool,
    /// The ports of our proxies.
    pub ports: ProxyPorts,
    /// Connections that each box may have at once.
    pub connections_max: Option<u32>,
    /// Makes the firewall's table unchangeable for other processes, where the kernel supports it.
    pub guarded: bool,
}

/// The parameters for connecting a box.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// The box.
    pub id: String,
    /// Its addresses.
    pub pair: Pair,
    /// Its namespace.
    pub namespace: Namespace,
    /// The reachable destinations.
    pub policy: Policy,
    /// Its limits.
    pub limits: Limits,
    /// Headers may have to be added to its requests.
    pub intercept_tls: bool,
}

/// Removed remains of former boxes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// Interfaces removed.
    pub links: Vec<String>,
    /// Boxes taken out of the firewall.
    pub boxes: Vec<Pair>,
}

/// Longer than the kernel needs to end a namespace.
const LINGER: Duration = Duration::from_secs(2);
/// Most tries to remove a link. The next start tries again.
const TRIES_MAX: u32 = 30;

/// Abstract Unix socket names belong to a network namespace, and vanish with the process that has bound them.
const CLAIM: &[u8] = b"icebox/host-side";

/// Makes this process the only Icebox of the namespace: two would remove each other's boxes as leftovers.
fn claim() -> Result<OwnedFd, Error> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with};
    let failed = |cause: Cause| Error::new("take the network namespace of the host side", "", cause);
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
    let socket = socket.map_err(|e| failed(e.into()))?;
    let name = SocketAddrUnix::new_abstract_name(CLAIM).map_err(|e| failed(e.into()))?;
    match bind(&socket, &name) {
        Ok(()) => Ok(socket),
        Err(rustix::io::Errno::ADDRINUSE) => Err(failed(Cause::Invalid(
            "another iceboxd connects its boxes there; give each a namespace of its own by --netns, or set `[network] enabled \
             = false` for one",
        ))),
        Err(e) => Err(failed(e.into())),
    }
}

#[derive(Debug)]
struct State {
    firewall: Firewall,
    tracker: Tracker,
    links: Links,
    leaving: Leaving,
    uplink: Uplink,
    /// The addresses of boxes.
    pool: Cidr,
    /// Keeps every other Icebox out of the namespace while open. Dropped last: the table has no other owner while the
    /// firewall's socket is open.
    _claim: OwnedFd,
}

/// The host's side of all boxes.
#[derive(Debug)]
pub struct HostSide {
    worker: Worker<State>,
    /// The events, until the first caller takes them.
    events: Mutex<Option<Events>>,
    _ears: Ears,
}

impl HostSide {
    /// Creates the firewall in `namespace`, then lets the uplink forward return traffic. Boxes that a former process
    /// has connected are unchanged.
    pub async fn start(namespace: Namespace, config: HostConfig) -> Result<Self, Error> {
        let worker = Worker::start("network", namespace, move || State::start(config)).await?;
        let remote = worker.remote();
        let (listeners, events) = worker.call(move |state| state.listeners(remote)).await?;
        let ears = Ears::start("network-events", listeners)?;
        Ok(Self { worker, events: Mutex::new(Some(events)), _ears: ears })
    }

    /// The events from now on; only the first caller gets them.
    pub fn events(&self) -> Option<Events> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Marks a box as frozen or not. After this returns, arrivals for a frozen box are reported at a limited rate; so
    /// it is called before a box is frozen.
    pub async fn set_frozen(&self, pair: Pair, frozen: bool) -> Result<(), Error> {
        self.worker.call(move |state| state.firewall.set_frozen(pair, frozen)).await
    }

    /// Bytes to and from these boxes so far, without TCP packets that carry nothing. A change means activity.
    pub async fn traffic(&self, of: Vec<Pair>) -> Result<BTreeMap<Ipv4Addr, u64>, Error> {
        self.worker.call(move |state| state.firewall.traffic(&of)).await
    }

    /// The traffic and refusals of all boxes.
    pub async fn all_counters(&self) -> Result<BTreeMap<Ipv4Addr, Counters>, Error> {
        self.worker.call(|state| state.firewall.all_counters()).await
    }

    /// The connections of a box.
    pub async fn connections(&self, pair: Pair) -> Result<Connections, Error> {
        self.worker.call(move |state| state.tracker.connections(pair.guest())).await
    }

    /// The uplink, as found at the start.
    pub async fn uplink(&self) -> Result<Uplink, Error> {
        self.worker.call(|state| Ok(state.uplink.clone())).await
    }

    /// Connects a box, or completes its connection.
    pub async fn attach(&self, box_: Attachment) -> Result<(), Error> {
        self.worker.call(move |state| state.attach(box_)).await
    }

    /// Disconnects a box, even a partly connected one. When this returns, nothing passes any more. The rest follows a
    /// little later ([`leaving`](super::leaving)).
    pub async fn detach(&self, id: &str, pair: Pair) -> Result<(), Error> {
        let (id, remote, runtime) = (id.to_owned(), self.worker.remote(), Handle::current());
        // Queued on the worker: it completes even if the caller goes away.
        let work = move |state: &mut State| {
            if let Some(turn) = state.detach(&id, pair)? {
                runtime.spawn(look_after(remote, id, turn));
            }
            Ok(())
        };
        self.worker.call(work).await
    }

    /// Removes the remains of detached boxes before the process stops.
    pub async fn see_off_all(&self) -> Result<(), Error> {
        self.worker.call(State::see_off_all).await
    }

    /// Sets another policy, with the known addresses of its names; see [`Firewall::set_policy`].
    pub async fn set_policy(&self, pair: Pair, policy: Policy, pins: Vec<Pin>) -> Result<(), Error> {
        let work = move |state: &mut State| {
            state.firewall.set_policy(pair, &policy, &pins)?;
            // NAT is decided once for each connection. A program that asks DNS from one port all the time must be
            // decided anew.
            state.tracker.forget(pair.guest(), Connection::asks_names_directly)
        };
        self.worker.call(work).await
    }

    /// Sets policy and redirection of a box that has sent nothing yet.
    pub async fn set_rights(&self, pair: Pair, policy: Policy, intercept_tls: bool) -> Result<(), Error> {
        self.worker.call(move |state| state.firewall.set_rights(pair, &policy, intercept_tls)).await
    }

    /// Sets other limits.
    pub async fn set_limits(&self, pair: Pair, limits: Limits) -> Result<(), Error> {
        self.worker.call(move |state| state.firewall.set_limits(pair, limits)).await
    }

    /// Redirects all of a box's traffic to port 443 to our proxy, or stops that.
    pub async fn set_intercept_tls(&self, pair: Pair, intercept_tls: bool) -> Result<(), Error> {
        self.worker.call(move |state| state.firewall.set_intercept_tls(pair, intercept_tls)).await
    }

    /// Lets a box with a `custom` policy reach addresses for a while.
    pub async fn pin(&self, pair: Pair, pins: Vec<Pin>) -> Result<(), Error> {
        self.worker.call(move |state| state.firewall.pin(pair, &pins)).await
    }

    /// The same, if `check` passes. It runs on the thread that changes the firewall, in sequence with policy changes.
    pub(crate) async fn pin_if(
        &self,
        check: impl FnOnce() -> Result<(), Error> + Send + 'static,
        pair: Pair,
        pins: Vec<Pin>,
    ) -> Result<(), Error> {
        let work = move |state: &mut State| check().and_then(|()| state.firewall.pin(pair, &pins));
        self.worker.call(work).await
    }

    /// The traffic and refusals of a box.
    pub async fn counters(&self, pair: Pair) -> Result<Counters, Error> {
        self.worker.call(move |state| state.firewall.counters(pair)).await
    }

    /// Removes the remains of boxes that are not among `kept`, after a crash.
    pub async fn sweep(&self, kept: Vec<String>) -> Result<Swept, Error> {
        self.worker.call(move |state| state.sweep(&kept)).await
    }
}

impl State {
    fn start(config: HostConfig) -> Result<Self, Error> {
        let claim = claim()?;
        let links = Links::open()?;
        let uplink = links.uplink()?;
        let mut opened = Firewall::opened_before()?;
        let mut to_open = None;
        if let Some(name) = &uplink.name
            && !sysctl::forwards(name)?
        {
            opened.push(name.clone());
            to_open = Some(name);
        }
        opened.sort();
        opened.dedup();
        let HostConfig { pool, smtp_allowed, ports, connections_max, guarded } = config;
        let firewall = Firewall::open(&Settings { pool, smtp_allowed, ports, connections_max, opened, guarded })?;
        // Only now: the rule that keeps the host from routing for others is in the table.
        to_open.map_or(Ok(()), |name| sysctl::forward(name))?;
        let (tracker, leaving) = (Tracker::open()?, Leaving::default());
        Ok(Self { firewall, tracker, links, leaving, uplink, pool, _claim: claim })
    }

    /// The kernel's notifications: logged packets, and foreign changes of a table that is not guarded.
    fn listeners(&mut self, remote: Remote<Self>) -> Result<(Vec<Listener>, Events), Error> {
        let (mut listeners, events) = nflog::listeners()?;
        if self.firewall.is_guarded() {
            // The kernel refuses foreign changes. With a listener it would make a message of each element of each box.
            return Ok((listeners, events));
        }
        // Removing a table sends many messages.
        let is_posted = Arc::new(AtomicBool::new(false));
        let changed = move || {
            if is_posted.swap(true, Ordering::AcqRel) {
                return;
            }
            let done = Arc::clone(&is_posted);
            let work = move |state: &mut Self| {
                done.store(false, Ordering::Release);
                match state.firewall.repair() {
                    Ok(()) => tracing::warn!("another program has changed the firewall of boxes; it was put back"),
                    Err(e) => {
                        tracing::error!("the firewall of boxes was changed and cannot be put back: {}", e.chain())
                    }
                }
            };
            if !remote.post(work) {
                is_posted.store(false, Ordering::Release);
            }
        };
        listeners.push(watch::listener(self.firewall.port()?, changed)?);
        Ok((listeners, events))
    }

    fn attach(&mut self, box_: Attachment) -> Result<(), Error> {
        let Attachment { id, pair, namespace, policy, limits, intercept_tls } = box_;
        let interface = host_name(&id);
        for former in self.leaving.with(pair).into_iter().filter(|former| *former != id) {
            self.finish(&former)?;
        }
        // The box's own old link is found by its name, and removed if it belongs to another namespace.
        if let Some(former) = self.leaving.pair_of(&id) {
            self.forget_left(former)?;
            self.leaving.take(&id);
        }
        self.links.create(&LinkSpec { id, pair, namespace, mtu: self.uplink.mtu })?;
        self.firewall.set(&BoxRules { interface, pair, policy, limits, intercept_tls })
    }

    /// Closes a box in. Returns a number if remains are to be checked.
    fn detach(&mut self, id: &str, pair: Pair) -> Result<Option<u64>, Error> {
        let was_open = self.firewall.boxes().any(|(open, _)| open == pair);
        if let Err(error) = self.firewall.remove(pair) {
            // Without a link nothing passes, even if the firewall still lets it.
            self.links.remove(id)?;
            return Err(error);
        }
        if was_open || (self.leaving.pair_of(id).is_none() && self.links.is_there(id)?) {
            return Ok(Some(self.leaving.add(id, pair)));
        }
        Ok(None)
    }

    /// Checks a box after the time in which all its remains should have vanished.
    fn see_off(&mut self, id: &str, turn: u64) -> Result<(), Error> {
        if self.leaving.has_since(id, turn) { self.finish(id) } else { Ok(()) }
    }

    fn see_off_all(&mut self) -> Result<(), Error> {
        self.leaving.ids().iter().try_for_each(|id| self.finish(id))
    }

    /// Removes the remains of a detached box.
    fn finish(&mut self, id: &str) -> Result<(), Error> {
        let Some(pair) = self.leaving.pair_of(id) else { return Ok(()) };
        self.forget_left(pair)?;
        // Usually it is gone, and the check is cheap.
        if self.links.is_there(id)? {
            tracing::info!(box_id = id, "the network namespace of a box that was disconnected is still there");
            self.links.remove(id)?;
        }
        self.leaving.take(id);
        Ok(())
    }

    /// Forgets the connections of a detached box, so that the next box with the address does not continue them. The
    /// same walk forgets those of all other detached boxes.
    fn forget_left(&mut self, pair: Pair) -> Result<(), Error> {
        let addresses = self.leaving.unforgotten();
        if addresses.contains(&pair.guest()) {
            self.tracker.forget_all(|source| addresses.contains(&source))?;
            self.leaving.are_forgotten();
        }
        Ok(())
    }

    fn sweep(&mut self, kept: &[String]) -> Result<Swept, Error> {
        let names: Vec<String> = kept.iter().map(|id| host_name(id)).collect();
        let gone = self.firewall.boxes().filter(|(_, name)| !names.iter().any(|n| n == name));
        let boxes: Vec<Pair> = gone.map(|(pair, _)| pair).collect();
        boxes.iter().try_for_each(|pair| self.firewall.remove(*pair))?;
        // Includes boxes that were closed in and whose connections were never forgotten.
        let known: BTreeSet<Ipv4Addr> = self.firewall.boxes().map(|(pair, _)| pair.guest()).collect();
        let pool = self.pool;
        self.tracker.forget_all(|source| pool.contains(source) && !known.contains(&source))?;
        let links = self.links.sweep(|id| kept.iter().any(|k| k == id))?;
        Ok(Swept { links: links.into_iter().map(|l| l.name).collect(), boxes })
    }
}

/// Removes the remains of a box after a while, unless it is connected again. Ends with the network thread.
async fn look_after(network: Remote<State>, id: String, turn: u64) {
    for _ in 0..TRIES_MAX {
        tokio::time::sleep(LINGER).await;
        let of = id.clone();
        match network.call(move |state| state.see_off(&of, turn)).await {
            None | Some(Ok(())) => return,
            Some(Err(error)) => {
                tracing::error!(
                    box_id = id,
                    error = error.chain(),
                    "the network of a removed box is not entirely gone"
                );
            }
        }
    }
}
