//! IPv4 address ranges in CIDR notation, and disjoint ranges made of them.
//!
//! Invariants: a [`Cidr`] has no bits below its prefix. The result of [`disjoint`] is sorted, does not overlap and does
//! not touch. The kernel's interval sets refuse overlapping elements, so every range for them passes through it.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use crate::error::{Cause, Error};

/// A network: an address and its prefix length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    first: u32,
    prefix: u8,
}

/// A range of addresses, first and last included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Range {
    /// The lowest address.
    pub first: Ipv4Addr,
    /// The highest address.
    pub last: Ipv4Addr,
}

impl Cidr {
    /// `address/prefix`; bits below the prefix must be zero.
    pub fn new(address: Ipv4Addr, prefix: u8) -> Result<Self, Error> {
        let invalid = |what| Error::new("read network", format!("{address}/{prefix}"), Cause::Invalid(what));
        if prefix > 32 {
            return Err(invalid("a prefix has at most 32 bits"));
        }
        let cidr = Self { first: address.to_bits(), prefix };
        if cidr.first & cidr.host_mask() != 0 {
            return Err(invalid("the address has bits below the prefix"));
        }
        Ok(cidr)
    }

    /// A network known at compile time.
    pub(super) const fn known(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Self {
        Self { first: Ipv4Addr::new(a, b, c, d).to_bits(), prefix }
    }

    fn host_mask(self) -> u32 {
        u32::MAX.checked_shr(u32::from(self.prefix)).unwrap_or(0)
    }

    /// The prefix length.
    #[must_use]
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// All its addresses, as a range.
    #[must_use]
    pub(crate) fn range(self) -> Range {
        Range { first: self.first.into(), last: (self.first | self.host_mask()).into() }
    }

    /// True if `address` lies in it.
    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & !self.host_mask() == self.first
    }
}

impl FromStr for Cidr {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid =
            || Error::new("read network", text, Cause::Invalid("expected ADDRESS/PREFIX, as in 10.88.0.0/16"));
        // A plain address is a network of one address, as is usual in lists of networks.
        let (address, prefix) = text.split_once('/').unwrap_or((text, "32"));
        // `parse` alone would accept "+8".
        if !prefix.bytes().all(|b| b.is_ascii_digit()) {
            return Err(invalid());
        }
        Self::new(address.parse().map_err(|_| invalid())?, prefix.parse().map_err(|_| invalid())?)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.first), self.prefix)
    }
}

/// The same addresses as sorted ranges that neither overlap nor touch.
#[must_use]
pub(crate) fn disjoint(networks: &[Cidr]) -> Vec<Range> {
    let mut ranges: Vec<Range> = networks.iter().map(|n| n.range()).collect();
    ranges.sort_unstable();
    let mut merged: Vec<Range> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.first.to_bits() <= last.last.to_bits().saturating_add(1) => {
                last.last = last.last.max(range.last);
            }
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().expect(text)
    }

    #[test]
    fn networks_are_read_and_written() {
        for text in ["0.0.0.0/0", "10.88.0.0/16", "192.0.2.7/32", "128.0.0.0/1"] {
            assert_eq!(cidr(text).to_string(), text);
        }
        assert_eq!(cidr("192.0.2.7").to_string(), "192.0.2.7/32");
        for wrong in ["", "10.0.0.0/33", "10.0.0.1/24", "10.0.0/8", "10.0.0.0/+8", "10.0.0.0/", "::/0", "10.0.0.0/8/8"]
        {
            assert!(wrong.parse::<Cidr>().is_err(), "{wrong} was taken");
        }
    }

    #[test]
    fn a_network_contains_its_addresses_only() {
        let net = cidr("10.88.0.0/16");
        assert!(net.contains([10, 88, 0, 0].into()) && net.contains([10, 88, 255, 255].into()));
        assert!(!net.contains([10, 89, 0, 0].into()) && !net.contains([10, 87, 255, 255].into()));
        assert!(cidr("0.0.0.0/0").contains([255, 255, 255, 255].into()));
        assert!(!cidr("192.0.2.7/32").contains([192, 0, 2, 6].into()));
    }

    #[test]
    fn overlapping_and_touching_networks_become_one_range() {
        let text = |list: &[&str]| {
            let nets: Vec<Cidr> = list.iter().map(|t| cidr(t)).collect();
            disjoint(&nets).iter().map(|r| format!("{}-{}", r.first, r.last)).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(text(&["10.1.0.0/16", "10.0.0.0/8"]), "10.0.0.0-10.255.255.255");
        assert_eq!(text(&["10.0.1.0/24", "10.0.0.0/24", "10.0.3.0/24"]), "10.0.0.0-10.0.1.255 10.0.3.0-10.0.3.255");
        assert_eq!(text(&["255.0.0.0/8", "0.0.0.0/0", "255.255.255.255/32"]), "0.0.0.0-255.255.255.255");
        assert_eq!(text(&["192.0.2.1/32", "192.0.2.1/32"]), "192.0.2.1-192.0.2.1");
        assert_eq!(text(&[]), "");
    }
}
