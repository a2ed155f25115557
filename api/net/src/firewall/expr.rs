//! The expressions of rules, and how a rule is built.
//!
//! A rule is a list of small steps over registers: load, compare, look up, decide. Each method adds the expressions of
//! one `nft` statement, which its comment names. Every step ends the rule if it does not match.

use super::sets::Set;
use crate::netlink::Attrs;

/// Registers are counted in words. The old numbers 1 to 4 are four words each and hold an interface name.
const REGISTER_1: u32 = 1;
/// The second word of register 1.
const REGISTER_1B: u32 = 9;
/// The third word of register 1.
const REGISTER_1C: u32 = 10;
const REGISTER_2: u32 = 2;
/// The verdict register.
const REGISTER_VERDICT: u32 = 0;

const META_MARK: u32 = 3;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const CT_STATE: u32 = 0;
const CT_STATUS: u32 = 2;
const CT_MARK: u32 = 3;
const BASE_NETWORK: u32 = 1;
const BASE_TRANSPORT: u32 = 2;
const NFPROTO_IPV4: u8 = 2;
const IPPROTO_ICMP: u8 = 1;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
/// `IPS_DST_NAT`
const STATUS_DNAT: u32 = 1 << 5;
/// `RTN_LOCAL`
const ROUTE_LOCAL: u32 = 2;
/// IPv4 header: its length in words is in the low half of the first byte.
const HEADER_WORDS_MASK: u8 = 0x0f;
const HEADER_WORDS_PLAIN: u8 = 5;

/// States of a connection, as bits.
pub(super) mod state {
    pub(in super::super) const ESTABLISHED: u32 = 2;
    pub(in super::super) const RELATED: u32 = 4;
    pub(in super::super) const NEW: u32 = 8;
}

/// The comparison: equal or not.
#[derive(Clone, Copy)]
enum Is {
    Equal = 0,
    Different = 1,
    AtMost = 3,
}

/// The verdict of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Accept,
    Drop,
    /// Back to the calling chain.
    Return,
    Goto(&'static str),
    /// To a chain, and back here if it gives no verdict.
    Jump(&'static str),
}

impl Verdict {
    const JUMP: i32 = -3;
    const GOTO: i32 = -4;
    const RETURN: i32 = -5;

    /// `NFTA_DATA_VERDICT` with its content.
    pub(super) fn attrs(self) -> Attrs {
        let (code, chain) = match self {
            Self::Drop => (0, None),
            Self::Accept => (1, None),
            Self::Return => (Self::RETURN, None),
            Self::Goto(chain) => (Self::GOTO, Some(chain)),
            Self::Jump(chain) => (Self::JUMP, Some(chain)),
        };
        let verdict = Attrs::new().bytes(1, &code.to_be_bytes());
        let verdict = chain.map_or(verdict.clone(), |chain| verdict.text(2, chain));
        Attrs::new().nested(2, &verdict)
    }
}

/// An expression by name.
pub(super) fn expression(name: &str, data: &Attrs) -> Attrs {
    Attrs::new().text(1, name).nested(2, data)
}

/// A value in a register or element (`NFTA_DATA_VALUE`).
pub(super) fn value(bytes: &[u8]) -> Attrs {
    Attrs::new().bytes(1, bytes)
}

/// A rule under construction.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    pub(super) chain: &'static str,
    pub(super) expressions: Attrs,
}

impl Rule {
    pub(super) fn of(chain: &'static str) -> Self {
        Self { chain, expressions: Attrs::new() }
    }

    fn with(mut self, name: &str, data: &Attrs) -> Self {
        self.expressions = self.expressions.nested(1, &expression(name, data));
        self
    }

    fn meta(self, key: u32, register: u32) -> Self {
        self.with("meta", &Attrs::new().be32(1, register).be32(2, key))
    }

    fn ct(self, key: u32, register: u32) -> Self {
        self.with("ct", &Attrs::new().be32(1, register).be32(2, key))
    }

    fn payload(self, base: u32, offset: u32, length: u32, register: u32) -> Self {
        self.with("payload", &Attrs::new().be32(1, register).be32(2, base).be32(3, offset).be32(4, length))
    }

    fn compare(self, is: Is, bytes: &[u8]) -> Self {
        self.with("cmp", &Attrs::new().be32(1, REGISTER_1).be32(2, is as u32).nested(3, &value(bytes)))
    }

    fn masked(self, mask: &[u8]) -> Self {
        let length = u32::try_from(mask.len()).expect("masks are a few bytes");
        let zero = vec![0; mask.len()];
        let data = Attrs::new().be32(1, REGISTER_1).be32(2, REGISTER_1).be32(3, length);
        self.with("bitwise", &data.nested(4, &value(mask)).nested(5, &value(&zero)))
    }

    fn find(self, set: Set) -> Self {
        self.with("lookup", &Attrs::new().text(1, set.name()).be32(2, REGISTER_1).be32(4, set.id()))
    }

    fn find_into(self, set: Set, register: u32) -> Self {
        self.with("lookup", &Attrs::new().text(1, set.name()).be32(2, REGISTER_1).be32(3, register).be32(4, set.id()))
    }

    // Matches.

    /// `iifname "PREFIX*"`
    pub(super) fn in_by(self, prefix: &str) -> Self {
        self.meta(META_IIFNAME, REGISTER_1).compare(Is::Equal, prefix.as_bytes())
    }

    /// `oifname "PREFIX*"`
    pub(super) fn out_by(self, prefix: &str) -> Self {
        self.meta(META_OIFNAME, REGISTER_1).compare(Is::Equal, prefix.as_bytes())
    }

    /// `oifname != "PREFIX*"`
    pub(super) fn not_out_by(self, prefix: &str) -> Self {
        self.meta(META_OIFNAME, REGISTER_1).compare(Is::Different, prefix.as_bytes())
    }

    /// `meta nfproto ipv4`
    pub(super) fn ipv4(self) -> Self {
        self.meta(META_NFPROTO, REGISTER_1).compare(Is::Equal, &[NFPROTO_IPV4])
    }

    /// `meta nfproto != ipv4`
    pub(super) fn not_ipv4(self) -> Self {
        self.meta(META_NFPROTO, REGISTER_1).compare(Is::Different, &[NFPROTO_IPV4])
    }

    /// `meta l4proto icmp`
    pub(super) fn icmp(self) -> Self {
        self.meta(META_L4PROTO, REGISTER_1).compare(Is::Equal, &[IPPROTO_ICMP])
    }

    /// `meta l4proto tcp`
    pub(super) fn tcp(self) -> Self {
        self.meta(META_L4PROTO, REGISTER_1).compare(Is::Equal, &[IPPROTO_TCP])
    }

    /// `meta l4proto udp`
    pub(super) fn udp(self) -> Self {
        self.meta(META_L4PROTO, REGISTER_1).compare(Is::Equal, &[IPPROTO_UDP])
    }

    /// `ip hdrlength != 5`: there are options, such as a source route.
    pub(super) fn has_ip_options(self) -> Self {
        let first_byte = self.ipv4().payload(BASE_NETWORK, 0, 1, REGISTER_1);
        first_byte.masked(&[HEADER_WORDS_MASK]).compare(Is::Different, &[HEADER_WORDS_PLAIN])
    }

    /// `ct state STATES`, any of them.
    pub(super) fn state(self, states: u32) -> Self {
        self.ct(CT_STATE, REGISTER_1).masked(&states.to_ne_bytes()).compare(Is::Different, &0_u32.to_ne_bytes())
    }

    /// `ct state & (STATES) == 0`, none of them.
    pub(super) fn not_state(self, states: u32) -> Self {
        self.ct(CT_STATE, REGISTER_1).masked(&states.to_ne_bytes()).compare(Is::Equal, &0_u32.to_ne_bytes())
    }

    /// `ip length <= BYTES tcp flags & (fin | syn | rst) == 0`
    pub(super) fn tcp_of_at_most(self, bytes: u16) -> Self {
        const FIN_SYN_RST: u8 = 7;
        let short = self.ipv4().payload(BASE_NETWORK, 2, 2, REGISTER_1).compare(Is::AtMost, &bytes.to_be_bytes());
        let flags = short.tcp().payload(BASE_TRANSPORT, 13, 1, REGISTER_1);
        flags.masked(&[FIN_SYN_RST]).compare(Is::Equal, &[0])
    }

    /// `tcp doff WORDS ip length BYTES`: the packet is as long as its headers, so it has no payload. IP options never
    /// occur here.
    pub(super) fn tcp_headers_only(self, words: u8) -> Self {
        let offset =
            self.tcp().payload(BASE_TRANSPORT, 12, 1, REGISTER_1).masked(&[0xf0]).compare(Is::Equal, &[words << 4]);
        let bytes = 4 * (u16::from(HEADER_WORDS_PLAIN) + u16::from(words));
        offset.ipv4().payload(BASE_NETWORK, 2, 2, REGISTER_1).compare(Is::Equal, &bytes.to_be_bytes())
    }

    /// `ct status dnat`: a redirect rule sent it here; the client did not address this port itself.
    pub(super) fn redirected(self) -> Self {
        self.ct(CT_STATUS, REGISTER_1).masked(&STATUS_DNAT.to_ne_bytes()).compare(Is::Different, &0_u32.to_ne_bytes())
    }

    /// `fib daddr type local`: an address of the host itself.
    pub(super) fn destination_is_local(self) -> Self {
        const RESULT_TYPE: u32 = 3;
        const OF_DESTINATION: u32 = 2;
        let data = Attrs::new().be32(1, REGISTER_1).be32(2, RESULT_TYPE).be32(3, OF_DESTINATION);
        self.ipv4().with("fib", &data).compare(Is::Equal, &ROUTE_LOCAL.to_ne_bytes())
    }

    // Lookups.

    /// `iifname @SET`
    pub(super) fn in_by_one_of(self, set: Set) -> Self {
        self.meta(META_IIFNAME, REGISTER_1).find(set)
    }

    /// `iifname . ip saddr @SET`
    pub(super) fn in_by_and_source_in(self, set: Set) -> Self {
        self.ipv4().meta(META_IIFNAME, REGISTER_1).source(REGISTER_2).find(set)
    }

    /// `iifname . ip daddr @SET`
    pub(super) fn in_by_and_destination_in(self, set: Set) -> Self {
        self.ipv4().meta(META_IIFNAME, REGISTER_1).destination(REGISTER_2).find(set)
    }

    /// `meta l4proto . th dport @SET`
    pub(super) fn port_in(self, set: Set) -> Self {
        self.meta(META_L4PROTO, REGISTER_1).payload(BASE_TRANSPORT, 2, 2, REGISTER_1B).find(set)
    }

    /// `meta l4proto != @SET`
    pub(super) fn protocol_not_in(self, set: Set) -> Self {
        const INVERTED: u32 = 1;
        let data = Attrs::new().text(1, set.name()).be32(2, REGISTER_1).be32(4, set.id()).be32(5, INVERTED);
        self.meta(META_L4PROTO, REGISTER_1).with("lookup", &data)
    }

    /// `ip saddr @SET`. If the element has a limit, it matches only above it; if it has a counter, it counts.
    pub(super) fn source_in(self, set: Set) -> Self {
        self.ipv4().source(REGISTER_1).find(set)
    }

    /// `add @SET { ip saddr STATEFUL }`: matches if the stateful expression matches.
    pub(super) fn add_source_to(self, set: Set, stateful: &Attrs) -> Self {
        const ADD: u32 = 0;
        let data = Attrs::new().text(1, set.name()).be32(2, set.id()).be32(3, ADD).be32(4, REGISTER_1);
        self.ipv4().source(REGISTER_1).with("dynset", &data.nested(7, stateful))
    }

    /// `ip daddr @SET`
    pub(super) fn destination_in(self, set: Set) -> Self {
        self.ipv4().destination(REGISTER_1).find(set)
    }

    /// `ip saddr . ip daddr @SET`
    pub(super) fn outward_in(self, set: Set) -> Self {
        self.ipv4().source(REGISTER_1).destination(REGISTER_1B).find(set)
    }

    /// `ip daddr . ip saddr @SET`: the same set for the reverse direction.
    pub(super) fn inward_in(self, set: Set) -> Self {
        self.ipv4().destination(REGISTER_1).source(REGISTER_1B).find(set)
    }

    /// `ip saddr . ct mark @SET`
    pub(super) fn source_and_mark_in(self, set: Set) -> Self {
        self.ipv4().source(REGISTER_1).ct(CT_MARK, REGISTER_1B).find(set)
    }

    /// `ip daddr . ct mark @SET`
    pub(super) fn destination_and_mark_in(self, set: Set) -> Self {
        self.ipv4().destination(REGISTER_1).ct(CT_MARK, REGISTER_1B).find(set)
    }

    fn source(self, register: u32) -> Self {
        self.payload(BASE_NETWORK, 12, 4, register)
    }

    fn destination(self, register: u32) -> Self {
        self.payload(BASE_NETWORK, 16, 4, register)
    }

    // Statements.

    /// `ct mark set ip saddr map @SET`
    pub(super) fn mark_from_source(self, map: Set) -> Self {
        let found = self.ipv4().source(REGISTER_1).find_into(map, REGISTER_1);
        found.with("ct", &Attrs::new().be32(2, CT_MARK).be32(4, REGISTER_1))
    }

    /// `log group GROUP prefix "PREFIX" snaplen BYTES`
    pub(super) fn log(self, group: u16, prefix: &str, bytes: u32) -> Self {
        let data = Attrs::new().bytes(1, &group.to_be_bytes()).text(2, prefix).be32(3, bytes);
        self.with("log", &data)
    }

    /// Loads the address of the box that owns the incoming interface into the first register; no box, no match.
    fn owner(self) -> Self {
        self.meta(META_IIFNAME, REGISTER_1).find_into(Set::Owners, REGISTER_1)
    }

    /// `meta mark set iifname map @owners`
    pub(super) fn mark_owner(self) -> Self {
        self.owner().with("meta", &Attrs::new().be32(2, META_MARK).be32(3, REGISTER_1))
    }

    /// `meta mark @SET`
    pub(super) fn mark_in(self, set: Set) -> Self {
        self.meta(META_MARK, REGISTER_1).find(set)
    }

    /// `counter`
    pub(super) fn count(self) -> Self {
        self.with("counter", &Attrs::new().be64(1, 0).be64(2, 0))
    }

    /// `masquerade`
    pub(super) fn masquerade(self) -> Self {
        self.with("masq", &Attrs::new())
    }

    /// `reject with tcp reset`
    pub(super) fn reset(self) -> Self {
        self.with("reject", &Attrs::new().be32(1, 1).bytes(2, &[0]))
    }

    /// `reject with icmpx admin-prohibited`
    pub(super) fn prohibited(self) -> Self {
        self.with("reject", &Attrs::new().be32(1, 2).bytes(2, &[3]))
    }

    /// `ip saddr vmap @SET`
    pub(super) fn verdict_of_source(self, map: Set) -> Self {
        self.ipv4().source(REGISTER_1).find_into(map, REGISTER_VERDICT)
    }

    /// `ip daddr vmap @SET`
    pub(super) fn verdict_of_destination(self, map: Set) -> Self {
        self.ipv4().destination(REGISTER_1).find_into(map, REGISTER_VERDICT)
    }

    /// `ip saddr . meta l4proto . th dport vmap @SET`
    pub(super) fn verdict_of_source_and_port(self, map: Set) -> Self {
        let key = self.ipv4().source(REGISTER_1).meta(META_L4PROTO, REGISTER_1B);
        key.payload(BASE_TRANSPORT, 2, 2, REGISTER_1C).find_into(map, REGISTER_VERDICT)
    }

    /// `redirect to :PORT`
    pub(super) fn redirect_to(self, port: u16) -> Self {
        let data = Attrs::new().be32(1, REGISTER_1).nested(2, &value(&port.to_be_bytes()));
        self.with("immediate", &data).with("redir", &Attrs::new().be32(1, REGISTER_1))
    }

    /// The verdict.
    pub(super) fn then(self, verdict: Verdict) -> Self {
        self.with("immediate", &Attrs::new().be32(1, REGISTER_VERDICT).nested(2, &verdict.attrs()))
    }
}
