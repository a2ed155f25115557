//! How public an address is. A place that a registry names may be as public as the registry or more, not less.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How public an address is, the most public first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// Any host of the internet.
    Public,
    /// A network of the house.
    Private,
    /// This machine.
    Loopback,
    /// No host that serves images: link-local (metadata services of clouds), multicast, reserved.
    Special,
}

impl std::fmt::Display for Reach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Public => "public",
            Self::Private => "of a private network",
            Self::Loopback => "of this machine",
            Self::Special => "link-local or reserved",
        })
    }
}

/// How public this address is.
#[must_use]
pub fn of(address: IpAddr) -> Reach {
    match address {
        IpAddr::V4(address) => of_v4(address),
        IpAddr::V6(address) => of_v6(address),
    }
}

fn of_v4(address: Ipv4Addr) -> Reach {
    let [a, b, c, _] = address.octets();
    match (a, b, c) {
        (127, ..) => Reach::Loopback,
        (10, ..) | (192, 168, _) => Reach::Private,
        (172, b, _) if (16..32).contains(&b) => Reach::Private,
        // Shared address space of providers, and networks for benchmarks.
        (100, b, _) if (64..128).contains(&b) => Reach::Private,
        (198, 18 | 19, _) => Reach::Private,
        (0, ..) | (169, 254, _) | (192, 0, 0) | (224.., ..) => Reach::Special,
        _ => Reach::Public,
    }
}

fn of_v6(address: Ipv6Addr) -> Reach {
    if let Some(inner) = address.to_ipv4_mapped() {
        return of_v4(inner);
    }
    let parts = address.segments();
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        of_v4(Ipv4Addr::new(a, b, c, d))
    };
    match parts {
        [0, 0, 0, 0, 0, 0, 0, 1] => Reach::Loopback,
        // NAT64 and 6to4 lead to the IPv4 address in them.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => embedded(high, low),
        [first, ..] if first & 0xfe00 == 0xfc00 => Reach::Private,
        [first, ..] if first & 0xe000 == 0x2000 => Reach::Public,
        _ => Reach::Special,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_sorted() {
        for (text, reach) in [
            ("93.184.216.34", Reach::Public),
            ("2606:2800:220:1::1", Reach::Public),
            ("64:ff9b::5db8:d822", Reach::Public),
            ("10.1.2.3", Reach::Private),
            ("172.31.0.1", Reach::Private),
            ("172.32.0.1", Reach::Public),
            ("192.168.1.1", Reach::Private),
            ("100.64.0.1", Reach::Private),
            ("fd00::1", Reach::Private),
            ("::ffff:10.0.0.1", Reach::Private),
            ("64:ff9b::a00:1", Reach::Private),
            ("2002:a00:1::1", Reach::Private),
            ("127.8.9.1", Reach::Loopback),
            ("::1", Reach::Loopback),
            ("::ffff:127.0.0.1", Reach::Loopback),
            ("169.254.169.254", Reach::Special),
            ("0.0.0.0", Reach::Special),
            ("224.0.0.1", Reach::Special),
            ("255.255.255.255", Reach::Special),
            ("::", Reach::Special),
            ("::127.0.0.1", Reach::Special),
            ("fe80::1", Reach::Special),
            ("ff02::1", Reach::Special),
            ("64:ff9b::a9fe:a9fe", Reach::Special),
        ] {
            assert_eq!(of(text.parse().expect(text)), reach, "{text}");
        }
        assert!(Reach::Public < Reach::Private && Reach::Private < Reach::Loopback && Reach::Loopback < Reach::Special);
    }
}
