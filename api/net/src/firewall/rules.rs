//! The rights of one box, and the set elements that express them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use super::element::{Data, Element, State};
use super::ruleset::{ACCEPT_IN, ACCEPT_OUT, CUSTOM_IN, CUSTOM_OUT, DENY_IN, DENY_OUT, TO_DNS, TO_EGRESS};
use super::sets::{NAME_BYTES, Set, name_key};
use super::settings::{IPPROTO_TCP, IPPROTO_UDP, PORT_DNS, PORT_HTTP, PORT_HTTPS};
use crate::address::Pair;
use crate::cidr::{Cidr, Range, disjoint};
use crate::error::{Cause, Error};

/// Most networks in one list of a policy.
pub(crate) const NETWORKS_MAX: usize = 512;
/// Most addresses pinned at once for one box.
pub(crate) const PINS_MAX: usize = 4096;
const DNS: [(u8, u16); 2] = [(IPPROTO_TCP, PORT_DNS), (IPPROTO_UDP, PORT_DNS)];
const HTTP: (u8, u16) = (IPPROTO_TCP, PORT_HTTP);
const HTTPS: (u8, u16) = (IPPROTO_TCP, PORT_HTTPS);
/// Refusals of one box that are logged per second; the others are only counted.
const TOLD_PER_SECOND: u32 = 20;
/// Reports per second of arrivals for a frozen box. One is enough if it is received.
const ARRIVALS_PER_SECOND: u32 = 5;
/// Range of byte limits: one packet must fit into the lowest, and the kernel's arithmetic must hold the highest.
const BYTES_PER_SECOND: RangeInclusive<u64> = 64 << 10..=16 << 30;
/// Longest pin; a longer TTL of an answer is cut to it.
const PIN_SECONDS_MAX: u64 = 24 * 3600;

/// The destinations that a box may reach, except those that no box reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Policy {
    /// Everything.
    AllowAll,
    /// Nothing.
    DenyAll,
    /// Allowed and not denied destinations. Names are the DNS proxy's part, which pins their addresses.
    Custom {
        /// Networks that are allowed.
        allowed: Vec<Cidr>,
        /// Networks that are denied, even where they are allowed or pinned.
        denied: Vec<Cidr>,
    },
}

/// Limits of one box; none means no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// New connections per second.
    pub new_per_second_max: Option<u32>,
    /// Bytes per second that leave the box, with their IP headers.
    pub send_bytes_per_second: Option<u64>,
    /// Bytes per second that reach it.
    pub receive_bytes_per_second: Option<u64>,
}

/// The address of a name, and its validity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin {
    /// The address.
    pub address: Ipv4Addr,
    /// Remaining time of the answer.
    pub time: Duration,
}

/// The firewall's data of a box.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoxRules {
    /// The host's end of the link.
    pub interface: String,
    /// Its addresses.
    pub pair: Pair,
    /// The reachable destinations.
    pub policy: Policy,
    /// Its limits.
    pub limits: Limits,
    /// Redirects all traffic to port 443 to our proxy, because headers may have to be added.
    pub intercept_tls: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    AllowAll,
    DenyAll,
    Custom,
}

impl Kind {
    fn chains(self) -> (&'static str, &'static str) {
        match self {
            Self::AllowAll => (ACCEPT_OUT, ACCEPT_IN),
            Self::DenyAll => (DENY_OUT, DENY_IN),
            Self::Custom => (CUSTOM_OUT, CUSTOM_IN),
        }
    }
}

/// A box, as stored in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) interface: String,
    pub(super) pair: Pair,
    kind: Kind,
    allowed: Vec<Range>,
    denied: Vec<Range>,
    pub(super) limits: Limits,
    pub(super) intercept_tls: bool,
    /// The box is frozen, and arrivals for it are reported.
    pub(super) frozen: bool,
    /// The mark of connections that a name allowed. Each policy of each box has its own, so that connections of an
    /// older policy do not pass, nor those of another box that had the address before.
    pub(super) generation: u32,
    /// Pinned addresses, with their ends.
    pins: BTreeMap<Ipv4Addr, Instant>,
}

impl Entry {
    pub(super) fn new(rules: &BoxRules, generation: u32) -> Result<Self, Error> {
        let mut entry = Self {
            interface: rules.interface.clone(),
            pair: rules.pair,
            kind: Kind::DenyAll,
            allowed: Vec::new(),
            denied: Vec::new(),
            limits: rules.limits,
            intercept_tls: rules.intercept_tls,
            frozen: false,
            generation,
            pins: BTreeMap::new(),
        };
        entry.set_policy(&rules.policy, generation)?;
        entry.check_limits()?;
        Ok(entry)
    }

    fn check_limits(&self) -> Result<(), Error> {
        // A rate of zero is invalid; a policy is the way to forbid connections.
        if self.limits.new_per_second_max == Some(0) {
            return Err(Error::new(
                "limit",
                self.interface.clone(),
                Cause::Invalid("at least one connection per second"),
            ));
        }
        let bytes = [self.limits.send_bytes_per_second, self.limits.receive_bytes_per_second];
        if bytes.into_iter().flatten().any(|n| !BYTES_PER_SECOND.contains(&n)) {
            let cause = Cause::Invalid("64 KiB to 16 GiB per second");
            return Err(Error::new("limit", self.interface.clone(), cause));
        }
        Ok(())
    }

    pub(super) fn set_limits(&mut self, limits: Limits) -> Result<(), Error> {
        self.limits = limits;
        self.check_limits()
    }

    /// Sets the new policy, without pins.
    pub(super) fn set_policy(&mut self, policy: &Policy, generation: u32) -> Result<(), Error> {
        let (kind, allowed, denied) = match policy {
            Policy::AllowAll => (Kind::AllowAll, &[][..], &[][..]),
            Policy::DenyAll => (Kind::DenyAll, &[][..], &[][..]),
            Policy::Custom { allowed, denied } => (Kind::Custom, &allowed[..], &denied[..]),
        };
        if allowed.len().max(denied.len()) > NETWORKS_MAX {
            return Err(Error::new("set policy of", self.interface.clone(), Cause::Exhausted("place for networks")));
        }
        (self.kind, self.allowed, self.denied) = (kind, disjoint(allowed), disjoint(denied));
        self.pins.clear();
        self.generation = generation;
        Ok(())
    }

    /// Pins addresses. A pin ends at the later of its old and its new end.
    pub(super) fn pin(&mut self, pins: &[Pin], now: Instant) -> Result<(), Error> {
        if self.kind != Kind::Custom {
            return Err(Error::new("pin for", self.interface.clone(), Cause::Invalid("its policy has no names")));
        }
        self.pins.retain(|_, end| *end > now);
        for pin in pins {
            let end = now + pin.time.min(Duration::from_secs(PIN_SECONDS_MAX));
            let kept = self.pins.entry(pin.address).or_insert(end);
            *kept = end.max(*kept);
        }
        if self.pins.len() > PINS_MAX {
            return Err(Error::new("pin for", self.interface.clone(), Cause::Exhausted("place for addresses")));
        }
        Ok(())
    }

    pub(super) fn elements(&self, now: Instant) -> Vec<Element> {
        let own = self.pair.guest().octets();
        let named = |address: Ipv4Addr| [&name_key(&self.interface)[..], &address.octets()].concat();
        let (out, back) = self.kind.chains();
        let nothing = State::Counter { packets: 0, bytes: 0 };
        let mut elements = vec![
            Element::new(Set::Boxes, named(self.pair.guest())),
            Element::new(Set::Gateways, named(self.pair.host())),
            Element::new(Set::Addresses, own),
            Element::new(Set::Owners, name_key(&self.interface)).leads_to(Data::Mark(u32::from_ne_bytes(own))),
            Element::new(Set::LogRate, own).with(State::RateOver(TOLD_PER_SECOND)),
            Element::new(Set::MarkedRate, own).with(State::RateOver(TOLD_PER_SECOND)),
            Element::new(Set::PolicyOut, own).leads_to(Data::Goto(out)),
            Element::new(Set::PolicyIn, own).leads_to(Data::Goto(back)),
        ];
        for (set, ranges) in [(Set::Allowed, &self.allowed), (Set::Denied, &self.denied)] {
            let key = |address: Ipv4Addr| [own, address.octets()].concat();
            let range = |r: &Range| Element { end: Some(key(r.last)), ..Element::new(set, key(r.first)) };
            elements.extend(ranges.iter().map(range));
        }
        elements
            .extend(self.pins.iter().map(|(address, end)| self.pinned(*address, end.saturating_duration_since(now))));
        elements.push(Element::new(Set::Generation, own).leads_to(Data::Mark(self.generation)));
        elements.push(Element::new(Set::Current, [own, self.generation.to_ne_bytes()].concat()));
        elements.extend(
            [Set::Sent, Set::Received, Set::Refused, Set::Traffic].map(|set| Element::new(set, own).with(nothing)),
        );
        elements
            .extend(self.limits.new_per_second_max.map(|n| Element::new(Set::NewRate, own).with(State::RateOver(n))));
        elements.extend(self.redirected());
        let rate = |set: Set, rate: Option<u64>| rate.map(|n| Element::new(set, own).with(State::BytesOver(n)));
        elements.extend(rate(Set::SendRate, self.limits.send_bytes_per_second));
        elements.extend(rate(Set::ReceiveRate, self.limits.receive_bytes_per_second));
        if self.frozen {
            elements.push(Element::new(Set::Frozen, own).with(State::RateUpTo(ARRIVALS_PER_SECOND)));
        }
        elements
    }

    /// The ports that go to our proxies. Under `custom`, the proxies check names.
    fn redirected(&self) -> Vec<Element> {
        let element = |set: Set, (protocol, port): (u8, u16), chain: &'static str| {
            let key = [&self.pair.guest().octets()[..], &port_key(protocol, port)].concat();
            Element::new(set, key).leads_to(Data::Goto(chain))
        };
        let mut elements = Vec::new();
        if self.kind == Kind::Custom {
            elements.extend(DNS.map(|dns| element(Set::RedirectAlways, dns, TO_DNS)));
            elements.extend([HTTP, HTTPS].map(|web| element(Set::RedirectElse, web, TO_EGRESS)));
        }
        if self.kind != Kind::DenyAll && self.intercept_tls {
            elements.push(element(Set::RedirectAlways, HTTPS, TO_EGRESS));
        }
        elements
    }

    /// True if both policies allow the same.
    pub(super) fn has_policy_of(&self, other: &Self) -> bool {
        (self.kind, &self.allowed, &self.denied) == (other.kind, &other.allowed, &other.denied)
    }

    /// Continues `old`: keeps its pins, and the connections that they allowed.
    pub(super) fn continues(&mut self, old: &Self) {
        self.generation = old.generation;
        self.pins.clone_from(&old.pins);
        self.frozen = old.frozen;
    }

    fn pinned(&self, address: Ipv4Addr, time: Duration) -> Element {
        let key = [self.pair.guest().octets(), address.octets()].concat();
        Element { timeout: Some(time), ..Element::new(Set::Pinned, key) }
    }

    /// The box with these elements. `None` if they are not exactly the elements of a box.
    pub(super) fn of_elements(elements: &[Element], now: Instant) -> Option<Self> {
        let one = |set: Set| elements.iter().find(|e| e.set == set);
        let key = &one(Set::Boxes)?.key;
        let name = key.get(..NAME_BYTES)?.split(|b| *b == 0).next()?;
        let Data::Goto(out) = one(Set::PolicyOut)?.data? else { return None };
        let Data::Mark(generation) = one(Set::Generation)?.data? else { return None };
        let address = |key: &[u8]| Some(Ipv4Addr::from(<[u8; 4]>::try_from(key.get(4..8)?).ok()?));
        let ranges = |set: Set| -> Option<Vec<Range>> {
            let of_set = elements.iter().filter(|e| e.set == set);
            of_set.map(|e| Some(Range { first: address(&e.key)?, last: address(e.end.as_ref()?)? })).collect()
        };
        let pins = elements.iter().filter(|e| e.set == Set::Pinned);
        let entry = Self {
            interface: std::str::from_utf8(name).ok()?.to_owned(),
            pair: Pair::of(Set::Boxes.box_in(key)?),
            kind: [Kind::AllowAll, Kind::DenyAll, Kind::Custom].into_iter().find(|kind| kind.chains().0 == out)?,
            allowed: ranges(Set::Allowed)?,
            denied: ranges(Set::Denied)?,
            limits: Limits {
                new_per_second_max: one(Set::NewRate).and_then(|e| match e.state {
                    State::RateOver(n) => Some(n),
                    _ => None,
                }),
                send_bytes_per_second: one(Set::SendRate).and_then(bytes_over),
                receive_bytes_per_second: one(Set::ReceiveRate).and_then(bytes_over),
            },
            frozen: one(Set::Frozen).is_some(),
            intercept_tls: elements
                .iter()
                .any(|e| e.set == Set::RedirectAlways && e.key.get(4..) == Some(&port_key(HTTPS.0, HTTPS.1)[..])),
            generation,
            pins: pins.map(|e| Some((address(&e.key)?, now + e.timeout?))).collect::<Option<_>>()?,
        };
        let should = entry.elements(now);
        let complete = should.iter().all(|e| elements.iter().any(|other| e.does_the_same_as(other)));
        (complete && should.len() == elements.len()).then_some(entry)
    }
}

fn bytes_over(element: &Element) -> Option<u64> {
    if let State::BytesOver(n) = element.state { Some(n) } else { None }
}

/// Protocol and port, in a key's form.
pub(super) fn port_key(protocol: u8, port: u16) -> [u8; 8] {
    let [high, low] = port.to_be_bytes();
    [protocol, 0, 0, 0, high, low, 0, 0]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn custom() -> BoxRules {
        let net = |t: &str| t.parse::<Cidr>().expect("network");
        BoxRules {
            interface: "ice-abcdefghijk".into(),
            pair: Pair::of([10, 88, 0, 3].into()),
            policy: Policy::Custom {
                allowed: vec![net("203.0.113.0/24"), net("198.51.100.1/32")],
                denied: vec![net("203.0.113.9/32"), net("203.0.113.8/32")],
            },
            limits: Limits {
                new_per_second_max: Some(6),
                send_bytes_per_second: Some(1 << 20),
                receive_bytes_per_second: Some(1 << 34),
            },
            intercept_tls: true,
        }
    }

    #[test]
    fn a_box_is_read_back_from_its_elements() {
        let now = Instant::now();
        let mut entry = Entry::new(&custom(), 7).expect("entry");
        entry.pin(&[Pin { address: [192, 0, 2, 7].into(), time: Duration::from_secs(9) }], now).expect("pin");
        entry.frozen = true;
        let elements = entry.elements(now);
        assert_eq!(Entry::of_elements(&elements, now), Some(entry.clone()));
        for gone in 0..elements.len() {
            let mut rest = elements.clone();
            let lost = rest.remove(gone);
            // A box may lack limits, networks and pins; if it lacks anything else it is damaged.
            let limits = [Set::NewRate, Set::SendRate, Set::ReceiveRate];
            let optional = [&limits[..], &[Set::Allowed, Set::Denied, Set::Pinned, Set::Frozen]].concat();
            let may_be_without = optional.contains(&lost.set)
                || lost.data == Some(Data::Goto(TO_EGRESS)) && lost.set == Set::RedirectAlways;
            assert_eq!(Entry::of_elements(&rest, now).is_some(), may_be_without, "without {lost:?}");
        }
        let mut more = elements;
        more.push(Element::new(Set::Current, [10, 88, 0, 3, 1, 0, 0, 0]));
        assert_eq!(Entry::of_elements(&more, now), None, "an old mark still counts");
    }

    #[test]
    fn a_policy_forgets_the_pins_of_the_last_one() {
        let now = Instant::now();
        let mut entry = Entry::new(&custom(), 7).expect("entry");
        let pin = |n: u16| Pin { address: [192, 0, (n >> 8) as u8, n as u8].into(), time: Duration::from_secs(9) };
        entry.pin(&[pin(1)], now).expect("pin");
        entry.set_policy(&Policy::Custom { allowed: vec![], denied: vec![] }, 8).expect("policy");
        assert!(entry.elements(now).iter().all(|e| e.set != Set::Pinned));
        let many: Vec<Pin> = (0..=PINS_MAX as u16).map(pin).collect();
        assert!(entry.clone().pin(&many, now).is_err(), "too many");
        entry.pin(&many[1..], now).expect("just enough");
        let later = now + Duration::from_secs(10);
        entry.pin(&[pin(1)], later).expect("the others have ended");
        assert_eq!(entry.pins.len(), 1);
        entry.set_policy(&Policy::AllowAll, 9).expect("policy");
        assert!(entry.pin(&[pin(1)], now).is_err(), "nothing to pin for");
    }

    #[test]
    fn what_goes_to_proxies_is_the_policys_and_the_headers() {
        let count = |policy: Policy, intercept_tls: bool| {
            let entry = Entry::new(&BoxRules { policy, intercept_tls, ..custom() }, 1).expect("entry");
            let of = |set: Set| entry.redirected().iter().filter(|e| e.set == set).count();
            (of(Set::RedirectAlways), of(Set::RedirectElse))
        };
        let lists = || Policy::Custom { allowed: vec![], denied: vec![] };
        assert_eq!((count(Policy::DenyAll, true), count(Policy::DenyAll, false)), ((0, 0), (0, 0)));
        assert_eq!((count(Policy::AllowAll, true), count(Policy::AllowAll, false)), ((1, 0), (0, 0)));
        assert_eq!((count(lists(), true), count(lists(), false)), ((3, 2), (2, 2)));
    }

    #[test]
    fn limits_of_nothing_and_endless_lists_are_refused() {
        for limits in [
            Limits { new_per_second_max: Some(0), ..Limits::default() },
            Limits { send_bytes_per_second: Some(1000), ..Limits::default() },
            Limits { receive_bytes_per_second: Some(u64::MAX), ..Limits::default() },
        ] {
            assert!(Entry::new(&BoxRules { limits, ..custom() }, 1).is_err(), "{limits:?}");
        }
        let allowed = vec!["203.0.113.0/24".parse().expect("network"); NETWORKS_MAX + 1];
        let policy = Policy::Custom { allowed, denied: vec![] };
        assert!(Entry::new(&BoxRules { policy, ..custom() }, 1).is_err());
    }
}
