//! The firewall of all boxes: one nftables table in the namespace of the host side.
//!
//! Owns: the table `inet icebox`, and which elements of its sets belong to which box. The rules are written once and do
//! not depend on boxes ([`ruleset`]); a box is a few elements ([`rules`], [`sets`]). All changes are transactions.
//!
//! The table stays when this process ends, so boxes stay closed in and connected. [`Firewall::open`] finds it: the rules
//! are written anew in any case, the sets are kept with all that is in them, and a box whose elements are not exactly what
//! a box has is taken out, which closes it. If the sets themselves are of another version, the whole table is replaced in
//! one transaction, with its boxes.
//!
//! Where the kernel can do that, nobody else can change the table while this process lives ([`guard`]).
//!
//! A [`Firewall`] belongs to the thread that opened it, in the namespace it has entered; one process may have one per
//! namespace.
//!
//! Leaves out: links, names (the DNS proxy [`Firewall::pin`]s what they stand for), reading what the rules tell (`nflog`),
//! noticing that somebody else has changed the table (`watch`), and tracked connections (`conntrack`).

mod batch;
mod element;
mod expr;
mod fixed;
mod guard;
pub(super) mod kernel;
pub(super) mod reason;
mod rules;
mod ruleset;
mod sets;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use sha2::{Digest as _, Sha256};

use self::batch::{Batch, Socket, Verb};
use self::element::{Element, State, element_named, read_elements, set_named};
pub use self::fixed::closed;
use self::rules::Entry;
pub use self::rules::{BoxRules, Limits, NETWORKS_MAX, PIN_SECONDS_MAX, PINS_MAX, Pin, Policy};
pub use self::ruleset::PREFIX;
use self::sets::{ALL, NAME_BYTES, OF_BOXES, Set};
pub(super) use self::{
    batch::{FAMILY, SUBSYSTEM},
    ruleset::TABLE,
};
use super::address::Pair;
use super::cidr::Cidr;
use super::netlink::{Attrs, CREATE, attribute};
use crate::error::{Cause, Error};

const IPPROTO_ICMP: u8 = 1;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
const PORT_SMTP: u16 = 25;
const PORT_DNS: u16 = 53;
const PORT_DNS_TLS: u16 = 853;

const PORT_HTTP: u16 = 80;
const PORT_HTTPS: u16 = 443;

/// Where our proxies listen in the host side's namespace, at any address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProxyPorts {
    /// The DNS proxy, TCP and UDP.
    pub dns: u16,
    /// The proxy for what is allowed by names: HTTP and TLS, TCP.
    pub egress: u16,
}

impl Default for ProxyPorts {
    /// Below the ports that Linux gives to clients by itself (32768 to 60999): one of these may be taken at any moment.
    fn default() -> Self {
        Self { dns: 21_053, egress: 21_080 }
    }
}

/// What is the same for all boxes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The addresses of boxes; no box reaches them, whatever they are.
    pub pool: Cidr,
    /// Whether boxes may send mail by themselves (TCP 25).
    pub smtp_allowed: bool,
    /// Where our proxies listen.
    pub ports: ProxyPorts,
    /// Connections that each box may have at once; none is no limit. It is in a rule and not with the boxes, because the
    /// kernel drops what counts connections from a set as soon as there are none (`nft_connlimit_gc`).
    pub connections_max: Option<u32>,
    /// Interfaces whose forwarding we have turned on.
    pub opened: Vec<String>,
    /// Whether nobody else shall be able to change the table, where the kernel can do that.
    pub guarded: bool,
}

/// What passed and what did not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes, with IP headers.
    pub bytes: u64,
}

/// The counters of a box.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// What left it.
    pub sent: Count,
    /// What reached it.
    pub received: Count,
    /// What it was refused. What it may not even try (another's address, IPv6) is not in here.
    pub refused: Count,
}

/// The elements of boxes that a table has.
struct Found {
    /// Those of boxes that have all of theirs.
    whole: Vec<Element>,
    /// Those of others.
    damaged: Vec<Element>,
}

/// The firewall.
#[derive(Debug)]
pub struct Firewall {
    socket: Socket,
    settings: Settings,
    /// The flags of the table.
    flags: u32,
    boxes: BTreeMap<Pair, Entry>,
    generation: u32,
}

impl Firewall {
    /// The names of the interfaces that a former process opened, according to the table that is there.
    pub fn opened_before() -> Result<Vec<String>, Error> {
        let mut socket = Socket::open()?;
        let bodies = socket.dump(Verb::GetElements, Set::Opened.name(), &set_named(Set::Opened))?.unwrap_or_default();
        let (elements, _) = read_elements(Set::Opened, &bodies);
        let name = |e: &Element| e.key.split(|b| *b == 0).next().map(|n| String::from_utf8_lossy(n).into_owned());
        Ok(elements.iter().filter_map(name).collect())
    }

    /// Puts the table in place, or makes the one that is there good again. When this returns, nothing passes from or to
    /// an interface that begins with [`PREFIX`] but for the boxes that were there before and are whole.
    pub fn open(settings: &Settings) -> Result<Self, Error> {
        let mut socket = Socket::open()?;
        let comment = comment(settings);
        let flags = if settings.guarded { guard::flags(&mut socket)? } else { 0 };
        let found = table_found(&mut socket, &comment)?;
        let generation = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |t| t.as_secs() as u32).max(1);
        let mut firewall = Self { socket, settings: settings.clone(), flags, boxes: BTreeMap::new(), generation };
        if found == Some(true) && firewall.refresh(&comment, Batch::default()).is_ok() {
            let Found { damaged, .. } = firewall.read_back()?;
            let mut batch = Batch::default();
            element::remove(&mut batch, &damaged.iter().collect::<Vec<_>>());
            firewall.socket.commit("repair firewall", "", &batch)?;
            return Ok(firewall);
        }
        // Of another version, or with other flags: those of a table that is there cannot be changed.
        let mut boxes = Batch::default();
        if found.is_some() {
            // As they were found: with what they have counted, and the time they have left.
            let Found { whole, .. } = firewall.read_back()?;
            element::add(&mut boxes, &whole.iter().collect::<Vec<_>>());
        }
        firewall.put(&comment, found.is_some(), boxes)?;
        Ok(firewall)
    }

    /// Puts in a table with `boxes`, in the place of one that is there.
    fn put(&mut self, comment: &str, is_there: bool, boxes: Batch) -> Result<(), Error> {
        let mut batch = Batch::default();
        if is_there {
            batch.push(Verb::DeleteTable, 0, Attrs::new().text(1, ruleset::TABLE));
        }
        self.write(comment, batch, element::change(&[], &fixed::fixed(&self.settings)), boxes)
    }

    /// Makes the table that is there good again: its rules are written anew, and of its elements those that are not as
    /// they should be. Others are not touched: before Linux 6.17 a range that is removed and added again in one transaction
    /// is not found while that lasts, and boxes could reach what is closed to them.
    fn refresh(&mut self, comment: &str, boxes: Batch) -> Result<(), Error> {
        let of_all = ALL[OF_BOXES..].iter().filter(|set| **set != Set::Connections);
        let (is, strange) = self.elements(of_all)?;
        if strange > 0 {
            return Err(Error::new("repair firewall", "", Cause::Invalid("its sets have elements that are not ours")));
        }
        self.write(comment, Batch::default(), element::change(&is, &fixed::fixed(&self.settings)), boxes)
    }

    fn write(&mut self, comment: &str, first: Batch, fixed: Batch, boxes: Batch) -> Result<(), Error> {
        let mut batch = first;
        batch.push(Verb::NewTable, CREATE, ruleset::table(comment, self.flags));
        for set in ALL {
            batch.push(Verb::NewSet, CREATE, set.attrs(ruleset::TABLE));
        }
        for (_, attrs) in ruleset::chains() {
            batch.push(Verb::NewChain, CREATE, attrs);
        }
        batch.append(ruleset::rules(self.settings.ports, self.settings.connections_max));
        batch.append(fixed);
        batch.append(boxes);
        self.socket.commit("install firewall", "", &batch)
    }

    /// The elements of sets, and how many of them are none that we make.
    fn elements<'a>(&mut self, sets: impl Iterator<Item = &'a Set>) -> Result<(Vec<Element>, usize), Error> {
        let (mut all, mut others) = (Vec::new(), 0);
        for set in sets {
            let bodies = self.socket.dump(Verb::GetElements, set.name(), &set_named(*set))?.unwrap_or_default();
            let (mut elements, strange) = read_elements(*set, &bodies);
            if strange > 0 {
                tracing::warn!(set = set.name(), strange, "the firewall has elements that are not ours");
            }
            all.append(&mut elements);
            others += strange;
        }
        Ok((all, others))
    }

    /// The elements of all boxes that the kernel has.
    fn elements_of_boxes(&mut self) -> Result<Vec<Element>, Error> {
        self.elements(ALL[..OF_BOXES].iter()).map(|(elements, _)| elements)
    }

    /// Makes the table what it should be, with all boxes, after somebody else has changed it.
    pub fn repair(&mut self) -> Result<(), Error> {
        let comment = comment(&self.settings);
        let now = Instant::now();
        let mut should: Vec<Element> = self.boxes.values().flat_map(|entry| entry.elements(now)).collect();
        should.sort_by_key(|e| e.set);
        let found = table_found(&mut self.socket, &comment)?;
        if found == Some(true) {
            let is = self.elements_of_boxes()?;
            if self.refresh(&comment, element::change(&is, &should)).is_ok() {
                return Ok(());
            }
        }
        self.put(&comment, found.is_some(), element::change(&[], &should))
    }

    /// Whether nobody else can change the table.
    pub(super) fn is_guarded(&self) -> bool {
        self.flags != 0
    }

    /// The number of the socket by which this changes the table.
    pub(super) fn port(&self) -> Result<u32, Error> {
        self.socket.port()
    }

    /// Learns which boxes are there.
    fn read_back(&mut self) -> Result<Found, Error> {
        let mut by_box: BTreeMap<Pair, Vec<Element>> = BTreeMap::new();
        let (mut whole, mut damaged) = (Vec::new(), Vec::new());
        for element in self.elements_of_boxes()? {
            match element.guest() {
                Some(address) => by_box.entry(Pair::of(address)).or_default().push(element),
                None => damaged.push(element),
            }
        }
        let now = Instant::now();
        for (pair, elements) in by_box {
            match Entry::of_elements(&elements, now) {
                Some(entry) if entry.pair == pair => {
                    self.generation = self.generation.max(entry.generation);
                    self.boxes.insert(pair, entry);
                    whole.extend(elements);
                }
                _ => {
                    tracing::warn!(address = %pair.guest(), "the firewall has half a box; it is taken out");
                    damaged.extend(elements);
                }
            }
        }
        // Elements of one set go together in few messages.
        whole.sort_by_key(|e| e.set);
        damaged.sort_by_key(|e| e.set);
        Ok(Found { whole, damaged })
    }

    fn next_generation(&mut self) -> u32 {
        // Zero is the mark of connections that nobody marked.
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        self.generation
    }

    /// Lets a box in, or gives one that is there other rules.
    pub fn set(&mut self, rules: &BoxRules) -> Result<(), Error> {
        if !rules.interface.starts_with(PREFIX) || rules.interface.len() >= NAME_BYTES {
            let cause = Cause::Invalid("the interface of a box begins with ice- and has at most 15 bytes");
            return Err(Error::new("let in", rules.interface.clone(), cause));
        }
        let mut entry = Entry::new(rules, self.next_generation())?;
        // Said again, the same policy cuts nothing: so it is after a restart.
        if let Some(old) = self.boxes.get(&rules.pair)
            && entry.has_policy_of(old)
        {
            entry.continues(old);
        }
        self.replace("let in", rules.pair, Some(entry))
    }

    /// Takes a box out: from now on nothing passes from it or to it. Of one that is not there nothing is to be done.
    pub fn remove(&mut self, pair: Pair) -> Result<(), Error> {
        self.replace("take out", pair, None)
    }

    /// Another policy, with the addresses that its names are known to stand for. Connections that it does not allow are
    /// cut with their next packet; so are those to a name whose address is not among `pins`.
    pub fn set_policy(&mut self, pair: Pair, policy: &Policy, pins: &[Pin]) -> Result<(), Error> {
        let generation = self.next_generation();
        let mut entry = self.entry("set policy of", pair)?.clone();
        entry.set_policy(policy, generation)?;
        if !pins.is_empty() {
            entry.pin(pins, Instant::now())?;
        }
        self.replace("set policy of", pair, Some(entry))
    }

    /// Other limits. What was counted against the old ones is forgotten.
    pub fn set_limits(&mut self, pair: Pair, limits: Limits) -> Result<(), Error> {
        let mut entry = self.entry("set limits of", pair)?.clone();
        entry.set_limits(limits)?;
        self.replace("set limits of", pair, Some(entry))
    }

    /// Whether what a box sends to port 443 goes to our proxy; it counts for new connections.
    pub fn set_intercept_tls(&mut self, pair: Pair, intercept_tls: bool) -> Result<(), Error> {
        let mut entry = self.entry("redirect", pair)?.clone();
        entry.intercept_tls = intercept_tls;
        self.replace("redirect", pair, Some(entry))
    }

    /// Lets a box reach addresses for a while.
    pub fn pin(&mut self, pair: Pair, pins: &[Pin]) -> Result<(), Error> {
        let mut entry = self.entry("pin for", pair)?.clone();
        entry.pin(pins, Instant::now())?;
        self.replace("pin for", pair, Some(entry))
    }

    /// The boxes that are let in, and their interfaces.
    pub fn boxes(&self) -> impl Iterator<Item = (Pair, &str)> {
        self.boxes.iter().map(|(pair, entry)| (*pair, entry.interface.as_str()))
    }

    /// What a box sent, received and was refused.
    pub fn counters(&mut self, pair: Pair) -> Result<Counters, Error> {
        self.entry("count for", pair)?;
        let mut one = |set: Set| -> Result<Count, Error> {
            let question = element_named(set, pair.guest());
            let bodies = self.socket.ask(Verb::GetElements, set.name(), &question)?.unwrap_or_default();
            match read_elements(set, &bodies).0.first().map(|e| e.state) {
                Some(State::Counter { packets, bytes }) => Ok(Count { packets, bytes }),
                _ => Err(missing("count for", pair)),
            }
        };
        Ok(Counters { sent: one(Set::Sent)?, received: one(Set::Received)?, refused: one(Set::Refused)? })
    }

    /// Whether a box sleeps; what arrives for it is told from now on, or no more.
    pub fn set_frozen(&mut self, pair: Pair, frozen: bool) -> Result<(), Error> {
        let mut entry = self.entry("watch over", pair)?.clone();
        entry.frozen = frozen;
        self.replace("watch over", pair, Some(entry))
    }

    /// How many bytes went to and from each box so far, TCP packets that carry nothing aside.
    pub fn traffic(&mut self) -> Result<BTreeMap<Ipv4Addr, u64>, Error> {
        Ok(self.counted(Set::Traffic)?.into_iter().map(|(guest, count)| (guest, count.bytes)).collect())
    }

    /// What every box sent, received and was refused: three questions, however many there are.
    pub fn all_counters(&mut self) -> Result<BTreeMap<Ipv4Addr, Counters>, Error> {
        let (mut received, mut refused) = (self.counted(Set::Received)?, self.counted(Set::Refused)?);
        let mut of = |guest: Ipv4Addr, sent: Count| Counters {
            sent,
            received: received.remove(&guest).unwrap_or_default(),
            refused: refused.remove(&guest).unwrap_or_default(),
        };
        Ok(self.counted(Set::Sent)?.into_iter().map(|(guest, sent)| (guest, of(guest, sent))).collect())
    }

    fn counted(&mut self, set: Set) -> Result<BTreeMap<Ipv4Addr, Count>, Error> {
        let bodies = self.socket.dump(Verb::GetElements, set.name(), &set_named(set))?.unwrap_or_default();
        let (elements, _) = read_elements(set, &bodies);
        let counted = elements.iter().filter_map(|e| match e.state {
            State::Counter { packets, bytes } => Some((e.guest()?, Count { packets, bytes })),
            _ => None,
        });
        Ok(counted.collect())
    }

    fn entry(&self, what: &'static str, pair: Pair) -> Result<&Entry, Error> {
        self.boxes.get(&pair).ok_or_else(|| missing(what, pair))
    }

    fn replace(&mut self, what: &'static str, pair: Pair, new: Option<Entry>) -> Result<(), Error> {
        let now = Instant::now();
        let elements = |entry: Option<&Entry>| entry.map(|e| e.elements(now)).unwrap_or_default();
        let batch = element::change(&elements(self.boxes.get(&pair)), &elements(new.as_ref()));
        let subject = pair.guest().to_string();
        match self.socket.commit(what, &subject, &batch) {
            // Somebody has removed the table, or part of it, and nobody has noticed yet.
            Err(e) if is_missing(&e) => {
                self.repair()?;
                self.socket.commit(what, &subject, &batch)?;
            }
            other => other?,
        }
        match new {
            Some(entry) => self.boxes.insert(pair, entry),
            None => self.boxes.remove(&pair),
        };
        Ok(())
    }
}

fn is_missing(error: &Error) -> bool {
    matches!(error.cause(), Cause::Io(e) if e.kind() == std::io::ErrorKind::NotFound)
}

/// Whether there is a table, and whether it is of this version.
fn table_found(socket: &mut Socket, comment: &str) -> Result<Option<bool>, Error> {
    let found = socket.ask(Verb::GetTable, ruleset::TABLE, &Attrs::new().text(1, ruleset::TABLE))?;
    let is_current = |bodies: Vec<Vec<u8>>| {
        bodies.first().is_some_and(|body| attribute(body, 6).and_then(ruleset::comment) == Some(comment))
    };
    Ok(found.map(is_current))
}

fn missing(what: &'static str, pair: Pair) -> Error {
    Error::new(what, pair.guest().to_string(), Cause::Invalid("the firewall has no such box"))
}

/// What is kept with the table: a hash of how its sets are made. The rules are written anew each time, so their version
/// does not matter.
fn comment(settings: &Settings) -> String {
    let mut hash = Sha256::new();
    // The kernel keeps the limit with each box that has connections: another one needs another set.
    hash.update(settings.connections_max.unwrap_or(0).to_be_bytes());
    for set in ALL {
        hash.update(set.attrs(ruleset::TABLE).as_bytes());
    }
    let hash = hash.finalize();
    format!("of iceboxd; sets {:02x}{:02x}{:02x}{:02x}", hash[0], hash[1], hash[2], hash[3])
}
