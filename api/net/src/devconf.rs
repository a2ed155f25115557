//! The settings of both ends of a box's link, as parts of one netlink message (`IFLA_AF_SPEC`).
//!
//! Why not the files below `/proc/sys/net`: the kernel compares the names of such a path with those of every network
//! namespace that has been looked at (`proc_sys_compare`), so each box makes the next link dearer. Netlink has the
//! interface at hand. It sets all values of a family at once, while the interface is down, so no route has to be
//! forgotten either.
//!
//! Leaves out: what netlink cannot set ([`sysctl`](crate::sysctl)).

use rtnetlink::packet_core::DefaultNla;
use rtnetlink::packet_route::link::{AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute};

use crate::netlink::Attrs;

/// `IFLA_INET_CONF`, and the flag of an attribute that contains attributes.
const IFLA_INET_CONF: u16 = 1;
const NLA_F_NESTED: u16 = 1 << 15;

/// The IPv4 settings of an interface (`IPV4_DEVCONF_*` of `linux/ip.h`).
#[derive(Clone, Copy)]
#[repr(u16)]
enum Ipv4 {
    Forwarding = 1,
    ProxyArp = 3,
    AcceptRedirects = 4,
    SendRedirects = 6,
    RpFilter = 8,
    AcceptSourceRoute = 9,
    ArpFilter = 13,
    ArpAnnounce = 18,
    ArpIgnore = 19,
    RouteLocalnet = 26,
}

/// The settings of the host's end.
///
/// Only this end forwards (the uplink does too; see [`sysctl::forwards`](crate::sysctl::forwards)). A source that is not
/// the box's is refused here already (`rp_filter`), before the firewall. The host answers ARP requests for the address
/// of this link only.
const HOST_END: [(Ipv4, u32); 10] = [
    (Ipv4::Forwarding, 1),
    (Ipv4::RpFilter, 1),
    (Ipv4::ArpIgnore, 1),
    (Ipv4::ArpAnnounce, 2),
    (Ipv4::ArpFilter, 1),
    (Ipv4::ProxyArp, 0),
    (Ipv4::AcceptRedirects, 0),
    (Ipv4::SendRedirects, 0),
    (Ipv4::AcceptSourceRoute, 0),
    (Ipv4::RouteLocalnet, 0),
];

/// The IPv4 settings of the host's end.
pub(super) fn host_end() -> LinkAttribute {
    let values = HOST_END.iter().fold(Attrs::new(), |all, (of, value)| all.bytes(*of as u16, &value.to_ne_bytes()));
    // The crate's own type leaves out values of zero.
    let values = DefaultNla::new(IFLA_INET_CONF | NLA_F_NESTED, values.as_bytes().to_vec());
    LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet(vec![AfSpecInet::Other(values)])])
}

/// The IPv6 setting of the box's end: it gets no address, and without one nothing is sent. Nothing relies on it: the
/// firewall drops all IPv6. The loopback keeps its address, for programs that listen at `::1`.
pub(super) fn box_end() -> LinkAttribute {
    let no_address = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![no_address])])
}
