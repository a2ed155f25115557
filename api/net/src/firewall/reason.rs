//! The reasons why a packet is refused, as the owner reads them.

/// The NFLOG group of refused packets. The number is unlikely to be in use.
pub(crate) const GROUP_REFUSED: u16 = 7403;
/// The NFLOG group of arrivals for frozen boxes.
pub(crate) const GROUP_ARRIVED: u16 = 7404;

/// The rules that refuse something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    DenyAll,
    Closed,
    Denied,
    Unlisted,
    Resolver,
    Mail,
    Protocol,
    Rate,
    Connections,
    Host,
    Neighbour,
    Source,
    Ipv6,
    Options,
}

impl Reason {
    pub(crate) const ALL: [Self; 14] = [
        Self::DenyAll,
        Self::Closed,
        Self::Denied,
        Self::Unlisted,
        Self::Resolver,
        Self::Mail,
        Self::Protocol,
        Self::Rate,
        Self::Connections,
        Self::Host,
        Self::Neighbour,
        Self::Source,
        Self::Ipv6,
        Self::Options,
    ];

    /// The text for the owner.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::DenyAll => "deny-all",
            Self::Closed => "closed network",
            Self::Denied => "denied_cidrs",
            Self::Unlisted => "not allowed (custom)",
            Self::Resolver => "other resolver",
            Self::Mail => "port 25",
            Self::Protocol => "protocol",
            Self::Rate => "too many new connections",
            Self::Connections => "too many connections",
            Self::Host => "host",
            Self::Neighbour => "other box",
            Self::Source => "source address",
            Self::Ipv6 => "IPv6",
            Self::Options => "IP options",
        }
    }

    /// The chain that logs it.
    pub(super) const fn chain(self) -> &'static str {
        match self {
            Self::DenyAll => "deny_out",
            Self::Closed => "closed",
            Self::Denied => "denied_out",
            Self::Unlisted => "unlisted",
            Self::Resolver => "resolver",
            Self::Mail => "mail",
            Self::Protocol => "other_protocol",
            Self::Rate => "too_fast",
            Self::Connections => "too_many",
            Self::Host => "refuse_host",
            Self::Neighbour => "neighbour",
            Self::Source => "spoofed",
            Self::Ipv6 => "not_ipv4",
            Self::Options => "ip_options",
        }
    }

    /// True if the packet's source is known to be the box's own. Only then it is answered.
    pub(crate) const fn has_trusted_source(self) -> bool {
        !matches!(self, Self::Source | Self::Ipv6 | Self::Options)
    }
}
