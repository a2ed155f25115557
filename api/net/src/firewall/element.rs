//! Set elements: written to the kernel, read from it, and the difference between two lists of them.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::batch::{Batch, Verb};
use super::expr::Verdict;
use super::nfta::{counter, data, expr, limit, list, set_elem, set_elem_list, verdict};
use super::parts::{self, bytes_over, rate_over, rate_up_to, value};
use super::ruleset::{LED_TO, TABLE};
use super::sets::Set;
use crate::netlink::{Attrs, CREATE, attribute, attributes, be32, be64};

/// A list of elements is one attribute, shorter than 64 KiB; an element is at most about 150 bytes.
pub(super) const ELEMENTS_PER_MESSAGE: usize = 256;

/// The data of a map's element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Data {
    Goto(&'static str),
    Mark(u32),
}

/// The stateful expression of an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Nothing,
    Counter { packets: u64, bytes: u64 },
    RateOver(u32),
    RateUpTo(u32),
    BytesOver(u64),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) set: Set,
    pub(super) key: Vec<u8>,
    /// The last key of a range that begins with `key`.
    pub(super) end: Option<Vec<u8>>,
    /// In one-field sets of ranges, a range is two elements: its first key, and the first key after it, which has this
    /// flag (`NFT_SET_ELEM_INTERVAL_END`).
    pub(super) ends_range: bool,
    pub(super) data: Option<Data>,
    pub(super) state: State,
    /// Time until the element expires.
    pub(super) timeout: Option<Duration>,
}

impl Element {
    pub(super) fn new(set: Set, key: impl Into<Vec<u8>>) -> Self {
        Self { set, key: key.into(), end: None, ends_range: false, data: None, state: State::Nothing, timeout: None }
    }

    pub(super) fn leads_to(self, data: Data) -> Self {
        Self { data: Some(data), ..self }
    }

    pub(super) fn with(self, state: State) -> Self {
        Self { state, ..self }
    }

    pub(super) fn guest(&self) -> Option<Ipv4Addr> {
        match (self.set, self.data) {
            (Set::Owners, Some(Data::Mark(mark))) => Some(Ipv4Addr::from(mark.to_ne_bytes())),
            (Set::Owners, _) => None,
            (set, _) => set.box_in(&self.key),
        }
    }

    /// The identity of the element.
    fn place(&self) -> (Set, &[u8], Option<&[u8]>, bool) {
        (self.set, &self.key, self.end.as_deref(), self.ends_range)
    }

    /// True if the kernel would treat both alike. Counts and times are not compared.
    pub(super) fn does_the_same_as(&self, other: &Self) -> bool {
        let same_state = match (self.state, other.state) {
            (State::Counter { .. }, State::Counter { .. }) => true,
            (one, two) => one == two,
        };
        self.place() == other.place() && self.data == other.data && same_state
    }

    fn key_attrs(&self) -> Attrs {
        let attrs = Attrs::new().nested(set_elem::KEY, &value(&self.key));
        let attrs = if self.ends_range { attrs.be32(set_elem::FLAGS, set_elem::INTERVAL_END) } else { attrs };
        self.end.as_ref().map_or(attrs.clone(), |end| attrs.nested(set_elem::KEY_END, &value(end)))
    }

    fn attrs(&self) -> Attrs {
        let attrs = self.key_attrs();
        let attrs = match self.data {
            None => attrs,
            Some(Data::Goto(chain)) => attrs.nested(set_elem::DATA, &Verdict::Goto(chain).attrs()),
            Some(Data::Mark(mark)) => attrs.nested(set_elem::DATA, &value(&mark.to_ne_bytes())),
        };
        let attrs = match self.timeout {
            None => attrs,
            Some(time) => {
                let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
                attrs.be64(set_elem::TIMEOUT, milliseconds)
            }
        };
        match self.state {
            State::Nothing => attrs,
            State::Counter { packets, bytes } => attrs.nested(set_elem::EXPR, &parts::counter(packets, bytes)),
            State::RateOver(n) => attrs.nested(set_elem::EXPR, &rate_over(n)),
            State::RateUpTo(n) => attrs.nested(set_elem::EXPR, &rate_up_to(n)),
            State::BytesOver(n) => attrs.nested(set_elem::EXPR, &bytes_over(n)),
        }
    }

    /// Parses an element from the kernel. `None` if it is none that we make.
    fn read(set: Set, bytes: &[u8]) -> Option<Self> {
        let key = attribute(attribute(bytes, set_elem::KEY)?, data::VALUE)?.to_vec();
        let mut element = Self::new(set, key);
        let flags = attribute(bytes, set_elem::FLAGS).and_then(be32);
        element.ends_range = flags.is_some_and(|flags| flags & set_elem::INTERVAL_END != 0);
        if let Some(end) = attribute(bytes, set_elem::KEY_END) {
            element.end = Some(attribute(end, data::VALUE)?.to_vec());
        }
        if let Some(data) = attribute(bytes, set_elem::DATA) {
            element.data = Some(read_data(data)?);
        }
        // The remaining time, not the initial one.
        if let Some(left) = attribute(bytes, set_elem::EXPIRATION).and_then(be64) {
            element.timeout = Some(Duration::from_millis(left));
        }
        // The kernel reports a single stateful expression as one, newer kernels as a list of one.
        let one_of_list = || attribute(attribute(bytes, set_elem::EXPRESSIONS)?, list::ELEM);
        let state = attribute(bytes, set_elem::EXPR).or_else(one_of_list);
        if let Some(state) = state {
            element.state = read_state(state)?;
        }
        Some(element)
    }
}

fn read_data(bytes: &[u8]) -> Option<Data> {
    if let Some(mark) = attribute(bytes, data::VALUE) {
        return Some(Data::Mark(u32::from_ne_bytes(mark.try_into().ok()?)));
    }
    let chain = attribute(attribute(bytes, data::VERDICT)?, verdict::CHAIN)?.strip_suffix(&[0])?;
    LED_TO.into_iter().find(|name| name.as_bytes() == chain).map(Data::Goto)
}

fn read_state(bytes: &[u8]) -> Option<State> {
    let data = attribute(bytes, expr::DATA)?;
    Some(match attribute(bytes, expr::NAME)? {
        b"counter\0" => State::Counter {
            packets: be64(attribute(data, counter::PACKETS)?)?,
            bytes: be64(attribute(data, counter::BYTES)?)?,
        },
        b"limit\0" => {
            let rate = be64(attribute(data, limit::RATE)?)?;
            let is_over = attribute(data, limit::FLAGS).and_then(be32).is_some_and(|flags| flags & limit::F_INV != 0);
            match (attribute(data, limit::TYPE).and_then(be32), is_over) {
                (Some(limit::PKT_BYTES), _) => State::BytesOver(rate),
                (_, true) => State::RateOver(u32::try_from(rate).ok()?),
                (_, false) => State::RateUpTo(u32::try_from(rate).ok()?),
            }
        }
        _ => return None,
    })
}

/// The elements in the bodies of an answer; unreadable ones are left out and counted.
pub(super) fn read_elements(set: Set, bodies: &[Vec<u8>]) -> (Vec<Element>, usize) {
    let (mut found, mut strange) = (Vec::new(), 0);
    for body in bodies {
        for (_, bytes) in attributes(attribute(body, set_elem_list::ELEMENTS).unwrap_or_default()) {
            match Element::read(set, bytes) {
                Some(element) => found.push(element),
                None => strange += 1,
            }
        }
    }
    (found, strange)
}

/// The attributes that name a set in a request.
pub(super) fn set_named(set: Set) -> Attrs {
    Attrs::new().text(set_elem_list::TABLE, TABLE).text(set_elem_list::SET, set.name())
}

/// The attributes that name the elements of boxes.
pub(super) fn elements_named(set: Set, addresses: impl IntoIterator<Item = Ipv4Addr>) -> Attrs {
    let key = |address: Ipv4Addr| Element::new(set, address.octets()).key_attrs();
    let list = addresses.into_iter().fold(Attrs::new(), |all, address| all.nested(list::ELEM, &key(address)));
    set_named(set).nested(set_elem_list::ELEMENTS, &list)
}

fn push(batch: &mut Batch, verb: Verb, flags: u16, elements: &[&Element], attrs: impl Fn(&Element) -> Attrs) {
    let mut rest = elements;
    while let Some(first) = rest.first() {
        let same_set = rest.iter().take_while(|e| e.set == first.set).count();
        let (now, later) = rest.split_at(same_set.min(ELEMENTS_PER_MESSAGE));
        let all = now.iter().fold(Attrs::new(), |all, element| all.nested(list::ELEM, &attrs(element)));
        batch.push(verb, flags, set_named(first.set).nested(set_elem_list::ELEMENTS, &all));
        rest = later;
    }
}

/// Adds `elements`. Those that exist already must do the same.
pub(super) fn add(batch: &mut Batch, elements: &[&Element]) {
    push(batch, Verb::NewElements, CREATE, elements, Element::attrs);
}

/// Removes `elements`. One with a timeout may have expired, and removing a missing element is an error. So it is added
/// again first, which changes nothing if it exists.
pub(super) fn remove(batch: &mut Batch, elements: &[&Element]) {
    let fleeting: Vec<&Element> = elements.iter().copied().filter(|e| e.set == Set::Pinned).collect();
    add(batch, &fleeting);
    push(batch, Verb::DeleteElements, 0, elements, Element::key_attrs);
}

/// Changes `old` into `new`. Elements that do the same in both stay untouched, with their counts. One with another
/// timeout is removed and added, because the kernel would keep the old timeout.
pub(super) fn change(old: &[Element], new: &[Element]) -> Batch {
    let gone = without(old, new);
    let come = without(new, old);
    let mut batch = Batch::default();
    remove(&mut batch, &gone);
    add(&mut batch, &come);
    batch
}

/// Those of `elements` that have no equal among `others`.
fn without<'a>(elements: &'a [Element], others: &[Element]) -> Vec<&'a Element> {
    let others: HashMap<_, _> = others.iter().map(|e| (e.place(), e)).collect();
    let is_equal = |e: &Element, other: &Element| e.does_the_same_as(other) && e.timeout == other.timeout;
    elements.iter().filter(|e| !others.get(&e.place()).is_some_and(|other| is_equal(e, other))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::ruleset::CUSTOM_OUT;
    use super::*;

    fn round_trip(element: &Element) -> Element {
        let mut body = Batch::default();
        add(&mut body, &[element]);
        let (bytes, _) = body.encode(1);
        // The batch begin, then the message itself.
        let message = &bytes[20..];
        let length = u32::from_ne_bytes(message[..4].try_into().expect("four")) as usize;
        let (mut found, strange) = read_elements(element.set, &[message[20..length].to_vec()]);
        assert_eq!((found.len(), strange), (1, 0));
        found.remove(0)
    }

    #[test]
    fn elements_are_read_as_they_are_written() {
        let box_key = [10, 88, 0, 3];
        let mut range = Element::new(Set::Denied, [10, 88, 0, 3, 1, 2, 3, 0]);
        range.end = Some(vec![10, 88, 0, 3, 1, 2, 3, 255]);
        let mut after = Element::new(Set::Blocked, [11, 0, 0, 0]);
        after.ends_range = true;
        for element in [
            Element::new(Set::Addresses, box_key),
            Element::new(Set::PolicyOut, box_key).leads_to(Data::Goto(CUSTOM_OUT)),
            Element::new(Set::Generation, box_key).leads_to(Data::Mark(77)),
            Element::new(Set::Sent, box_key).with(State::Counter { packets: 3, bytes: 4 }),
            Element::new(Set::NewRate, box_key).with(State::RateOver(20)),
            Element::new(Set::Frozen, box_key).with(State::RateUpTo(10)),
            Element::new(Set::SendRate, box_key).with(State::BytesOver(1 << 33)),
            range,
            after,
        ] {
            assert_eq!(round_trip(&element), element);
        }
    }

    #[test]
    fn a_change_touches_what_differs_only() {
        let box_key = [10, 88, 0, 3];
        let address = Element::new(Set::Addresses, box_key);
        let counter = |packets| Element::new(Set::Sent, box_key).with(State::Counter { packets, bytes: 0 });
        let rate = |n| Element::new(Set::NewRate, box_key).with(State::RateOver(n));
        assert!(change(&[address.clone(), counter(1)], &[address.clone(), counter(0)]).is_empty());
        let count = |batch: Batch| {
            let (bytes, last) = batch.encode(0);
            assert!(!bytes.is_empty());
            last
        };
        assert_eq!(count(change(&[address.clone(), rate(1)], &[address.clone(), rate(2)])), 2, "remove and add");
        assert_eq!(count(change(&[], std::slice::from_ref(&address))), 1);
        // A pinned address may have expired: add, then remove.
        assert_eq!(count(change(&[Element::new(Set::Pinned, [0; 8])], &[])), 2);
    }

    #[test]
    fn long_lists_are_cut_into_messages() {
        let elements: Vec<Element> = (0..1000_u32).map(|n| Element::new(Set::Addresses, n.to_be_bytes())).collect();
        let (_, last) = change(&[], &elements).encode(0);
        assert_eq!(last as usize, 1000_usize.div_ceil(ELEMENTS_PER_MESSAGE));
    }
}
