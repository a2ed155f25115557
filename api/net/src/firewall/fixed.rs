//! The table's elements that are the same for all boxes: from constants and from the configuration.

use std::net::Ipv4Addr;

use super::element::Element;
use super::rules::port_key;
use super::sets::{Set, name_key};
use super::settings::{
    IPPROTO_ICMP, IPPROTO_TCP, IPPROTO_UDP, PORT_DNS, PORT_DNS_TLS, PORT_HTTP, PORT_HTTPS, PORT_SMTP, ProxyPorts,
    Settings,
};
use crate::cidr::{Cidr, Range, disjoint};

/// Networks that no box reaches under any policy.
const BLOCKED: [Cidr; 11] = [
    Cidr::known(0, 0, 0, 0, 8),      // this network
    Cidr::known(10, 0, 0, 0, 8),     // private
    Cidr::known(100, 64, 0, 0, 10),  // carrier-grade NAT
    Cidr::known(127, 0, 0, 0, 8),    // loopback
    Cidr::known(169, 254, 0, 0, 16), // link-local, metadata of clouds
    Cidr::known(172, 16, 0, 0, 12),  // private
    Cidr::known(192, 0, 0, 0, 24),   // protocol assignments
    Cidr::known(192, 168, 0, 0, 16), // private
    Cidr::known(198, 18, 0, 0, 15),  // benchmarks
    Cidr::known(224, 0, 0, 0, 4),    // multicast
    Cidr::known(240, 0, 0, 0, 4),    // reserved, broadcast
];

/// True if no box reaches an address under any policy; `pool` is the pool of box addresses. The host's own
/// addresses are closed too, even public ones: the firewall asks the kernel for them.
#[must_use]
pub(crate) fn closed(pool: Cidr, address: Ipv4Addr) -> bool {
    pool.contains(address) || BLOCKED.iter().any(|network| network.contains(address))
}

/// The elements that belong to no box.
pub(super) fn fixed(settings: &Settings) -> Vec<Element> {
    let list = |set: Set, keys: Vec<Vec<u8>>| keys.into_iter().map(|key| Element::new(set, key)).collect();
    let port = |protocol: u8, port: u16| port_key(protocol, port).to_vec();
    let smtp = if settings.smtp_allowed { Vec::new() } else { vec![port(IPPROTO_TCP, PORT_SMTP)] };
    let mut resolvers = Vec::new();
    for protocol in [IPPROTO_TCP, IPPROTO_UDP] {
        resolvers.extend([PORT_DNS, PORT_DNS_TLS].map(|number| port(protocol, number)));
    }
    let gateway = [IPPROTO_TCP, IPPROTO_UDP].map(|protocol| port(protocol, PORT_DNS)).to_vec();
    let ProxyPorts { dns, egress } = settings.ports;
    let proxies = vec![port(IPPROTO_TCP, dns), port(IPPROTO_UDP, dns), port(IPPROTO_TCP, egress)];
    // HTTP/3 carries names too, but no proxy here checks them; clients fall back to TCP.
    let named = vec![port(IPPROTO_TCP, PORT_HTTP), port(IPPROTO_TCP, PORT_HTTPS), port(IPPROTO_UDP, PORT_HTTPS)];
    let protocols = [IPPROTO_ICMP, IPPROTO_TCP, IPPROTO_UDP].map(|p| vec![p]).to_vec();
    let opened = settings.opened.iter().map(|name| name_key(name).to_vec());
    let lists: [Vec<Element>; 8] = [
        list(Set::BlockedPorts, smtp),
        list(Set::ResolverPorts, resolvers),
        list(Set::Protocols, protocols),
        list(Set::NamedPorts, named),
        list(Set::GatewayPorts, gateway),
        list(Set::Proxies, proxies),
        list(Set::Opened, opened.collect()),
        blocked(settings.pool),
    ];
    lists.concat()
}

/// The ranges that no box reaches.
fn blocked(pool: Cidr) -> Vec<Element> {
    let networks: Vec<Cidr> = BLOCKED.into_iter().chain([pool]).collect();
    let at = |address: u32| Element::new(Set::Blocked, address.to_be_bytes());
    let ends_of = |range: Range| {
        // The last IPv4 address has no successor.
        let after = range.last.to_bits().checked_add(1);
        let after = after.map(|after| Element { ends_range: true, ..at(after) });
        [Some(at(range.first.to_bits())), after].into_iter().flatten()
    };
    disjoint(&networks).into_iter().flat_map(ends_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_box_reaches_is_blocked() {
        let merged = disjoint(&BLOCKED);
        let pool: Cidr = "100.63.64.0/24".parse().expect("network");
        assert!(closed(pool, [100, 63, 64, 7].into()) && !closed(pool, [100, 63, 65, 7].into()));
        let blocked = |text: &str| {
            let address: Ipv4Addr = text.parse().expect("address");
            let in_set = merged.iter().any(|r| (r.first..=r.last).contains(&address));
            assert_eq!(in_set, closed(pool, address), "{address}");
            in_set
        };
        for address in [
            "0.0.0.1",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.168.1.1",
            "198.19.0.1",
            "224.0.0.1",
            "239.255.255.255",
            "255.255.255.255",
        ] {
            assert!(blocked(address), "{address}");
        }
        for address in ["1.1.1.1", "100.63.0.1", "100.128.0.1", "172.32.0.1", "172.15.0.1", "192.0.1.1", "223.255.0.1"]
        {
            assert!(!blocked(address), "{address}");
        }
    }
}
