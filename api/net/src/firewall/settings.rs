//! The settings that are the same for all boxes, and the numbers of protocols and ports.

use crate::cidr::Cidr;

pub(super) const IPPROTO_ICMP: u8 = 1;
pub(super) const IPPROTO_TCP: u8 = 6;
pub(super) const IPPROTO_UDP: u8 = 17;
pub(super) const PORT_SMTP: u16 = 25;
pub(super) const PORT_DNS: u16 = 53;
pub(super) const PORT_DNS_TLS: u16 = 853;

pub(super) const PORT_HTTP: u16 = 80;
pub(super) const PORT_HTTPS: u16 = 443;

/// The ports of our proxies in the host side's namespace, at any address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProxyPorts {
    /// The DNS proxy, TCP and UDP.
    pub dns: u16,
    /// The proxy for destinations allowed by name: HTTP and TLS, TCP.
    pub egress: u16,
}

impl Default for ProxyPorts {
    /// Below Linux's ephemeral ports (32768 to 60999), any of which may be taken at any moment.
    fn default() -> Self {
        Self { dns: 21_053, egress: 21_080 }
    }
}

/// The settings that are the same for all boxes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The addresses of boxes, which no box reaches.
    pub pool: Cidr,
    /// Allows boxes to send mail directly (TCP 25).
    pub smtp_allowed: bool,
    /// The ports of our proxies.
    pub ports: ProxyPorts,
    /// Connections that each box may have at once; none is no limit. The limit is in a rule and not with the boxes,
    /// because the kernel drops a set's connection-counting elements as soon as they have no connections
    /// (`nft_connlimit_gc`).
    pub connections_max: Option<u32>,
    /// Interfaces whose forwarding we have enabled.
    pub opened: Vec<String>,
    /// Makes the table unchangeable for other processes, where the kernel supports it.
    pub guarded: bool,
}
