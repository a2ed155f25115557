//! A box's link: a veth pair, one end here, the other in the box's namespace.
//!
//! Owns: names, addresses, routes and settings of both ends. There is no bridge: every link is a network of two
//! addresses (/31). So boxes do not see each other's frames, and traffic between boxes passes the firewall as all other
//! traffic.
//!
//! Making a link is a list of [`Step`]s, each of which may be repeated. A process that dies between two steps leaves a
//! link that the firewall's prefix rule closes and that [`Links::list`] finds by its name.
//!
//! Invariant: an interface that begins with the firewall's prefix and belongs to another box is never touched.
//!
//! Leaves out: bandwidth (a queueing discipline on the host's end), pairs made ahead of demand.

use std::cell::{OnceCell, RefCell};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use rtnetlink::packet_route::RouteNetlinkMessage as Message;
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage, State as OperState,
};
use rtnetlink::packet_route::route::{RouteAttribute, RouteHeader};
use rtnetlink::{AddressMessageBuilder, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use sha2::{Digest as _, Sha256};

use super::address::{PAIR_PREFIX, Pair};
use super::devconf;
use super::firewall::PREFIX;
use super::namespace::Namespace;
use super::netlink::{RouteAnswers, RouteRequest, RouteSocket};
use super::sysctl::Ipv6;
use crate::error::{Cause, Error};

/// The name of the box's end inside the box.
pub(crate) const GUEST_NAME: &str = "eth0";
/// The MTU without an uplink.
const MTU_DEFAULT: u32 = 1500;
/// Least MTU of IPv4 hosts; a lower value of an uplink is ignored.
const MTU_MIN: u32 = 576;
/// Time for the kernel to raise the carrier.
const READY_SECONDS_MAX: u64 = 20;
/// An interface name has at most 15 bytes; four are the prefix.
const HASH_LETTERS: usize = 11;
const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// The parameters of a link.
#[derive(Debug, Clone)]
pub struct LinkSpec {
    /// The box's id, stored as the link's alias.
    pub id: String,
    /// Its addresses.
    pub pair: Pair,
    /// Its namespace.
    pub namespace: Namespace,
    /// The MTU, from [`Links::uplink`].
    pub mtu: u32,
}

/// An existing link of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The host's end.
    pub name: String,
    /// Its interface index.
    pub index: u32,
    /// The box's id; none if the process died before setting the alias.
    pub id: Option<String>,
}

/// The interface by which packets leave the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// The interface of the default route, if there is one.
    pub name: Option<String>,
    /// Its MTU.
    pub mtu: u32,
}

/// The steps of making a link, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Creates both ends, down.
    Create,
    /// Sets up the host's end: no IPv6; then the box's id as its alias, IPv4 settings, address, up.
    Host,
    /// Sets up the box's end: address, up, default route.
    Guest,
    /// Waits until the kernel has raised the carrier of the host's end and lets it send.
    Ready,
}

impl Step {
    /// All steps.
    pub const ALL: [Self; 4] = [Self::Create, Self::Host, Self::Guest, Self::Ready];
}

/// The name of the host's end. It is stable for a box. Two boxes share one with a probability of 2^-55, which the alias
/// then reveals.
#[must_use]
pub fn host_name(id: &str) -> String {
    let hash = Sha256::digest(id.as_bytes());
    let letters = hash.iter().take(HASH_LETTERS).map(|byte| char::from(LETTERS[usize::from(byte % 32)]));
    PREFIX.chars().chain(letters).collect()
}

/// A connection to rtnetlink in the namespace of the thread that opened it.
#[derive(Debug)]
pub struct Links {
    socket: RefCell<RouteSocket>,
    /// That namespace.
    home: Namespace,
    /// A plain socket for ioctls.
    plain: OwnedFd,
    /// Opened when a host's end is set up.
    ipv6: OnceCell<Ipv6>,
}

impl Links {
    /// Opens the connection.
    pub fn open() -> Result<Self, Error> {
        let failed = |e: Errno| Error::new("open", "netlink socket for links", e);
        let plain = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None).map_err(failed)?;
        let socket = RefCell::new(RouteSocket::open().map_err(failed)?);
        Ok(Self { socket, home: Namespace::own()?, plain, ipv6: OnceCell::new() })
    }

    /// Makes a link, completes a partial one, or leaves a complete one unchanged.
    pub fn create(&self, spec: &LinkSpec) -> Result<(), Error> {
        Step::ALL.into_iter().try_for_each(|step| self.step(step, spec))
    }

    /// Performs one step of [`Links::create`]; all steps before it must be done.
    pub fn step(&self, step: Step, spec: &LinkSpec) -> Result<(), Error> {
        let name = host_name(&spec.id);
        match step {
            Step::Create => self.make(&name, spec),
            Step::Host => {
                self.ipv6()?.disable(&name)?;
                let failed = |e: Errno| Error::new("find link", &name, e);
                let index = self.socket.borrow().index_of(&name).map_err(failed)?;
                let named = LinkUnspec::new_with_index(index).alias(spec.id.as_str());
                let named = named.append_extra_attribute(devconf::host_end()).build();
                let mut requests = vec![(0, Message::SetLink(named))];
                requests.extend(up_with_address(index, spec.pair.host()));
                self.ask("set up", &name, requests).map(drop)
            }
            Step::Guest => self.set_up_guest(spec),
            Step::Ready => self.wait_until_up(&name),
        }
    }

    /// Removes a box's link, with both ends. Does nothing if it is not there. The kernel answers once no CPU uses it,
    /// after tens of milliseconds.
    pub fn remove(&self, id: &str) -> Result<(), Error> {
        let name = host_name(id);
        match self.find(&name)? {
            Some(link) => {
                check_owner(&link, id)?;
                self.delete(&link)
            }
            None => Ok(()),
        }
    }

    /// True if a link with the box's name exists, even another box's. Unlike netlink, this does not wait for others
    /// that change links. A missing link has no route either: the kernel removes the name last.
    pub fn is_there(&self, id: &str) -> Result<bool, Error> {
        let name = host_name(id);
        match rustix::net::netdevice::name_to_index(&self.plain, &name) {
            Ok(_) => Ok(true),
            Err(Errno::NODEV) => Ok(false),
            Err(e) => Err(Error::new("look for link", name, e)),
        }
    }

    /// All existing links of boxes, whichever process made them.
    pub fn list(&self) -> Result<Vec<Link>, Error> {
        let links = self.dump("list links", Message::GetLink(LinkMessage::default()))?;
        let links: Vec<LinkMessage> = links.into_iter().filter_map(link_in).collect();
        Ok(links.iter().filter(|l| is_veth(l)).filter_map(read).filter(|l| l.name.starts_with(PREFIX)).collect())
    }

    /// Removes every link of a box for which `keep` is false, and returns the removed ones.
    pub fn sweep(&self, keep: impl Fn(&str) -> bool) -> Result<Vec<Link>, Error> {
        let mut gone = self.list()?;
        // A link without an id was never completed; its box, if it exists, makes it again.
        gone.retain(|link| !link.id.as_deref().is_some_and(&keep));
        gone.iter().try_for_each(|link| self.delete(link))?;
        Ok(gone)
    }

    /// The interface of the default route with the lowest metric.
    pub fn uplink(&self) -> Result<Uplink, Error> {
        let all = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let routes = self.dump("list routes", Message::GetRoute(all))?;
        let best = routes.iter().filter_map(default_route).min();
        let Some((_, index)) = best else {
            return Ok(Uplink { name: None, mtu: MTU_DEFAULT });
        };
        let subject = index.to_string();
        let found =
            self.ask("find link", &subject, vec![(0, Message::GetLink(LinkUnspec::new_with_index(index).build()))])?;
        let message = &found.messages.into_iter().find_map(link_in).ok_or_else(|| missing(&subject))?;
        let mtu = message.attributes.iter().find_map(|a| if let LinkAttribute::Mtu(n) = a { Some(*n) } else { None });
        // The loopback's 65536 would be as wrong as a too small value.
        let mtu = mtu.filter(|n| (MTU_MIN..=u32::from(u16::MAX)).contains(n)).unwrap_or(MTU_DEFAULT);
        Ok(Uplink { name: read(message).map(|l| l.name), mtu })
    }

    fn ipv6(&self) -> Result<&Ipv6, Error> {
        if let Some(known) = self.ipv6.get() {
            return Ok(known);
        }
        let opened = Ipv6::open()?;
        Ok(self.ipv6.get_or_init(|| opened))
    }

    fn make(&self, name: &str, spec: &LinkSpec) -> Result<(), Error> {
        // One queue each way is what a veth uses. Without these the kernel makes one per possible CPU, takes the others away
        // again, and waits for all CPUs on the way.
        let queues = [LinkAttribute::NumTxQueues(1), LinkAttribute::NumRxQueues(1)];
        let guest = LinkMessageBuilder::<LinkUnspec>::new().name(GUEST_NAME).mtu(spec.mtu);
        let mut guest = guest.setns_by_fd(spec.namespace.raw_fd()).build();
        guest.attributes.extend(queues.clone());
        let host = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth).name(name.to_owned());
        let mut host = host.mtu(spec.mtu).set_info_data(InfoData::Veth(InfoVeth::Peer(guest))).build();
        host.attributes.extend(queues);
        let add = || self.ask("make link", name, vec![(NLM_F_CREATE | NLM_F_EXCL, Message::NewLink(host.clone()))]);
        match add() {
            Err(error) if is(&error, Errno::EXIST) => {}
            other => return other.map(drop),
        }
        // The kernel says the same of either end.
        if let Some(link) = self.find(name)? {
            check_owner(&link, &spec.id)?;
            if spec.namespace.run(|| Self::open()?.has_peer(link.index))? {
                return Ok(());
            }
            // It belongs to a namespace that the box no longer has, and would occupy the name.
            self.delete(&link)?;
        }
        add().map(drop)
    }

    /// True if this namespace has the peer of the link with interface index `index` elsewhere. An index may equal
    /// another interface's in a third namespace, but that is not the namespace where the link's name was found.
    fn has_peer(&self, index: u32) -> Result<bool, Error> {
        let Some(message) = self.get(GUEST_NAME)? else { return Ok(false) };
        let is_peer = |a: &LinkAttribute| matches!(a, LinkAttribute::Link(n) if *n == index);
        Ok(is_veth(&message) && message.attributes.iter().any(is_peer))
    }

    fn set_up_guest(&self, spec: &LinkSpec) -> Result<(), Error> {
        let failed = |e: Errno| Error::new("set up", GUEST_NAME, e);
        let mut socket = self.home.visit(&spec.namespace, RouteSocket::open)?.map_err(failed)?;
        let index = socket.index_of(GUEST_NAME).map_err(failed)?;
        let settings = LinkUnspec::new_with_index(index).append_extra_attribute(devconf::box_end()).build();
        let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(spec.pair.host()).build();
        let mut requests = vec![(0, Message::SetLink(settings))];
        requests.push((0, Message::SetLink(LinkUnspec::new_with_name("lo").up().build())));
        requests.extend(up_with_address(index, spec.pair.guest()));
        requests.push((NLM_F_CREATE | NLM_F_REPLACE, Message::NewRoute(route)));
        let mut answers = socket.ask(requests).map_err(failed)?;
        // The kernel has no IPv6, or the MTU is below IPv6's least: there is none to take away.
        answers.outcomes.iter_mut().take(1).for_each(|of_ipv6| *of_ipv6 = of_ipv6.filter(|e| *e != Errno::AFNOSUPPORT));
        done("set up", GUEST_NAME, answers).map(drop)
    }

    /// The end that came up first learns of its carrier by a kernel worker; until then it drops packets. The box's
    /// first ARP request would get no answer, and would be repeated a second later.
    fn wait_until_up(&self, name: &str) -> Result<(), Error> {
        let failed = |e: Errno| Error::new("listen for", name, e);
        // Recent kernels settle the carrier of a link that they are asked for: then there is nothing to wait for.
        if self.get(name)?.is_some_and(|message| is_up(&message)) {
            return Ok(());
        }
        let mut changes = RouteSocket::of_link_changes().map_err(failed)?;
        let end = Instant::now() + Duration::from_secs(READY_SECONDS_MAX);
        // Any link change is a reason to check again; the first check follows the subscription.
        while !self.get(name)?.is_some_and(|message| is_up(&message)) {
            if Instant::now() >= end {
                return Err(Error::new("set up", name, io::Error::from(io::ErrorKind::TimedOut)));
            }
            loop {
                let heard = changes.changes().map_err(failed)?;
                // None: some were lost.
                if heard.is_empty() || heard.into_iter().filter_map(link_in).any(|m| named(&m) == Some(name)) {
                    break;
                }
            }
        }
        Ok(())
    }

    fn delete(&self, link: &Link) -> Result<(), Error> {
        let gone = LinkUnspec::new_with_index(link.index).build();
        match self.ask("remove link", &link.name, vec![(0, Message::DelLink(gone))]) {
            // It vanishes with the box's namespace, at any moment.
            Err(error) if is(&error, Errno::NODEV) => Ok(()),
            other => other.map(drop),
        }
    }

    fn find(&self, name: &str) -> Result<Option<Link>, Error> {
        Ok(self.get(name)?.as_ref().and_then(read))
    }

    fn get(&self, name: &str) -> Result<Option<LinkMessage>, Error> {
        match self.ask("find link", name, vec![(0, Message::GetLink(LinkUnspec::new_with_name(name).build()))]) {
            Ok(found) => Ok(found.messages.into_iter().find_map(link_in)),
            Err(error) if is(&error, Errno::NODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn ask(&self, what: &'static str, subject: &str, requests: Vec<RouteRequest>) -> Result<RouteAnswers, Error> {
        let answers = self.socket.borrow_mut().ask(requests).map_err(|e| Error::new(what, subject, e))?;
        done(what, subject, answers)
    }

    fn dump(&self, what: &'static str, message: Message) -> Result<Vec<Message>, Error> {
        self.socket.borrow_mut().dump(message).map_err(|e| Error::new(what, "", e))
    }
}

/// The answers, if no request has failed.
fn done(what: &'static str, subject: &str, answers: RouteAnswers) -> Result<RouteAnswers, Error> {
    match answers.outcomes.iter().flatten().next() {
        Some(errno) => Err(Error::new(what, subject, *errno)),
        None => Ok(answers),
    }
}

fn is(error: &Error, errno: Errno) -> bool {
    matches!(error.cause(), Cause::Io(e) if e.raw_os_error() == Some(errno.raw_os_error()))
}

/// Requests that give an end its address and then set it up.
fn up_with_address(index: u32, address: Ipv4Addr) -> Vec<RouteRequest> {
    let message = AddressMessageBuilder::<Ipv4Addr>::new().index(index).address(address, PAIR_PREFIX).build();
    let up = LinkUnspec::new_with_index(index).up().build();
    vec![(NLM_F_CREATE | NLM_F_REPLACE, Message::NewAddress(message)), (0, Message::SetLink(up))]
}

fn link_in(message: Message) -> Option<LinkMessage> {
    if let Message::NewLink(link) = message { Some(link) } else { None }
}

fn named(message: &LinkMessage) -> Option<&str> {
    message.attributes.iter().find_map(|a| if let LinkAttribute::IfName(name) = a { Some(name.as_str()) } else { None })
}

fn is_up(message: &LinkMessage) -> bool {
    message.attributes.iter().any(|a| matches!(a, LinkAttribute::OperState(OperState::Up)))
}

fn missing(name: &str) -> Error {
    Error::new("find link", name, io::Error::from_raw_os_error(libc::ENODEV))
}

/// Fails if the link was made for another box, even if it has the expected name.
fn check_owner(link: &Link, id: &str) -> Result<(), Error> {
    match &link.id {
        Some(other) if other != id => {
            Err(Error::new("use link", format!("{} for {id}", link.name), Cause::Invalid("it is another box's")))
        }
        _ => Ok(()),
    }
}

fn read(message: &LinkMessage) -> Option<Link> {
    let text = |find: fn(&LinkAttribute) -> Option<&String>| message.attributes.iter().find_map(find).cloned();
    let name = text(|a| if let LinkAttribute::IfName(name) = a { Some(name) } else { None })?;
    let id = text(|a| if let LinkAttribute::IfAlias(alias) = a { Some(alias) } else { None });
    Some(Link { name, index: message.header.index, id })
}

fn is_veth(message: &LinkMessage) -> bool {
    let is_veth = |info: &LinkInfo| matches!(info, LinkInfo::Kind(InfoKind::Veth));
    let of_kind = |a: &LinkAttribute| matches!(a, LinkAttribute::LinkInfo(infos) if infos.iter().any(is_veth));
    message.attributes.iter().any(of_kind)
}

/// Metric and interface of a default route in the main table.
fn default_route(message: &Message) -> Option<(u32, u32)> {
    let Message::NewRoute(route) = message else { return None };
    let is_ours = route.header.address_family == rtnetlink::packet_route::AddressFamily::Inet
        && route.header.destination_prefix_length == 0
        && route.header.table == RouteHeader::RT_TABLE_MAIN;
    let number = |find: fn(&RouteAttribute) -> Option<u32>| route.attributes.iter().find_map(find);
    let index = number(|a| if let RouteAttribute::Oif(n) = a { Some(*n) } else { None })?;
    let metric = number(|a| if let RouteAttribute::Priority(n) = a { Some(*n) } else { None });
    is_ours.then_some((metric.unwrap_or(0), index))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_fit_are_stable_and_differ() {
        assert_eq!(host_name("right-flamingo-14486"), host_name("right-flamingo-14486"));
        let names: HashSet<String> = (0..10_000).map(|n| host_name(&format!("box-{n}"))).collect();
        assert_eq!(names.len(), 10_000);
        for name in names {
            assert!(name.len() <= 15 && name.starts_with(PREFIX), "{name}");
            assert!(name.bytes().all(|b| b == b'-' || b.is_ascii_lowercase() || b.is_ascii_digit()), "{name}");
        }
        // This value must never change: a changed hash would lose existing links. Computed by an independent
        // implementation.
        assert_eq!(host_name(""), "ice-dqecy44u23u");
    }

    #[test]
    fn a_link_of_another_box_is_not_used() {
        let link = |id: Option<&str>| Link { name: host_name("a"), index: 7, id: id.map(str::to_owned) };
        assert!(check_owner(&link(Some("a")), "a").is_ok());
        assert!(check_owner(&link(None), "a").is_ok(), "its maker died before naming it");
        assert!(check_owner(&link(Some("b")), "a").is_err());
    }
}
