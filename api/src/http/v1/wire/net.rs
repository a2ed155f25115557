//! Our own name space `/v1`: the network of a box.

use std::net::Ipv4Addr;

use icebox_net::Report;
use icebox_net::address::Pair;
use icebox_net::conntrack::Connection;
use icebox_net::denial::protocol_name;
use icebox_net::firewall::Count;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::http::v2::wire::NetworkPolicy;

/// Packets and their bytes, IP headers included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Counted {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// A connection as the kernel tracks it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BoxConnection {
    /// `tcp`, `udp`, `icmp`.
    pub protocol: String,
    /// Destination as the box requested it, not a proxy of ours.
    #[schema(value_type = String)]
    pub address: Ipv4Addr,
    /// Destination port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// State of a TCP connection, as the kernel names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
}

/// Answer of `GET /v1/boxes/{id}/net`. It wakes nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BoxNetwork {
    /// True if the box has a link now; one without processes has none.
    pub connected: bool,
    /// Its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<Ipv4Addr>,
    /// Its gateway and DNS server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub gateway: Option<Ipv4Addr>,
    /// MTU in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Its network policy.
    pub policy: NetworkPolicy,
    /// Traffic that left it since it was started.
    pub sent: Counted,
    /// Traffic that reached it.
    pub received: Counted,
    /// Traffic that the firewall refused.
    pub refused: Counted,
    /// Its connections, limited to about a screenful.
    pub connections: Vec<BoxConnection>,
    /// Number of all its connections.
    pub connections_total: u64,
    /// Recent refusals with their reasons, the last first.
    pub denials: Vec<Denied>,
}

impl BoxNetwork {
    /// The answer for a box with these addresses; without a report the box is not connected.
    #[must_use]
    pub fn new(pair: Option<Pair>, policy: NetworkPolicy, report: Option<Report>) -> Self {
        let told = Self {
            connected: false,
            address: pair.map(Pair::guest),
            gateway: pair.map(Pair::host),
            mtu: None,
            policy,
            sent: Counted::default(),
            received: Counted::default(),
            refused: Counted::default(),
            connections: Vec::new(),
            connections_total: 0,
            denials: Vec::new(),
        };
        let Some(report) = report else { return told };
        let counted = |count: Count| Counted { packets: count.packets, bytes: count.bytes };
        Self {
            connected: true,
            mtu: Some(report.mtu),
            sent: counted(report.counters.sent),
            received: counted(report.counters.received),
            refused: counted(report.counters.refused),
            connections: report.connections.into_iter().map(BoxConnection::from).collect(),
            connections_total: report.connections_total,
            denials: report.denials.into_iter().map(Denied::from).collect(),
            ..told
        }
    }
}

impl From<Connection> for BoxConnection {
    fn from(of: Connection) -> Self {
        let protocol = protocol_name(of.protocol);
        Self { protocol, address: of.destination, port: of.port, state: Some(of.state.to_owned()) }
    }
}

/// A refused connection or name, with how often it was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Denied {
    /// The rule that refused it, e.g. `deny-all`, `blocked network`, `denied_cidrs`, `not in allowed_domains`.
    pub rule: String,
    /// `tcp`, `udp`, `icmp`, `dns`, `tls`, `http`, or a protocol's number.
    pub protocol: String,
    /// Destination address.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<Ipv4Addr>,
    /// Destination port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Requested name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Number of attempts.
    pub count: u64,
    /// Unix milliseconds of the first time.
    pub first_ms: i64,
    /// Unix milliseconds of the last time.
    pub last_ms: i64,
}

impl From<icebox_net::denial::Denied> for Denied {
    fn from(denied: icebox_net::denial::Denied) -> Self {
        let icebox_net::denial::Denial { rule, protocol, address, port, name } = denied.what;
        let (count, first_ms, last_ms) = (denied.count, denied.first_ms, denied.last_ms);
        Self { rule, protocol, address, port, name, count, first_ms, last_ms }
    }
}
