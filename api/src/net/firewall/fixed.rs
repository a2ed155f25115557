//! The elements of the table that are the same for all boxes: from constants and from the configuration.

use super::element::set_named;
use super::expr;
use super::rules::port_key;
use super::sets::{Set, name_key};
use super::{
    BLOCKED, IPPROTO_ICMP, IPPROTO_TCP, IPPROTO_UDP, PORT_DNS, PORT_DNS_TLS, PORT_HTTP, PORT_HTTPS, PORT_SMTP,
    ProxyPorts, Settings,
};
use crate::net::cidr::{Cidr, disjoint};
use crate::net::netlink::Attrs;

/// The elements that do not belong to a box, one message for each set that has any.
pub(super) fn fixed(settings: &Settings) -> Vec<Attrs> {
    let list = |set: Set, keys: Vec<Vec<u8>>| {
        let elements =
            keys.iter().fold(Attrs::new(), |list, key| list.nested(1, &Attrs::new().nested(1, &expr::value(key))));
        (!keys.is_empty()).then(|| set_named(set).nested(3, &elements))
    };
    let port = |protocol: u8, port: u16| port_key(protocol, port).to_vec();
    let smtp = if settings.smtp_allowed { Vec::new() } else { vec![port(IPPROTO_TCP, PORT_SMTP)] };
    let mut resolvers = Vec::new();
    for protocol in [IPPROTO_TCP, IPPROTO_UDP] {
        resolvers.extend([PORT_DNS, PORT_DNS_TLS].map(|number| port(protocol, number)));
    }
    let gateway = [IPPROTO_TCP, IPPROTO_UDP].map(|protocol| port(protocol, PORT_DNS)).to_vec();
    let ProxyPorts { dns, egress } = settings.ports;
    let proxies = vec![port(IPPROTO_TCP, dns), port(IPPROTO_UDP, dns), port(IPPROTO_TCP, egress)];
    // HTTP/3 has names as well, but nobody here to check them; a client goes back to TCP.
    let named = vec![port(IPPROTO_TCP, PORT_HTTP), port(IPPROTO_TCP, PORT_HTTPS), port(IPPROTO_UDP, PORT_HTTPS)];
    let protocols = [IPPROTO_ICMP, IPPROTO_TCP, IPPROTO_UDP].map(|p| vec![p]).to_vec();
    let opened = settings.opened.iter().map(|name| name_key(name).to_vec());
    let lists = [
        list(Set::BlockedPorts, smtp),
        list(Set::ResolverPorts, resolvers),
        list(Set::Protocols, protocols),
        list(Set::NamedPorts, named),
        list(Set::GatewayPorts, gateway),
        list(Set::Proxies, proxies),
        list(Set::Opened, opened.collect()),
        Some(blocked(settings.pool)),
    ];
    lists.into_iter().flatten().collect()
}

/// The ranges that no box reaches. In this kind of set a range is two elements: its first address, and the first after
/// it with a flag.
fn blocked(pool: Cidr) -> Attrs {
    const INTERVAL_END: u32 = 1;
    let networks: Vec<Cidr> = BLOCKED.into_iter().chain([pool]).collect();
    let key = |address: u32| Attrs::new().nested(1, &expr::value(&address.to_be_bytes()));
    let mut elements = Attrs::new();
    for range in disjoint(&networks) {
        elements = elements.nested(1, &key(range.first.to_bits()));
        // Nothing comes after the last address of all.
        if let Some(after) = range.last.to_bits().checked_add(1) {
            elements = elements.nested(1, &key(after).be32(3, INTERVAL_END));
        }
    }
    set_named(Set::Blocked).nested(3, &elements)
}
