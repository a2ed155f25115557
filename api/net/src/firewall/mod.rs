//! The firewall of all boxes: one nftables table in the namespace of the host side.
//!
//! Owns: the table `inet icebox`, and the assignment of its set elements to boxes. The rules are static and do not
//! depend on boxes ([`ruleset`]); a box is a few elements ([`rules`], [`sets`]). All changes are transactions.
//!
//! The table stays when this process ends, so boxes stay closed in and connected. [`Firewall::open`] finds it: the
//! rules are always written anew, and the sets keep their elements. A box whose elements are not exactly a box's is
//! removed, which closes it. If the sets are of another version, the whole table is replaced in one transaction, with
//! its boxes.
//!
//! Where the kernel supports it, no other process can change the table while this process lives ([`guard`]).
//!
//! A [`Firewall`] belongs to the thread that opened it, in the namespace it has entered; one process may have one per
//! namespace.
//!
//! Leaves out: links, names (the DNS proxy [`Firewall::pin`]s their addresses), reading the rules' log messages
//! (`nflog`), noticing foreign changes of the table (`watch`), and tracked connections (`conntrack`).

mod batch;
mod element;
mod expr;
mod fixed;
mod guard;
pub(super) mod kernel;
mod nfta;
mod parts;
pub(super) mod reason;
mod rules;
mod ruleset;
mod sets;
mod settings;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use sha2::{Digest as _, Sha256};

use self::batch::{Batch, Socket, Verb};
use self::element::{Element, State, elements_named, read_elements, set_named};
pub(super) use self::fixed::closed;
use self::rules::Entry;
pub use self::rules::{BoxRules, Limits, Pin, Policy};
pub(super) use self::rules::{NETWORKS_MAX, PINS_MAX};
pub use self::ruleset::PREFIX;
use self::sets::{ALL, NAME_BYTES, OF_BOXES, Set};
pub use self::settings::{ProxyPorts, Settings};
pub(super) use self::{
    batch::{FAMILY, SUBSYSTEM},
    ruleset::TABLE,
};
use super::address::Pair;
use super::netlink::{Attrs, CREATE, attribute};
use crate::error::{Cause, Error};

/// Most answers to one question: the kernel puts each into a buffer of its own before the first one is read, and they
/// must fit into the default receive buffer of a socket.
const ANSWERS_MAX: usize = 32;
/// Elements are asked for one by one if they are at most this part of a set, else the whole set is read.
const NAMED_SHARE: usize = 4;

/// A count of packets and bytes.
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
    /// Traffic from the box.
    pub sent: Count,
    /// Traffic to the box.
    pub received: Count,
    /// Refused traffic. Invalid packets (another's address, IPv6) are not included.
    pub refused: Count,
}

/// The elements of boxes in an existing table.
struct Found {
    /// Elements of boxes that are complete.
    whole: Vec<Element>,
    /// Elements of other boxes.
    damaged: Vec<Element>,
}

/// The firewall.
#[derive(Debug)]
pub struct Firewall {
    socket: Socket,
    settings: Settings,
    /// The table's flags.
    flags: u32,
    boxes: BTreeMap<Pair, Entry>,
    generation: u32,
}

impl Firewall {
    /// The names of the interfaces that a former process opened, according to the existing table.
    pub(crate) fn opened_before() -> Result<Vec<String>, Error> {
        let mut socket = Socket::open()?;
        let bodies = socket.dump(Verb::GetElements, Set::Opened.name(), &set_named(Set::Opened))?.unwrap_or_default();
        let (elements, _) = read_elements(Set::Opened, &bodies);
        let name = |e: &Element| e.key.split(|b| *b == 0).next().map(|n| String::from_utf8_lossy(n).into_owned());
        Ok(elements.iter().filter_map(name).collect())
    }

    /// Creates the table, or repairs the existing one. When this returns, nothing passes from or to an interface that
    /// begins with [`PREFIX`], except for boxes that existed before and are complete.
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
        // An existing table here is of another version or has other flags, which cannot be changed.
        let mut boxes = Batch::default();
        if found.is_some() {
            // Restored as found: with their counts and remaining times.
            let Found { whole, .. } = firewall.read_back()?;
            element::add(&mut boxes, &whole.iter().collect::<Vec<_>>());
        }
        firewall.put(&comment, found.is_some(), boxes)?;
        Ok(firewall)
    }

    /// Creates a table with `boxes`, and replaces an existing one.
    fn put(&mut self, comment: &str, is_there: bool, boxes: Batch) -> Result<(), Error> {
        let mut batch = Batch::default();
        if is_there {
            batch.push(Verb::DeleteTable, 0, Attrs::new().text(nfta::table::NAME, ruleset::TABLE));
        }
        self.write(comment, batch, element::change(&[], &fixed::fixed(&self.settings)), boxes)
    }

    /// Repairs the existing table: writes its rules anew, and replaces incorrect elements. Others are not touched:
    /// before Linux 6.17 a range that is removed and added again in one transaction is not found meanwhile, and boxes
    /// could reach closed networks.
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

    /// The elements of sets, and the number of those that are none of ours.
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

    /// The elements of all boxes in the kernel.
    fn elements_of_boxes(&mut self) -> Result<Vec<Element>, Error> {
        self.elements(ALL[..OF_BOXES].iter()).map(|(elements, _)| elements)
    }

    /// Restores the table, with all boxes, after a foreign change.
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

    /// True if no other process can change the table.
    pub(super) fn is_guarded(&self) -> bool {
        self.flags != 0
    }

    /// The netlink port id of the socket that changes the table.
    pub(super) fn port(&self) -> Result<u32, Error> {
        self.socket.port()
    }

    /// Reads the existing boxes from the kernel.
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
        // Elements of one set share messages.
        whole.sort_by_key(|e| e.set);
        damaged.sort_by_key(|e| e.set);
        Ok(Found { whole, damaged })
    }

    fn next_generation(&mut self) -> u32 {
        // Zero is the mark of unmarked connections.
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        self.generation
    }

    /// Adds a box, or replaces the rules of an existing one.
    pub fn set(&mut self, rules: &BoxRules) -> Result<(), Error> {
        if !rules.interface.starts_with(PREFIX) || rules.interface.len() >= NAME_BYTES {
            let cause = Cause::Invalid("the interface of a box begins with ice- and has at most 15 bytes");
            return Err(Error::new("let in", rules.interface.clone(), cause));
        }
        let mut entry = Entry::new(rules, self.next_generation())?;
        // Setting the same policy again cuts nothing, as after a restart.
        if let Some(old) = self.boxes.get(&rules.pair)
            && entry.has_policy_of(old)
        {
            entry.continues(old);
        }
        self.replace("let in", rules.pair, Some(entry))
    }

    /// Removes a box: nothing passes from it or to it any more. Does nothing if the box is not there.
    pub fn remove(&mut self, pair: Pair) -> Result<(), Error> {
        self.replace("take out", pair, None)
    }

    /// Sets another policy, with the known addresses of its names. Connections that it does not allow are cut with
    /// their next packet, including those to a name whose address is not among `pins`.
    pub fn set_policy(&mut self, pair: Pair, policy: &Policy, pins: &[Pin]) -> Result<(), Error> {
        let generation = self.next_generation();
        let mut entry = self.entry("set policy of", pair)?.clone();
        entry.set_policy(policy, generation)?;
        if !pins.is_empty() {
            entry.pin(pins, Instant::now())?;
        }
        self.replace("set policy of", pair, Some(entry))
    }

    /// Gives a box another policy without known addresses, and redirects its traffic to port 443 or not, in one change.
    pub fn set_rights(&mut self, pair: Pair, policy: &Policy, intercept_tls: bool) -> Result<(), Error> {
        let generation = self.next_generation();
        let mut entry = self.entry("set the rights of", pair)?.clone();
        entry.set_policy(policy, generation)?;
        entry.intercept_tls = intercept_tls;
        self.replace("set the rights of", pair, Some(entry))
    }

    /// Sets other limits, and resets their state.
    pub fn set_limits(&mut self, pair: Pair, limits: Limits) -> Result<(), Error> {
        let mut entry = self.entry("set limits of", pair)?.clone();
        entry.set_limits(limits)?;
        self.replace("set limits of", pair, Some(entry))
    }

    /// Redirects a box's traffic to port 443 to our proxy, or stops that. It applies to new connections.
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

    /// The boxes in the table, and their interfaces.
    pub fn boxes(&self) -> impl Iterator<Item = (Pair, &str)> {
        self.boxes.iter().map(|(pair, entry)| (*pair, entry.interface.as_str()))
    }

    /// The traffic and refusals of a box.
    pub fn counters(&mut self, pair: Pair) -> Result<Counters, Error> {
        self.entry("count for", pair)?;
        let mut one = |set: Set| -> Result<Count, Error> {
            let question = elements_named(set, [pair.guest()]);
            let bodies = self.socket.ask(Verb::GetElements, set.name(), &question)?.unwrap_or_default();
            match read_elements(set, &bodies).0.first().map(|e| e.state) {
                Some(State::Counter { packets, bytes }) => Ok(Count { packets, bytes }),
                _ => Err(missing("count for", pair)),
            }
        };
        Ok(Counters { sent: one(Set::Sent)?, received: one(Set::Received)?, refused: one(Set::Refused)? })
    }

    /// Sets whether a box is frozen. Arrivals for a frozen box are reported.
    pub fn set_frozen(&mut self, pair: Pair, frozen: bool) -> Result<(), Error> {
        let mut entry = self.entry("watch over", pair)?.clone();
        entry.frozen = frozen;
        self.replace("watch over", pair, Some(entry))
    }

    /// Bytes to and from these boxes so far, without TCP packets that carry nothing. Boxes without a link are left out.
    ///
    /// A few boxes are asked for by name: a look at them then costs the same however many others there are.
    pub fn traffic(&mut self, of: &[Pair]) -> Result<BTreeMap<Ipv4Addr, u64>, Error> {
        let mut there: Vec<Ipv4Addr> = of.iter().filter(|p| self.boxes.contains_key(p)).map(|p| p.guest()).collect();
        there.sort_unstable();
        let bytes = |counted: BTreeMap<Ipv4Addr, Count>| counted.into_iter().map(|(guest, count)| (guest, count.bytes));
        if there.len().saturating_mul(NAMED_SHARE) > self.boxes.len() {
            let mut all: BTreeMap<Ipv4Addr, u64> = bytes(self.counted(Set::Traffic)?).collect();
            all.retain(|guest, _| there.binary_search(guest).is_ok());
            return Ok(all);
        }
        let mut found = BTreeMap::new();
        for some in there.chunks(ANSWERS_MAX) {
            let question = elements_named(Set::Traffic, some.iter().copied());
            let bodies = self.socket.ask(Verb::GetElements, Set::Traffic.name(), &question)?.unwrap_or_default();
            found.extend(bytes(counts_in(Set::Traffic, &bodies)));
        }
        Ok(found)
    }

    /// The traffic and refusals of all boxes: three requests for any number of boxes.
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
        Ok(counts_in(set, &bodies))
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
            // The table or part of it was removed, and the watcher has not reacted yet.
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

/// The counts of boxes in the bodies of an answer.
fn counts_in(set: Set, bodies: &[Vec<u8>]) -> BTreeMap<Ipv4Addr, Count> {
    let (elements, _) = read_elements(set, bodies);
    let counted = elements.iter().filter_map(|e| match e.state {
        State::Counter { packets, bytes } => Some((e.guest()?, Count { packets, bytes })),
        _ => None,
    });
    counted.collect()
}

fn is_missing(error: &Error) -> bool {
    matches!(error.cause(), Cause::Io(e) if e.kind() == std::io::ErrorKind::NotFound)
}

/// Tells if a table exists, and if it is of this version.
fn table_found(socket: &mut Socket, comment: &str) -> Result<Option<bool>, Error> {
    let found = socket.ask(Verb::GetTable, ruleset::TABLE, &Attrs::new().text(nfta::table::NAME, ruleset::TABLE))?;
    let is_current = |bodies: Vec<Vec<u8>>| {
        bodies
            .first()
            .is_some_and(|body| attribute(body, nfta::table::USERDATA).and_then(ruleset::comment) == Some(comment))
    };
    Ok(found.map(is_current))
}

fn missing(what: &'static str, pair: Pair) -> Error {
    Error::new(what, pair.guest().to_string(), Cause::Invalid("the firewall has no such box"))
}

/// The table's comment: a hash of its set definitions. The rules are written anew each time, so their version does not
/// matter.
fn comment(settings: &Settings) -> String {
    let mut hash = Sha256::new();
    // The kernel keeps the limit with each box that has connections, so another limit needs another set.
    hash.update(settings.connections_max.unwrap_or(0).to_be_bytes());
    for set in ALL {
        hash.update(set.attrs(ruleset::TABLE).as_bytes());
    }
    let hash = hash.finalize();
    format!("of iceboxd; sets {:02x}{:02x}{:02x}{:02x}", hash[0], hash[1], hash[2], hash[3])
}
