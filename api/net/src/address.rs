//! The addresses of boxes: each box has a pair of neighbours (/31) out of the configured pool.
//!
//! Owns: the assignment of pairs. The even address is the host's end, the odd one the box's. Pure: it asks neither the
//! kernel nor the database; the keeper of box records restores assignments by [`Pool::claim`].
//!
//! Invariants: no pair is given twice. The pair of a box depends only on its id and, where two ids hash to the same
//! pair, on the order of assignment; it does not depend on time. A released pair is therefore unlikely to be reassigned
//! soon, so late packets for the old box usually reach no box.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use sha2::{Digest as _, Sha256};

use super::cidr::Cidr;
use crate::error::{Cause, Error};

/// Prefix length of a pair's network.
pub(crate) const PAIR_PREFIX: u8 = 31;
/// Widest pool.
const POOL_PREFIX_MIN: u8 = 8;
/// Narrowest pool: four pairs, of which the first and the last are never given.
const POOL_PREFIX_MAX: u8 = 29;

/// The two ends of a box's link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pair(u32);

impl Pair {
    /// The pair that `address` is an end of.
    #[must_use]
    pub fn of(address: Ipv4Addr) -> Self {
        Self(address.to_bits() & !1)
    }

    /// The host's end, which is the box's gateway.
    #[must_use]
    pub fn host(self) -> Ipv4Addr {
        self.0.into()
    }

    /// The box's end.
    #[must_use]
    pub fn guest(self) -> Ipv4Addr {
        (self.0 | 1).into()
    }
}

/// The address pool of a host's boxes.
#[derive(Debug)]
pub(crate) struct Pool {
    network: Cidr,
    reserved: Vec<Cidr>,
    owners: HashMap<Pair, String>,
    pairs: HashMap<String, Pair>,
}

impl Pool {
    /// A pool of `network` that leaves out the ranges in `reserved`.
    pub(crate) fn new(network: Cidr, reserved: Vec<Cidr>) -> Result<Self, Error> {
        if !(POOL_PREFIX_MIN..=POOL_PREFIX_MAX).contains(&network.prefix()) {
            let cause = Cause::Invalid("the pool of addresses needs a prefix from /8 to /29");
            return Err(Error::new("use network", network.to_string(), cause));
        }
        Ok(Self { network, reserved, owners: HashMap::new(), pairs: HashMap::new() })
    }

    /// The pair of a box. Assigns one if the box has none.
    pub(crate) fn assign(&mut self, id: &str) -> Result<Pair, Error> {
        if let Some(pair) = self.pairs.get(id) {
            return Ok(*pair);
        }
        let count = self.count();
        let start = wanted(id) % count;
        let pair = (0..count).map(|step| self.pair((start + step) % count)).find(|pair| self.is_free(*pair));
        let pair = pair.ok_or_else(|| Error::new("assign address", id, Cause::Exhausted("address")))?;
        self.insert(id, pair);
        Ok(pair)
    }

    /// Restores the pair that a box record names.
    pub(crate) fn claim(&mut self, id: &str, pair: Pair) -> Result<(), Error> {
        let refuse = |why| Error::new("claim address", format!("{} for {id}", pair.guest()), Cause::Invalid(why));
        match (self.pairs.get(id), self.owners.get(&pair)) {
            (Some(has), _) if *has == pair => return Ok(()),
            (Some(_), _) => return Err(refuse("the box has another address")),
            (None, Some(_)) => return Err(refuse("another box has it")),
            (None, None) => {}
        }
        if !self.may_be_given(pair) {
            return Err(refuse("it is outside of the pool, or reserved"));
        }
        self.insert(id, pair);
        Ok(())
    }

    /// Releases a box's pair and returns it.
    pub(crate) fn release(&mut self, id: &str) -> Option<Pair> {
        let pair = self.pairs.remove(id)?;
        self.owners.remove(&pair);
        Some(pair)
    }

    /// The pair of a box that has one.
    #[must_use]
    pub(crate) fn pair_of(&self, id: &str) -> Option<Pair> {
        self.pairs.get(id).copied()
    }

    fn insert(&mut self, id: &str, pair: Pair) {
        self.owners.insert(pair, id.to_owned());
        self.pairs.insert(id.to_owned(), pair);
    }

    /// Number of pairs in the network, including those that are never given.
    fn count(&self) -> u32 {
        1 << (PAIR_PREFIX - self.network.prefix())
    }

    fn pair(&self, index: u32) -> Pair {
        Pair(self.network.range().first.to_bits() + 2 * index)
    }

    fn is_free(&self, pair: Pair) -> bool {
        !self.owners.contains_key(&pair) && self.may_be_given(pair)
    }

    /// False for the first and the last pair: other software takes their addresses for network and broadcast address.
    fn may_be_given(&self, pair: Pair) -> bool {
        let range = self.network.range();
        self.network.contains(pair.host())
            && pair != Pair::of(range.first)
            && pair != Pair::of(range.last)
            && !self.reserved.iter().any(|r| r.contains(pair.host()) || r.contains(pair.guest()))
    }
}

/// Where the search for a box's pair begins. The hash is the same in every version and on every machine.
fn wanted(id: &str) -> u32 {
    let hash = Sha256::digest(id.as_bytes());
    u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]])
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn pool(network: &str, reserved: &[&str]) -> Pool {
        let reserved = reserved.iter().map(|r| r.parse().expect("reserved")).collect();
        Pool::new(network.parse().expect("network"), reserved).expect("pool")
    }

    #[test]
    fn a_box_gets_the_same_pair_whenever_it_asks_and_in_any_order() {
        let mut one = pool("10.88.0.0/16", &[]);
        let first = one.assign("right-flamingo-14486").expect("pair");
        assert_eq!(one.assign("right-flamingo-14486").expect("pair"), first);
        let mut two = pool("10.88.0.0/16", &[]);
        two.assign("calm-otter-1").expect("pair");
        assert_eq!(two.assign("right-flamingo-14486").expect("pair"), first, "these two ids don't collide");
        // This value must never change: a changed hash would move every box.
        assert_eq!((wanted("a"), wanted("")), (0xca97_8112, 0xe3b0_c442));
        assert_eq!(first.guest().to_bits(), first.host().to_bits() + 1);
        assert_eq!(first.host().octets()[3] % 2, 0);
    }

    #[test]
    fn every_pair_is_given_once_and_then_there_is_none() {
        let mut pool = pool("10.88.0.0/24", &[]);
        let mut seen = HashSet::new();
        for n in 0..126 {
            let pair = pool.assign(&format!("box-{n}")).expect("pair");
            assert!(pool.network.contains(pair.host()) && pool.network.contains(pair.guest()));
            assert!(seen.insert(pair), "{} was given twice", pair.guest());
            for address in [pair.guest(), pair.host()] {
                assert_eq!(pool.owners.get(&Pair::of(address)), Some(&format!("box-{n}")));
            }
        }
        assert!(!seen.contains(&Pair::of([10, 88, 0, 0].into())) && !seen.contains(&Pair::of([10, 88, 0, 255].into())));
        let error = pool.assign("one-more").expect_err("none left");
        assert!(matches!(error.cause(), Cause::Exhausted(_)));
        let back = pool.release("box-77").expect("had one");
        assert_eq!(pool.release("box-77"), None);
        assert_eq!(pool.assign("one-more").expect("the one given back"), back);
    }

    #[test]
    fn reserved_addresses_are_never_given() {
        let mut pool = pool("10.88.0.0/28", &["10.88.0.4/30", "10.88.0.11/32"]);
        let mut given: Vec<Ipv4Addr> = Vec::new();
        while let Ok(pair) = pool.assign(&given.len().to_string()) {
            given.push(pair.guest());
        }
        given.sort();
        // Missing from .0 to .15: the first and last pair, .4 to .7, and the pair of .11.
        assert_eq!(given, [Ipv4Addr::new(10, 88, 0, 3), [10, 88, 0, 9].into(), [10, 88, 0, 13].into()]);
        assert!(pool.claim("x", Pair::of([10, 88, 0, 5].into())).is_err());
    }

    #[test]
    fn claims_restore_what_was_given_and_nothing_else() {
        let mut pool = pool("10.88.0.0/16", &[]);
        let pair = Pair::of([10, 88, 7, 9].into());
        pool.claim("a", pair).expect("free");
        pool.claim("a", pair).expect("the same again");
        assert_eq!(pool.assign("a").expect("pair"), pair);
        assert!(pool.claim("b", pair).is_err(), "another box's");
        assert!(pool.claim("a", Pair::of([10, 88, 7, 11].into())).is_err(), "a second one");
        assert!(pool.claim("b", Pair::of([10, 89, 0, 3].into())).is_err(), "outside");
        assert!(pool.claim("b", Pair::of([10, 88, 0, 0].into())).is_err(), "the network's own");
        assert_eq!(pool.pair_of("b"), None);
    }

    #[test]
    fn two_ids_that_want_the_same_pair_both_get_one() {
        let mut pool = pool("10.88.0.0/29", &[]);
        let (a, b) = (pool.assign("a").expect("pair"), pool.assign("b").expect("pair"));
        assert_ne!(a, b);
        assert!(pool.assign("c").is_err());
    }

    #[test]
    fn pools_have_a_sensible_size() {
        for network in ["0.0.0.0/0", "10.0.0.0/30", "10.0.0.0/31"] {
            assert!(Pool::new(network.parse().expect("network"), Vec::new()).is_err(), "{network}");
        }
    }
}
