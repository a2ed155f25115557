//! The network of boxes: addresses, links and firewall, on the host's side.
//!
//! Owns: [`HostSide`], which does for a box what has to be done together and in order. It works on one thread of its own
//! that has entered the namespace of the host side: the machine's own, or the one that `--netns` names. [`Network`] is the whole of it, proxies included.
//!
//! The order is what keeps a box closed in whenever this process dies: the firewall's table first, which drops whatever
//! comes from an interface of the prefix; then the link; and the box's elements in the firewall, which open, last. On the
//! way back the elements go first, and the link when the box's namespace ends ([`leaving`]).

pub mod address;
pub mod authority;
pub mod cidr;
mod clock;
pub mod config;
pub mod conntrack;
pub mod denial;
pub mod dns;
pub mod egress;
pub mod error;
pub mod firewall;
pub mod headers;
mod leaving;
pub mod link;
pub mod names;
pub mod namespace;
mod netlink;
mod network;
pub mod nflog;
pub mod policy;
pub mod probe;
pub mod secret;
pub mod sockets;
mod sysctl;
pub mod table;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::runtime::Handle;

use self::address::Pair;
use self::cidr::Cidr;
use self::conntrack::{Connection, Connections, Tracker};
use self::firewall::{BoxRules, Counters, Firewall, Limits, Pin, Policy, ProxyPorts, Settings};
use self::leaving::{Leaving, look_after};
use self::link::{LinkSpec, Links, Uplink, host_name};
use self::namespace::{Namespace, Remote, Worker};
use self::netlink::{Ears, Listener};
pub use self::network::{Network, NetworkParts, OnRefusal, Report, Rights};
use self::nflog::Events;
use crate::error::{Cause, Error};

/// What an operator chooses for all boxes.
#[derive(Debug, Clone)]
pub struct HostConfig {
    /// The addresses of boxes.
    pub pool: Cidr,
    /// Whether boxes may send mail by themselves (TCP 25).
    pub smtp_allowed: bool,
    /// Where our proxies listen.
    pub ports: ProxyPorts,
    /// Connections that each box may have at once.
    pub connections_max: Option<u32>,
    /// Whether nobody else shall be able to change the firewall's table, where the kernel can do that.
    pub guarded: bool,
}

/// A box that is to be connected.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// The box.
    pub id: String,
    /// Its addresses.
    pub pair: Pair,
    /// Its namespace.
    pub namespace: Namespace,
    /// What it may reach.
    pub policy: Policy,
    /// Its limits.
    pub limits: Limits,
    /// Whether headers may have to be added to what it sends.
    pub intercept_tls: bool,
}

/// What was left of boxes that are no more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// Interfaces removed.
    pub links: Vec<String>,
    /// Boxes taken out of the firewall.
    pub boxes: Vec<Pair>,
}

/// Names in the abstract space of Unix sockets belong to a network namespace, and go with the process that has bound them.
const CLAIM: &[u8] = b"icebox/host-side";

/// Makes this process the one Icebox of the namespace: two would take each other's boxes for leftovers.
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
    /// Keeps every other Icebox out of the namespace as long as it is open. The last to be dropped: as long as the firewall's
    /// socket is open, the table is nobody else's.
    _claim: OwnedFd,
}

/// The host's side of all boxes.
#[derive(Debug)]
pub struct HostSide {
    worker: Worker<State>,
    /// What happened, until somebody takes it.
    events: Mutex<Option<Events>>,
    _ears: Ears,
}

impl HostSide {
    /// Puts the firewall in place in `namespace`, then lets the uplink forward what comes back. Boxes that a former
    /// process has connected are as they were.
    pub async fn start(namespace: Namespace, config: HostConfig) -> Result<Self, Error> {
        let worker = Worker::start("network", namespace, move || State::start(config)).await?;
        let remote = worker.remote();
        let (listeners, events) = worker.call(move |state| state.listeners(remote)).await?;
        let ears = Ears::start("network-events", listeners)?;
        Ok(Self { worker, events: Mutex::new(Some(events)), _ears: ears })
    }

    /// What happens from now on, for the first who asks.
    pub fn events(&self) -> Option<Events> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether a box sleeps. From the moment this has returned, it is told once in a while if something arrives for it;
    /// so it comes before a box is frozen.
    pub async fn set_frozen(&self, pair: Pair, frozen: bool) -> Result<(), Error> {
        self.worker.call(move |state| state.firewall.set_frozen(pair, frozen)).await
    }

    /// How many bytes went to and from each box so far, TCP packets that carry nothing aside: if it has changed, there
    /// was activity.
    pub async fn traffic(&self) -> Result<BTreeMap<Ipv4Addr, u64>, Error> {
        self.worker.call(|state| state.firewall.traffic()).await
    }

    /// What every box sent, received and was refused.
    pub async fn all_counters(&self) -> Result<BTreeMap<Ipv4Addr, Counters>, Error> {
        self.worker.call(|state| state.firewall.all_counters()).await
    }

    /// The connections of a box.
    pub async fn connections(&self, pair: Pair) -> Result<Connections, Error> {
        self.worker.call(move |state| state.tracker.connections(pair.guest())).await
    }

    /// Where packets leave, as found at the start.
    pub async fn uplink(&self) -> Result<Uplink, Error> {
        self.worker.call(|state| Ok(state.uplink.clone())).await
    }

    /// Connects a box, or does what is missing of it.
    pub async fn attach(&self, box_: Attachment) -> Result<(), Error> {
        self.worker.call(move |state| state.attach(box_)).await
    }

    /// Disconnects a box, whatever there is of it. When this returns, nothing passes any more. The rest goes a little later
    /// ([`leaving`]).
    pub async fn detach(&self, id: &str, pair: Pair) -> Result<(), Error> {
        let (id, remote, runtime) = (id.to_owned(), self.worker.remote(), Handle::current());
        // Begun there: whoever waits for this may go away meanwhile.
        let work = move |state: &mut State| {
            if let Some(turn) = state.detach(&id, pair)? {
                runtime.spawn(look_after(remote, id, turn));
            }
            Ok(())
        };
        self.worker.call(work).await
    }

    /// Removes what is left of boxes that were detached lately, before nobody looks after it any more.
    pub async fn see_off_all(&self) -> Result<(), Error> {
        self.worker.call(State::see_off_all).await
    }

    /// Another policy, with the addresses its names are known to stand for; see [`Firewall::set_policy`].
    pub async fn set_policy(&self, pair: Pair, policy: Policy, pins: Vec<Pin>) -> Result<(), Error> {
        let work = move |state: &mut State| {
            state.firewall.set_policy(pair, &policy, &pins)?;
            // Where something goes is asked once for each connection. A program that asks names from the same port all
            // the time is asked again.
            state.tracker.forget(pair.guest(), Connection::asks_names_directly)
        };
        self.worker.call(work).await
    }

    /// Other limits.
    pub async fn set_limits(&self, pair: Pair, limits: Limits) -> Result<(), Error> {
        self.worker.call(move |state| state.firewall.set_limits(pair, limits)).await
    }

    /// Whether what a box sends to port 443 goes to our proxy, whatever address it is for.
    pub async fn set_intercept_tls(&self, pair: Pair, intercept_tls: bool) -> Result<(), Error> {
        self.worker.call(move |state| state.firewall.set_intercept_tls(pair, intercept_tls)).await
    }

    /// Lets a box with a `custom` policy reach addresses for a while.
    pub async fn pin(&self, pair: Pair, pins: Vec<Pin>) -> Result<(), Error> {
        self.worker.call(move |state| state.firewall.pin(pair, &pins)).await
    }

    /// What a box sent, received and was refused.
    pub async fn counters(&self, pair: Pair) -> Result<Counters, Error> {
        self.worker.call(move |state| state.firewall.counters(pair)).await
    }

    /// Removes what is left of boxes that are not among `kept`, after a crash.
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
        // Only now: the rule that keeps the host from being a router for others is in the table.
        to_open.map_or(Ok(()), |name| sysctl::forward(name))?;
        let (tracker, leaving) = (Tracker::open()?, Leaving::default());
        Ok(Self { firewall, tracker, links, leaving, uplink, pool, _claim: claim })
    }

    /// What the kernel tells by itself: of packets, and of changes of the table that are not ours.
    fn listeners(&mut self, remote: Remote<Self>) -> Result<(Vec<Listener>, Events), Error> {
        let (mut listeners, events) = nflog::listeners()?;
        // One removal of a table is many messages.
        let is_posted = Arc::new(AtomicBool::new(false));
        let changed = move || {
            if is_posted.swap(true, Ordering::AcqRel) {
                return;
            }
            let done = Arc::clone(&is_posted);
            let work = move |state: &mut Self| {
                done.store(false, Ordering::Release);
                match state.firewall.repair() {
                    Ok(()) => tracing::warn!("somebody else has changed the firewall of boxes; it was put back"),
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
        // Its own old link is found by its name, and removed if it isn't that of this namespace.
        if let Some(former) = self.leaving.pair_of(&id) {
            self.forget_left(former)?;
            self.leaving.take(&id);
        }
        self.links.create(&LinkSpec { id, pair, namespace, mtu: self.uplink.mtu })?;
        self.firewall.set(&BoxRules { interface, pair, policy, limits, intercept_tls })
    }

    /// Closes a box in. A number if there is something to look after.
    fn detach(&mut self, id: &str, pair: Pair) -> Result<Option<u64>, Error> {
        let was_open = self.firewall.boxes().any(|(open, _)| open == pair);
        if let Err(error) = self.firewall.remove(pair) {
            // Without a link nothing passes, whatever the firewall says.
            self.links.remove(id)?;
            return Err(error);
        }
        if was_open || (self.leaving.pair_of(id).is_none() && self.links.is_there(id)?) {
            return Ok(Some(self.leaving.add(id, pair)));
        }
        Ok(None)
    }

    /// The time is over in which everything of a box should have gone by itself.
    fn see_off(&mut self, id: &str, turn: u64) -> Result<(), Error> {
        if self.leaving.has_since(id, turn) { self.finish(id) } else { Ok(()) }
    }

    fn see_off_all(&mut self) -> Result<(), Error> {
        self.leaving.ids().iter().try_for_each(|id| self.finish(id))
    }

    /// Removes what is left of a box that was detached.
    fn finish(&mut self, id: &str) -> Result<(), Error> {
        let Some(pair) = self.leaving.pair_of(id) else { return Ok(()) };
        self.forget_left(pair)?;
        // Mostly it is gone, and to ask is cheap.
        if self.links.is_there(id)? {
            tracing::info!(box_id = id, "the network namespace of a box that was disconnected is still there");
            self.links.remove(id)?;
        }
        self.leaving.take(id);
        Ok(())
    }

    /// Forgets the connections of a box that was detached, so that whoever has the address next does not go on with what it
    /// has begun; in the same walk those of all others that were.
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
        // Also of those that were closed in, and whose connections nobody came to forget.
        let known: BTreeSet<Ipv4Addr> = self.firewall.boxes().map(|(pair, _)| pair.guest()).collect();
        let pool = self.pool;
        self.tracker.forget_all(|source| pool.contains(source) && !known.contains(&source))?;
        let links = self.links.sweep(|id| kept.iter().any(|k| k == id))?;
        Ok(Swept { links: links.into_iter().map(|l| l.name).collect(), boxes })
    }
}
