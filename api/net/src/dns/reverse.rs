//! Reverse names of addresses (`in-addr.arpa`). Pure.

use std::net::Ipv4Addr;

use hickory_proto::rr::Name;

/// The address or network of a reverse name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reverse {
    /// Not a reverse name.
    No,
    /// An IPv4 address, or the first address of a network; true for a single address.
    Of(Ipv4Addr, bool),
    /// An IPv6 address or network.
    V6,
}

/// Parses `name` as a reverse name.
pub(super) fn reverse(name: &Name) -> Reverse {
    let mut labels = name.iter().rev().peekable();
    let mut is_next = |text: &str| labels.next().is_some_and(|label| label.eq_ignore_ascii_case(text.as_bytes()));
    if !is_next("arpa") {
        return Reverse::No;
    }
    let Some(kind) = labels.next() else { return Reverse::No };
    if kind.eq_ignore_ascii_case(b"ip6") {
        return Reverse::V6;
    }
    if !kind.eq_ignore_ascii_case(b"in-addr") {
        return Reverse::No;
    }
    let octet = |label: &[u8]| {
        // Only the usual spelling counts: `+1` and `001` are other names.
        let text = std::str::from_utf8(label).ok()?;
        text.parse::<u8>().ok().filter(|octet| octet.to_string() == text)
    };
    let mut octets = [0; 4];
    let mut known = 0;
    while known < octets.len()
        && let Some(value) = labels.peek().and_then(|label| octet(label))
    {
        octets[known] = value;
        known += 1;
        labels.next();
    }
    if known == 0 {
        return Reverse::No;
    }
    Reverse::Of(octets.into(), known == octets.len() && labels.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reverse_names_are_known() {
        let of = |text: &str| reverse(&Name::from_ascii(text).expect(text));
        assert_eq!(of("7.2.0.192.in-addr.arpa."), Reverse::Of([192, 0, 2, 7].into(), true));
        assert_eq!(of("7.2.0.192.IN-ADDR.Arpa."), Reverse::Of([192, 0, 2, 7].into(), true));
        assert_eq!(of("10.in-addr.arpa."), Reverse::Of([10, 0, 0, 0].into(), false));
        assert_eq!(of("lb._dns-sd._udp.0.0.88.10.in-addr.arpa."), Reverse::Of([10, 88, 0, 0].into(), false));
        assert_eq!(of("7.0-63.2.0.192.in-addr.arpa."), Reverse::Of([192, 0, 2, 0].into(), false));
        assert_eq!(of("1.0.0.ip6.arpa."), Reverse::V6);
        for other in [".", "arpa.", "in-addr.arpa.", "x.in-addr.arpa.", "010.in-addr.arpa.", "e164.arpa.", "10.com."] {
            assert_eq!(of(other), Reverse::No, "{other}");
        }
    }
}
