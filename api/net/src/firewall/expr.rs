//! The expressions of rules, and how a rule is built.
//!
//! A rule is a list of small steps over registers: load, compare, look up, decide. Each method adds the expressions of
//! one `nft` statement, which its comment names. Every step ends the rule if it does not match.

use super::nfta::{
    bitwise, cmp, counter, ct, data, dynset, fib, immediate, list, log, lookup, meta, payload, redir, register, reject,
    verdict,
};
use super::parts::{expression, value};
use super::sets::Set;
use super::settings::{IPPROTO_ICMP, IPPROTO_TCP, IPPROTO_UDP};
use crate::netlink::Attrs;

const NFPROTO_IPV4: u8 = 2;
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
    /// `NFTA_DATA_VERDICT` with its content.
    pub(super) fn attrs(self) -> Attrs {
        let (code, chain) = match self {
            Self::Drop => (verdict::NF_DROP, None),
            Self::Accept => (verdict::NF_ACCEPT, None),
            Self::Return => (verdict::NFT_RETURN, None),
            Self::Goto(chain) => (verdict::NFT_GOTO, Some(chain)),
            Self::Jump(chain) => (verdict::NFT_JUMP, Some(chain)),
        };
        let attrs = Attrs::new().bytes(verdict::CODE, &code.to_be_bytes());
        let attrs = chain.map_or(attrs.clone(), |chain| attrs.text(verdict::CHAIN, chain));
        Attrs::new().nested(data::VERDICT, &attrs)
    }
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
        self.expressions = self.expressions.nested(list::ELEM, &expression(name, data));
        self
    }

    fn meta(self, key: u32, to: u32) -> Self {
        self.with("meta", &Attrs::new().be32(meta::DREG, to).be32(meta::KEY, key))
    }

    fn ct(self, key: u32, to: u32) -> Self {
        self.with("ct", &Attrs::new().be32(ct::DREG, to).be32(ct::KEY, key))
    }

    fn payload(self, base: u32, offset: u32, length: u32, to: u32) -> Self {
        let from = Attrs::new().be32(payload::DREG, to).be32(payload::BASE, base);
        self.with("payload", &from.be32(payload::OFFSET, offset).be32(payload::LEN, length))
    }

    fn compare(self, operation: u32, bytes: &[u8]) -> Self {
        let with = Attrs::new().be32(cmp::SREG, register::R1).be32(cmp::OP, operation);
        self.with("cmp", &with.nested(cmp::DATA, &value(bytes)))
    }

    fn masked(self, mask: &[u8]) -> Self {
        let length = u32::try_from(mask.len()).expect("masks are a few bytes");
        let zero = vec![0; mask.len()];
        let data = Attrs::new().be32(bitwise::SREG, register::R1).be32(bitwise::DREG, register::R1);
        let data = data.be32(bitwise::LEN, length).nested(bitwise::MASK, &value(mask));
        self.with("bitwise", &data.nested(bitwise::XOR, &value(&zero)))
    }

    fn find(self, set: Set) -> Self {
        let data = Attrs::new().text(lookup::SET, set.name()).be32(lookup::SREG, register::R1);
        self.with("lookup", &data.be32(lookup::SET_ID, set.id()))
    }

    fn find_into(self, set: Set, to: u32) -> Self {
        let data = Attrs::new().text(lookup::SET, set.name()).be32(lookup::SREG, register::R1);
        self.with("lookup", &data.be32(lookup::DREG, to).be32(lookup::SET_ID, set.id()))
    }

    // Matches.

    /// `iifname "PREFIX*"`
    pub(super) fn in_by(self, prefix: &str) -> Self {
        self.meta(meta::KEY_IIFNAME, register::R1).compare(cmp::EQ, prefix.as_bytes())
    }

    /// `oifname "PREFIX*"`
    pub(super) fn out_by(self, prefix: &str) -> Self {
        self.meta(meta::KEY_OIFNAME, register::R1).compare(cmp::EQ, prefix.as_bytes())
    }

    /// `oifname != "PREFIX*"`
    pub(super) fn not_out_by(self, prefix: &str) -> Self {
        self.meta(meta::KEY_OIFNAME, register::R1).compare(cmp::NEQ, prefix.as_bytes())
    }

    /// `meta nfproto ipv4`
    pub(super) fn ipv4(self) -> Self {
        self.meta(meta::KEY_NFPROTO, register::R1).compare(cmp::EQ, &[NFPROTO_IPV4])
    }

    /// `meta nfproto != ipv4`
    pub(super) fn not_ipv4(self) -> Self {
        self.meta(meta::KEY_NFPROTO, register::R1).compare(cmp::NEQ, &[NFPROTO_IPV4])
    }

    /// `meta l4proto icmp`
    pub(super) fn icmp(self) -> Self {
        self.meta(meta::KEY_L4PROTO, register::R1).compare(cmp::EQ, &[IPPROTO_ICMP])
    }

    /// `meta l4proto tcp`
    pub(super) fn tcp(self) -> Self {
        self.meta(meta::KEY_L4PROTO, register::R1).compare(cmp::EQ, &[IPPROTO_TCP])
    }

    /// `meta l4proto udp`
    pub(super) fn udp(self) -> Self {
        self.meta(meta::KEY_L4PROTO, register::R1).compare(cmp::EQ, &[IPPROTO_UDP])
    }

    /// `ip hdrlength != 5`: there are options, such as a source route.
    pub(super) fn has_ip_options(self) -> Self {
        let first_byte = self.ipv4().payload(payload::NETWORK, 0, 1, register::R1);
        first_byte.masked(&[HEADER_WORDS_MASK]).compare(cmp::NEQ, &[HEADER_WORDS_PLAIN])
    }

    /// `ct state STATES`, any of them.
    pub(super) fn state(self, states: u32) -> Self {
        self.ct(ct::KEY_STATE, register::R1).masked(&states.to_ne_bytes()).compare(cmp::NEQ, &0_u32.to_ne_bytes())
    }

    /// `ct state & (STATES) == 0`, none of them.
    pub(super) fn not_state(self, states: u32) -> Self {
        self.ct(ct::KEY_STATE, register::R1).masked(&states.to_ne_bytes()).compare(cmp::EQ, &0_u32.to_ne_bytes())
    }

    /// `ip length <= BYTES tcp flags & (fin | syn | rst) == 0`
    pub(super) fn tcp_of_at_most(self, bytes: u16) -> Self {
        const FIN_SYN_RST: u8 = 7;
        let short = self.ipv4().payload(payload::NETWORK, 2, 2, register::R1).compare(cmp::LTE, &bytes.to_be_bytes());
        let flags = short.tcp().payload(payload::TRANSPORT, 13, 1, register::R1);
        flags.masked(&[FIN_SYN_RST]).compare(cmp::EQ, &[0])
    }

    /// `tcp doff WORDS ip length BYTES`: the packet is as long as its headers, so it has no payload. IP options never
    /// occur here.
    pub(super) fn tcp_headers_only(self, words: u8) -> Self {
        let offset =
            self.tcp().payload(payload::TRANSPORT, 12, 1, register::R1).masked(&[0xf0]).compare(cmp::EQ, &[words << 4]);
        let bytes = 4 * (u16::from(HEADER_WORDS_PLAIN) + u16::from(words));
        offset.ipv4().payload(payload::NETWORK, 2, 2, register::R1).compare(cmp::EQ, &bytes.to_be_bytes())
    }

    /// `ct status dnat`: a redirect rule sent it here; the client did not address this port itself.
    pub(super) fn redirected(self) -> Self {
        self.ct(ct::KEY_STATUS, register::R1).masked(&STATUS_DNAT.to_ne_bytes()).compare(cmp::NEQ, &0_u32.to_ne_bytes())
    }

    /// `fib daddr type local`: an address of the host itself.
    pub(super) fn destination_is_local(self) -> Self {
        let data = Attrs::new().be32(fib::DREG, register::R1).be32(fib::RESULT, fib::RESULT_ADDRTYPE);
        let data = data.be32(fib::FLAGS, fib::F_DADDR);
        self.ipv4().with("fib", &data).compare(cmp::EQ, &ROUTE_LOCAL.to_ne_bytes())
    }

    // Lookups.

    /// `iifname @SET`
    pub(super) fn in_by_one_of(self, set: Set) -> Self {
        self.meta(meta::KEY_IIFNAME, register::R1).find(set)
    }

    /// `iifname . ip saddr @SET`
    pub(super) fn in_by_and_source_in(self, set: Set) -> Self {
        self.ipv4().meta(meta::KEY_IIFNAME, register::R1).source(register::R2).find(set)
    }

    /// `iifname . ip daddr @SET`
    pub(super) fn in_by_and_destination_in(self, set: Set) -> Self {
        self.ipv4().meta(meta::KEY_IIFNAME, register::R1).destination(register::R2).find(set)
    }

    /// `meta l4proto . th dport @SET`
    pub(super) fn port_in(self, set: Set) -> Self {
        self.meta(meta::KEY_L4PROTO, register::R1).payload(payload::TRANSPORT, 2, 2, register::R32_01).find(set)
    }

    /// `meta l4proto != @SET`
    pub(super) fn protocol_not_in(self, set: Set) -> Self {
        let data = Attrs::new().text(lookup::SET, set.name()).be32(lookup::SREG, register::R1);
        let data = data.be32(lookup::SET_ID, set.id()).be32(lookup::FLAGS, lookup::F_INV);
        self.meta(meta::KEY_L4PROTO, register::R1).with("lookup", &data)
    }

    /// `ip saddr @SET`. If the element has a limit, it matches only above it; if it has a counter, it counts.
    pub(super) fn source_in(self, set: Set) -> Self {
        self.ipv4().source(register::R1).find(set)
    }

    /// `add @SET { ip saddr STATEFUL }`: matches if the stateful expression matches.
    pub(super) fn add_source_to(self, set: Set, stateful: &Attrs) -> Self {
        let data = Attrs::new().text(dynset::SET_NAME, set.name()).be32(dynset::SET_ID, set.id());
        let data = data.be32(dynset::OP, dynset::OP_ADD).be32(dynset::SREG_KEY, register::R1);
        self.ipv4().source(register::R1).with("dynset", &data.nested(dynset::EXPR, stateful))
    }

    /// `ip daddr @SET`
    pub(super) fn destination_in(self, set: Set) -> Self {
        self.ipv4().destination(register::R1).find(set)
    }

    /// `ip saddr . ip daddr @SET`
    pub(super) fn outward_in(self, set: Set) -> Self {
        self.ipv4().source(register::R1).destination(register::R32_01).find(set)
    }

    /// `ip daddr . ip saddr @SET`: the same set for the reverse direction.
    pub(super) fn inward_in(self, set: Set) -> Self {
        self.ipv4().destination(register::R1).source(register::R32_01).find(set)
    }

    /// `ip saddr . ct mark @SET`
    pub(super) fn source_and_mark_in(self, set: Set) -> Self {
        self.ipv4().source(register::R1).ct(ct::KEY_MARK, register::R32_01).find(set)
    }

    /// `ip daddr . ct mark @SET`
    pub(super) fn destination_and_mark_in(self, set: Set) -> Self {
        self.ipv4().destination(register::R1).ct(ct::KEY_MARK, register::R32_01).find(set)
    }

    fn source(self, register: u32) -> Self {
        self.payload(payload::NETWORK, 12, 4, register)
    }

    fn destination(self, register: u32) -> Self {
        self.payload(payload::NETWORK, 16, 4, register)
    }

    // Statements.

    /// `ct mark set ip saddr map @SET`
    pub(super) fn mark_from_source(self, map: Set) -> Self {
        let found = self.ipv4().source(register::R1).find_into(map, register::R1);
        found.with("ct", &Attrs::new().be32(ct::KEY, ct::KEY_MARK).be32(ct::SREG, register::R1))
    }

    /// `log group GROUP prefix "PREFIX" snaplen BYTES`
    pub(super) fn log(self, group: u16, prefix: &str, bytes: u32) -> Self {
        let data = Attrs::new().bytes(log::GROUP, &group.to_be_bytes()).text(log::PREFIX, prefix);
        self.with("log", &data.be32(log::SNAPLEN, bytes))
    }

    /// Loads the address of the box that owns the incoming interface into the first register; no box, no match.
    fn owner(self) -> Self {
        self.meta(meta::KEY_IIFNAME, register::R1).find_into(Set::Owners, register::R1)
    }

    /// `meta mark set iifname map @owners`
    pub(super) fn mark_owner(self) -> Self {
        self.owner().with("meta", &Attrs::new().be32(meta::KEY, meta::KEY_MARK).be32(meta::SREG, register::R1))
    }

    /// `meta mark @SET`
    pub(super) fn mark_in(self, set: Set) -> Self {
        self.meta(meta::KEY_MARK, register::R1).find(set)
    }

    /// `counter`
    pub(super) fn count(self) -> Self {
        self.with("counter", &Attrs::new().be64(counter::BYTES, 0).be64(counter::PACKETS, 0))
    }

    /// `masquerade`
    pub(super) fn masquerade(self) -> Self {
        self.with("masq", &Attrs::new())
    }

    /// `reject with tcp reset`
    pub(super) fn reset(self) -> Self {
        self.with("reject", &Attrs::new().be32(reject::TYPE, reject::TCP_RST).bytes(reject::ICMP_CODE, &[0]))
    }

    /// `reject with icmpx admin-prohibited`
    pub(super) fn prohibited(self) -> Self {
        let data = Attrs::new().be32(reject::TYPE, reject::ICMPX_UNREACH);
        self.with("reject", &data.bytes(reject::ICMP_CODE, &[reject::ADMIN_PROHIBITED]))
    }

    /// `ip saddr vmap @SET`
    pub(super) fn verdict_of_source(self, map: Set) -> Self {
        self.ipv4().source(register::R1).find_into(map, register::VERDICT)
    }

    /// `ip daddr vmap @SET`
    pub(super) fn verdict_of_destination(self, map: Set) -> Self {
        self.ipv4().destination(register::R1).find_into(map, register::VERDICT)
    }

    /// `ip saddr . meta l4proto . th dport vmap @SET`
    pub(super) fn verdict_of_source_and_port(self, map: Set) -> Self {
        let key = self.ipv4().source(register::R1).meta(meta::KEY_L4PROTO, register::R32_01);
        key.payload(payload::TRANSPORT, 2, 2, register::R32_02).find_into(map, register::VERDICT)
    }

    /// `redirect to :PORT`
    pub(super) fn redirect_to(self, port: u16) -> Self {
        let port = value(&port.to_be_bytes());
        let data = Attrs::new().be32(immediate::DREG, register::R1).nested(immediate::DATA, &port);
        self.with("immediate", &data).with("redir", &Attrs::new().be32(redir::REG_PROTO_MIN, register::R1))
    }

    /// The verdict.
    pub(super) fn then(self, verdict: Verdict) -> Self {
        let data = Attrs::new().be32(immediate::DREG, register::VERDICT);
        self.with("immediate", &data.nested(immediate::DATA, &verdict.attrs()))
    }
}
