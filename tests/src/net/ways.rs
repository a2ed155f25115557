//! Ways out of a box: what is tried (`tests/net/ways.py`), and how it would be seen from outside that it worked.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Value, json};

use super::capture::Target;
use super::dns::Answer;
use super::{HOST, World};

/// The program that tries.
pub const PROGRAM: &str = include_str!("../../net/ways.py");
/// Where the proxy for TLS and HTTP listens on the host.
pub const EGRESS_PORT: u16 = 41_080;
/// By which a packet with a source route would go. Boxes with [`custom`] may reach it.
pub const VIA: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 250);
/// What two names share.
pub const SHARED: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 230);
/// Where allowed names are.
pub const ALLOWED: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 231);
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 232);
const TCP: u8 = 6;
const UDP: u8 = 17;

/// How it is seen that a way worked.
#[derive(Debug, Clone, Copy)]
pub enum Proof {
    /// A packet came to the way's own address.
    Own,
    /// A packet came to an address.
    At(&'static str),
    /// A packet came to a port of an address.
    Port(&'static str, u8, u16),
    /// A name server was asked for a name below this.
    Question(&'static str),
    /// A web server was asked for this host, by SNI, header or target.
    Visit(&'static str),
    /// The same for the way's own address as a host.
    OwnVisit,
    /// A listener on the host got a connection or a datagram.
    Host(&'static str, u16),
    /// A packet came to the way's own address; without a proxy, its port on the host was connected to.
    Proxy,
}

/// A way.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    /// The function in the program.
    pub name: &'static str,
    /// How it is seen.
    pub proof: Proof,
    /// Its own address.
    pub at: &'static str,
    /// A name that stands for this address.
    pub host: &'static str,
    /// Closed under every policy.
    pub always: bool,
}

const fn way(name: &'static str, at: &'static str, proof: Proof) -> Way {
    Way { name, proof, at, host: "", always: false }
}

impl Way {
    const fn always(mut self) -> Self {
        self.always = true;
        self
    }

    const fn called(mut self, host: &'static str) -> Self {
        self.host = host;
        self
    }
}

/// All of them.
pub const WAYS: &[Way] = &[
    way("tcp_to_an_address", "198.51.100.1", Proof::Own),
    way("https_to_an_address", "198.51.100.2", Proof::Own),
    way("https_with_the_address_as_name", "198.51.100.3", Proof::Own),
    way("tcp_to_another_port", "198.51.100.4", Proof::Own),
    way("tcp_to_ssh", "198.51.100.5", Proof::Own),
    way("tcp_fast_open", "198.51.100.6", Proof::Own),
    way("udp_to_an_address", "198.51.100.7", Proof::Own),
    way("udp_in_fragments", "198.51.100.8", Proof::Own),
    way("quic_to_an_address", "198.51.100.9", Proof::Own),
    way("quic_to_an_allowed_name", "198.51.100.10", Proof::Own).called("quic.allowed.test"),
    way("ping", "198.51.100.11", Proof::Own),
    way("mail", "198.51.100.12", Proof::Own).always(),
    way("dns_to_another_resolver", "", Proof::Question("tunnel-udp.test")),
    way("dns_to_another_resolver_by_tcp", "", Proof::Question("tunnel-tcp.test")),
    way("dns_to_another_port", "", Proof::Port("8.8.8.8", UDP, 5353)),
    way("dns_tunnel_by_the_gateway", "", Proof::Question("tunnel-gateway.test")),
    way("dns_tunnel_by_the_gateway_by_tcp", "", Proof::Question("tunnel-gateway-tcp.test")),
    way("dns_tunnel_below_an_allowed_name", "", Proof::Question("c2vjcmv0.exact.test")),
    way("dns_tunnel_by_null_records", "", Proof::Question("tunnel-null.test")),
    way("dns_over_tls", "", Proof::Port("1.1.1.1", TCP, 853)),
    way("dns_over_https", "", Proof::Port("1.1.1.1", TCP, 443)),
    way("dns_over_https_by_an_allowed_name", "", Proof::Port("8.8.8.8", TCP, 443)),
    way("dns_over_quic", "", Proof::Port("9.9.9.9", UDP, 853)),
    way("a_name_that_is_not_allowed", "198.51.100.13", Proof::Own).called("other.test"),
    way("a_name_above_an_allowed_suffix", "198.51.100.14", Proof::Own).called("suffix.test"),
    way("a_name_that_only_ends_like_an_allowed_one", "198.51.100.15", Proof::Own).called("notallowed.test"),
    way("an_allowed_name_at_another_address", "198.51.100.16", Proof::Own),
    way("an_allowed_name_at_another_address_http", "198.51.100.17", Proof::Own),
    way("sni_of_a_neighbour_at_a_shared_address", "", Proof::Visit("bad.shared.test")),
    way("host_of_a_neighbour_at_a_shared_address", "", Proof::Visit("bad-host.shared.test")),
    way("host_changes_on_an_open_connection", "", Proof::Visit("bad-second.shared.test")),
    way("two_requests_at_once", "", Proof::Visit("bad-pipelined.shared.test")),
    way("a_second_host_header", "", Proof::Visit("bad-double.shared.test")),
    way("a_request_hidden_in_a_body", "", Proof::Visit("bad-smuggled.shared.test")),
    way("an_absolute_target", "", Proof::Visit("bad-absolute.shared.test")),
    way("no_server_name", "198.51.100.18", Proof::Own).called("nosni.allowed.test"),
    way("a_client_hello_in_pieces", "", Proof::Visit("bad-pieces.shared.test")),
    way("tls_inside_of_port_80", "198.51.100.19", Proof::Own).called("port80.allowed.test"),
    way("http_inside_of_port_443", "198.51.100.20", Proof::Own).called("port443.allowed.test"),
    way("connect_through_an_allowed_server", "198.51.100.21", Proof::OwnVisit),
    way("connect_through_the_proxy", "198.51.100.22", Proof::Proxy).always(),
    way("a_request_to_the_proxy_itself", "198.51.100.23", Proof::Proxy).always(),
    way("a_redirect_to_a_private_address", "10.0.0.1", Proof::Own).always(),
    way("a_name_with_a_private_address", "10.0.0.2", Proof::Own).always().called("private.allowed.test"),
    way("a_name_with_a_public_and_a_private_address", "10.0.0.3", Proof::Own).always(),
    way("a_name_that_changes_to_a_private_address", "10.0.0.4", Proof::Own).always(),
    way("an_alias_of_a_private_address", "10.0.0.5", Proof::Own).always(),
    way("an_allowed_name_with_a_denied_address", "192.0.2.10", Proof::Own).called("denied.allowed.test"),
    way("metadata", "", Proof::Port("169.254.169.254", TCP, 80)).always(),
    way("metadata_by_a_decimal_number", "", Proof::Port("169.254.169.254", TCP, 80)).always(),
    way("metadata_by_a_name", "169.254.170.2", Proof::Own).always().called("meta.allowed.test"),
    way("metadata_by_udp", "", Proof::Port("169.254.169.254", UDP, 9999)).always(),
    way("metadata_elsewhere", "", Proof::At("100.100.100.200")).always(),
    way("private_10", "10.1.2.3", Proof::Own).always(),
    way("private_172", "172.16.0.1", Proof::Own).always(),
    way("private_192", "192.168.1.1", Proof::Own).always(),
    way("private_by_ping", "192.168.1.2", Proof::Own).always(),
    way("private_although_allowed", "10.7.0.1", Proof::Own).always(),
    way("shared_address_space", "100.64.0.1", Proof::Own).always(),
    way("protocol_assignments", "192.0.0.8", Proof::Own).always(),
    way("benchmarking", "198.18.0.1", Proof::Own).always(),
    way("reserved", "240.0.0.1", Proof::Own).always(),
    way("link_local", "169.254.7.8", Proof::Own).always(),
    way("multicast", "", Proof::Host("udp", 8080)).always(),
    way("broadcast", "", Proof::Host("udp", 443)).always(),
    way("another_box_of_the_pool", "10.88.200.1", Proof::Own).always(),
    way("host_by_its_public_address", "", Proof::Host("tcp", 22)).always(),
    way("host_by_its_public_address_udp", "", Proof::Host("udp", 5432)).always(),
    way("host_by_the_gateway", "", Proof::Host("tcp", 8080)).always(),
    way("host_web_by_its_public_address", "", Proof::Host("tcp", 80)).always(),
    way("raw_icmp", "198.51.100.24", Proof::Own).always(),
    way("raw_tunnel", "198.51.100.25", Proof::Own).always(),
    way("raw_gre", "198.51.100.26", Proof::Own).always(),
    way("raw_with_a_foreign_source", "198.51.100.27", Proof::Own).always(),
    way("packet_socket", "198.51.100.28", Proof::Own).always(),
    way("source_route", "198.51.100.29", Proof::At("198.51.100.250")).always(),
    way("record_route", "198.51.100.30", Proof::Own).always(),
    way("a_foreign_source_address", "198.51.100.31", Proof::Own).always(),
    way("a_marked_packet", "198.51.100.32", Proof::Own).always(),
    way("another_own_address", "198.51.100.33", Proof::Own).always(),
    way("ipv6", "", Proof::At("2001:db8:7::1")).always(),
    way("ipv6_by_tcp", "", Proof::At("2001:db8:7::2")).always(),
    way("ipv4_mapped", "198.51.100.34", Proof::Own),
];

/// A policy under which names and networks are allowed, and none of the ways.
#[must_use]
pub fn custom() -> Value {
    json!({
        "mode": "custom",
        "allowed_domains": ["*.allowed.test", "exact.test", "*.suffix.test"],
        "allowed_cidrs": ["198.51.100.240/28", "10.7.0.0/16"],
        "denied_cidrs": ["192.0.2.0/24"],
    })
}

/// Where the one who tries is.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Its own address.
    pub me: Ipv4Addr,
    /// The host's address on its link.
    pub gateway: Ipv4Addr,
    /// The name server it has.
    pub dns: Ipv4Addr,
}

/// What the program is told. `only`: these ways, or all.
#[must_use]
pub fn task(place: Place, timeout_s: f64, only: &[&str]) -> String {
    let chosen: Vec<&Way> = WAYS.iter().filter(|w| only.is_empty() || only.contains(&w.name)).collect();
    let names: Vec<&str> = chosen.iter().map(|w| w.name).collect();
    let at: BTreeMap<&str, &str> = WAYS.iter().map(|w| (w.name, w.at)).collect();
    json!({
        "ways": names, "some": !only.is_empty(), "at": at, "timeout": timeout_s, "egress_port": EGRESS_PORT,
        "me": place.me, "gateway": place.gateway, "dns": place.dns, "host": HOST, "via": VIA,
    })
    .to_string()
}

/// What was seen of everything at some moment.
#[derive(Debug, Clone)]
pub struct Seen {
    packets: BTreeMap<Target, u64>,
    questions: usize,
    visits: usize,
    hits: usize,
}

impl World {
    /// Gives the names that the ways need their answers.
    pub fn name_ways(&self) {
        let address = |way: &Way| way.at.parse::<Ipv4Addr>().expect("an address");
        let own = |name: &str| address(WAYS.iter().find(|w| w.name == name).expect("a way"));
        for way in WAYS.iter().filter(|w| !w.host.is_empty()) {
            self.dns.set(way.host, Answer::of(&[address(way)]));
        }
        for name in ["www.allowed.test", "exact.test"] {
            self.dns.set(name, Answer::of(&[ALLOWED]));
        }
        self.dns.set("good.shared.allowed.test", Answer::of(&[SHARED]));
        self.dns.set("*.shared.test", Answer::of(&[SHARED]));
        let mixed = own("a_name_with_a_public_and_a_private_address");
        self.dns.set("mixed.allowed.test", Answer::of(&[NEIGHBOUR, mixed]));
        let later = own("a_name_that_changes_to_a_private_address");
        let turn = |a| Answer { ttl: 0, ..Answer::of(&[a]) };
        self.dns.set_turns("rebind.allowed.test", vec![turn(NEIGHBOUR), turn(later)]);
        let inner = own("an_alias_of_a_private_address");
        let alias = Answer { chain: vec!["internal.corp.test".into()], ..Answer::of(&[inner]) };
        self.dns.set("alias.allowed.test", alias);
    }

    /// What was seen until now.
    #[must_use]
    pub fn seen(&self) -> Seen {
        Seen {
            packets: self.capture.counts(),
            questions: self.dns.questions().len(),
            visits: self.web.visits().len(),
            hits: self.host_sink.hits().len(),
        }
    }

    /// How much of a way was seen since `before`.
    #[must_use]
    pub fn seen_of(&self, way: &Way, before: &Seen, has_proxy: bool) -> u64 {
        let packets = self.capture.since(&before.packets);
        let count = |is_it: &dyn Fn(&Target) -> bool| packets.iter().filter(|(t, _)| is_it(t)).map(|(_, n)| n).sum();
        let address = |text: &str| text.parse::<IpAddr>().unwrap_or_else(|e| panic!("{text}: {e}"));
        match way.proof {
            Proof::Own => count(&|t| t.address == address(way.at)),
            Proof::Proxy if has_proxy => count(&|t| t.address == address(way.at)),
            Proof::Proxy => self.hits_since(before, "tcp", EGRESS_PORT),
            Proof::At(text) => count(&|t| t.address == address(text)),
            Proof::Port(text, protocol, port) => {
                count(&|t| t.address == address(text) && t.protocol == protocol && t.port == port)
            }
            Proof::Question(name) => {
                let below = format!(".{name}");
                let is_it = |asked: &str| asked == name || asked.ends_with(&below);
                self.dns.questions().iter().skip(before.questions).filter(|q| is_it(&q.name)).count() as u64
            }
            Proof::Visit(host) => self.visits_since(before, host),
            Proof::OwnVisit => self.visits_since(before, way.at),
            Proof::Host(protocol, port) => self.hits_since(before, protocol, port),
        }
    }

    fn visits_since(&self, before: &Seen, host: &str) -> u64 {
        let visits = self.web.visits();
        let is_it = |v: &&super::web::Visit| {
            let header = v.request.headers.iter().any(|(n, value)| n == "host" && value.contains(host));
            header || v.sni.as_deref() == Some(host) || v.request.target.contains(&format!("//{host}"))
        };
        visits.iter().skip(before.visits).filter(is_it).count() as u64
    }

    fn hits_since(&self, before: &Seen, protocol: &str, port: u16) -> u64 {
        let hits = self.host_sink.hits();
        hits.iter().skip(before.hits).filter(|h| h.protocol == protocol && h.to.port() == port).count() as u64
    }

    /// Addresses to which packets came since `before`.
    #[must_use]
    pub fn reached(&self, before: &Seen) -> BTreeSet<IpAddr> {
        // Answers to the host, and what the kernel says to its neighbours by itself (IPv6), are none of the boxes' doing.
        let own_talk = |a: &IpAddr| match a {
            IpAddr::V4(v4) => *v4 == HOST,
            IpAddr::V6(v6) => v6.is_multicast() || v6.is_unicast_link_local(),
        };
        self.capture.since(&before.packets).into_keys().map(|t| t.address).filter(|a| !own_talk(a)).collect()
    }
}
