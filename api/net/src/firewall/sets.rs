//! The sets and maps of the table, and their key types.
//!
//! A box is a few elements in them. The rules never change, so the cost of a packet and of a new box does not depend on
//! the number of boxes.

use std::net::Ipv4Addr;

use super::nfta::{data, list, set, set_desc, userdata};
use super::parts::{bytes_over, counter, rate_over, rate_up_to};
use crate::netlink::Attrs;

/// Bytes of an interface's name in a key.
pub(super) const NAME_BYTES: usize = 16;

/// `nft`'s number for a type (used for printing; the kernel ignores it), and its size in bytes.
type Field = (u32, u32);
const ADDRESS: Field = (7, 4);
const PROTOCOL: Field = (12, 1);
const PORT: Field = (13, 2);
const MARK: Field = (19, 4);
const NAME: Field = (41, 16);
const VERDICT_BYTES: u32 = 16;

/// Declares the sets once: their variants, their `nft` names, and the list of all, in this order.
macro_rules! sets {
    ($($(#[$what:meta])* $set:ident = $name:literal,)*) => {
        /// A set or map.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub(super) enum Set {
            $($(#[$what])* $set,)*
        }

        use Set::{$($set),*};

        pub(super) const ALL: [Set; [$($name),*].len()] = [$($set),*];

        impl Set {
            pub(super) fn name(self) -> &'static str {
                match self {
                    $($set => $name,)*
                }
            }
        }
    };
}

sets! {
    /// Valid pairs of interface and source address.
    Boxes = "boxes",
    /// Interface of a box, and the host's address on it.
    Gateways = "gateways",
    /// Addresses of boxes, for masquerading.
    Addresses = "addresses",
    /// Box to the chain of its policy for outgoing packets.
    PolicyOut = "policy_out",
    /// Box to the chain of its policy for returning packets.
    PolicyIn = "policy_in",
    /// Box and destinations that its policy allows.
    Allowed = "allowed",
    /// Box and destinations that its policy denies.
    Denied = "denied",
    /// Box and destination of an allowed name, with a timeout.
    Pinned = "pinned",
    /// Box to the mark of its new connections.
    Generation = "generation",
    /// Box and the mark of connections allowed by its current policy.
    Current = "current",
    /// Box, with a counter of sent traffic.
    Sent = "sent",
    /// Box, with a counter of received traffic.
    Received = "received",
    /// Box, with a counter of refused traffic.
    Refused = "refused",
    /// Box, with its limit of new connections per second.
    NewRate = "new_rate",
    /// Box, protocol and port that go to a proxy for every destination in the open internet.
    RedirectAlways = "redirect_always",
    /// The same, but not for destinations that the policy allows by their address.
    RedirectElse = "redirect_else",
    /// Box, with its limit of bytes per second that leave it.
    SendRate = "send_rate",
    /// Box, with its limit of bytes per second that reach it.
    ReceiveRate = "receive_rate",
    /// Box, with a counter of both directions, without TCP packets that carry nothing.
    Traffic = "traffic",
    /// Frozen box that is to be woken, with a rate limit of the reports.
    Frozen = "frozen",
    /// Box, with a rate limit of logged refusals.
    LogRate = "log_rate",
    /// The same, by packet mark, for packets whose source is not the box's.
    MarkedRate = "marked_rate",
    /// Interface of a box to its address, as a mark.
    Owners = "owners",
    /// Destinations that no box reaches.
    Blocked = "blocked",
    /// Protocol and port that no box reaches.
    BlockedPorts = "blocked_ports",
    /// Protocol and port of other resolvers (DNS, DNS over TLS), closed under `custom`.
    ResolverPorts = "resolver_ports",
    /// IP protocols that pass.
    Protocols = "protocols",
    /// Protocol and port that are checked by name instead of address, under `custom`.
    NamedPorts = "named_ports",
    /// Protocol and port at a box's gateway that the DNS proxy serves.
    GatewayPorts = "gateway_ports",
    /// Protocol and port of our proxies on the host.
    Proxies = "proxies",
    /// Interfaces that forward because boxes need it.
    Opened = "opened",
    /// Box, with its number of connections. The kernel adds a box when it connects, and removes it when it has none.
    Connections = "connections",
}

/// Number of sets, from the first of [`ALL`], that hold elements of boxes.
pub(super) const OF_BOXES: usize = 23;

impl Set {
    /// The set's id inside a transaction.
    pub(super) fn id(self) -> u32 {
        self as u32 + 1
    }

    fn fields(self) -> &'static [Field] {
        match self {
            Boxes | Gateways => &[NAME, ADDRESS],
            Addresses | PolicyOut | PolicyIn | Generation | Sent | Received | Refused | NewRate | Connections
            | SendRate | ReceiveRate | Traffic | Frozen | LogRate | Blocked => &[ADDRESS],
            Allowed | Denied | Pinned => &[ADDRESS, ADDRESS],
            MarkedRate => &[MARK],
            Current => &[ADDRESS, MARK],
            RedirectAlways | RedirectElse => &[ADDRESS, PROTOCOL, PORT],
            BlockedPorts | ResolverPorts | NamedPorts | GatewayPorts | Proxies => &[PROTOCOL, PORT],
            Protocols => &[PROTOCOL],
            Opened | Owners => &[NAME],
        }
    }

    fn flags(self) -> u32 {
        match self {
            PolicyOut | PolicyIn | Generation | RedirectAlways | RedirectElse | Owners => set::MAP,
            Allowed | Denied => set::CONCAT | set::INTERVAL,
            Pinned => set::TIMEOUT,
            NewRate | Connections | SendRate | ReceiveRate | Frozen | LogRate | MarkedRate => set::EVAL,
            Blocked => set::INTERVAL,
            _ => 0,
        }
    }

    /// The stateful expression of every element; its values are the elements' own.
    fn stateful(self) -> Option<Attrs> {
        match self {
            Sent | Received | Refused | Traffic => Some(counter(0, 0)),
            NewRate | LogRate | MarkedRate => Some(rate_over(1)),
            SendRate | ReceiveRate => Some(bytes_over(1)),
            Frozen => Some(rate_up_to(1)),
            _ => None,
        }
    }

    /// The byte orders of key and data, without which `nft` would print names and marks reversed. A list of kind,
    /// length, number.
    fn byte_orders(self, key_type: u32) -> Vec<u8> {
        let order = |kind: u8, is_host: bool| {
            let order = if is_host { userdata::HOST_ENDIAN } else { userdata::BIG_ENDIAN };
            [&[kind, 4][..], &order.to_ne_bytes()].concat()
        };
        let key = order(userdata::SET_KEYBYTEORDER, [NAME.0, MARK.0].contains(&key_type));
        if matches!(self, Generation | Owners) { [key, order(userdata::SET_DATABYTEORDER, true)].concat() } else { key }
    }

    /// The position of the box in a key; [`Owners`] have it in their data.
    pub(super) fn box_in(self, key: &[u8]) -> Option<Ipv4Addr> {
        let at = if matches!(self, Boxes | Gateways) { NAME_BYTES } else { 0 };
        Some(Ipv4Addr::from(<[u8; 4]>::try_from(key.get(at..at + 4)?).ok()?))
    }

    /// The attributes that create the set.
    pub(super) fn attrs(self, table: &str) -> Attrs {
        let fields = self.fields();
        let kind = fields.iter().fold(0, |kind, (number, _)| kind << 6 | number);
        let (_, first_bytes) = fields[0];
        // Each of several fields fills whole words; a single field has its own length.
        let length =
            if fields.len() == 1 { first_bytes } else { fields.iter().map(|(_, n)| n.next_multiple_of(4)).sum() };
        let mut attrs =
            Attrs::new().text(set::TABLE, table).text(set::NAME, self.name()).be32(set::FLAGS, self.flags());
        attrs = attrs.be32(set::KEY_TYPE, kind).be32(set::KEY_LEN, length).be32(set::ID, self.id());
        attrs = match self {
            PolicyOut | PolicyIn | RedirectAlways | RedirectElse => {
                attrs.be32(set::DATA_TYPE, data::TYPE_VERDICT).be32(set::DATA_LEN, VERDICT_BYTES)
            }
            Generation | Owners => attrs.be32(set::DATA_TYPE, MARK.0).be32(set::DATA_LEN, MARK.1),
            _ => attrs,
        };
        if let [(number, _)] = fields {
            attrs = attrs.bytes(set::USERDATA, &self.byte_orders(*number));
        }
        if self.flags() & set::CONCAT != 0 {
            let field = |bytes: u32| Attrs::new().be32(set_desc::FIELD_LEN, bytes);
            let parts = fields.iter().fold(Attrs::new(), |a, (_, n)| a.nested(list::ELEM, &field(*n)));
            attrs = attrs.nested(set::DESC, &Attrs::new().nested(set_desc::CONCAT, &parts));
        }
        self.stateful().map_or(attrs.clone(), |stateful| attrs.nested(set::EXPR, &stateful))
    }
}

/// An interface name, in a key's form.
pub(super) fn name_key(name: &str) -> [u8; NAME_BYTES] {
    let mut key = [0; NAME_BYTES];
    // Interface names have at most fifteen bytes; `link::host_name` ensures it.
    let length = name.len().min(NAME_BYTES - 1);
    key[..length].copy_from_slice(&name.as_bytes()[..length]);
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_set_has_its_own_name_and_number() {
        let mut names: Vec<_> = ALL.iter().map(|s| s.name()).collect();
        let mut ids: Vec<_> = ALL.iter().map(|s| s.id()).collect();
        names.sort_unstable();
        names.dedup();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!((names.len(), ids.len()), (ALL.len(), ALL.len()));
        // The order separates the sets of boxes from the others.
        assert_eq!(ALL[OF_BOXES], Blocked);
        assert!(ALL.windows(2).all(|two| two[0] < two[1]));
    }

    #[test]
    fn the_box_of_an_element_is_found_in_its_key() {
        let mut key = name_key("ice-abcdefghijk").to_vec();
        key.extend([10, 88, 0, 3]);
        assert_eq!(Boxes.box_in(&key), Some([10, 88, 0, 3].into()));
        assert_eq!(Pinned.box_in(&[10, 88, 0, 3, 1, 2, 3, 4]), Some([10, 88, 0, 3].into()));
        assert_eq!(Boxes.box_in(&[10, 88, 0, 3]), None);
    }
}
