//! The table, its chains and its rules, which are the same for any boxes.
//!
//! A box is recognized by the interface name, which begins with [`PREFIX`] from the moment the kernel makes it. A link
//! without elements meets only drops, so a box is closed in by default.
//!
//! The policy of the base chains is `accept`: in the host's namespace other traffic than that of boxes passes these
//! hooks, and it is not our concern. All traffic from or to a box leaves the base chains by `goto` for chains that end
//! with a drop.
//!
//! `drop` is silent; `refuse` answers at once (a TCP reset, or ICMP "administratively prohibited"), so that programs in
//! a box fail instead of hanging. A refused packet of an established connection resets it: that is how a changed policy
//! cuts. Only packets whose source was verified as the box's own are answered.

use super::batch::{Batch, Verb};
use super::expr::{Rule, Verdict, state};
use super::nfta::{self, chain, hook, userdata, verdict};
use super::parts::connections_over;
use super::reason::{GROUP_ARRIVED, GROUP_REFUSED, Reason};
use super::sets::Set;
use super::settings::ProxyPorts;
use crate::netlink::{APPEND, Attrs, CREATE};

pub(crate) const TABLE: &str = "icebox";
/// The name prefix of the host's end of every box's link, and of no other interface.
pub const PREFIX: &str = "ice-";

/// Targets of policies.
pub(super) const ACCEPT_OUT: &str = "accept_out";
pub(super) const CUSTOM_OUT: &str = "custom_out";
pub(super) const DENY_OUT: &str = Reason::DenyAll.chain();
pub(super) const ACCEPT_IN: &str = "accept_in";
pub(super) const CUSTOM_IN: &str = "custom_in";
pub(super) const DENY_IN: &str = "deny_in";

/// Chains that redirect to our proxies.
pub(super) const TO_DNS: &str = "to_dns";
pub(super) const TO_EGRESS: &str = "to_egress";
/// Possible targets of elements.
pub(super) const LED_TO: [&str; 8] =
    [ACCEPT_OUT, CUSTOM_OUT, DENY_OUT, ACCEPT_IN, CUSTOM_IN, DENY_IN, TO_DNS, TO_EGRESS];

const REFUSE: &str = "refuse";
const QUIET: &str = "quiet";
const REDIRECT_BOX: &str = "redirect_box";
const FROM_BOX: &str = "from_box";
const TO_BOX: &str = "to_box";
const CHECK_SOURCE: &str = "check_source";
const TO_HOST: &str = "to_host";
const HOST_TO_BOX: &str = "host_to_box";

/// Longest IP and TCP headers; IP options do not pass.
const HEADERS_BYTES_MAX: u16 = 80;

/// The hook of a base chain: type, hook number and priority.
struct Hook(&'static str, u32, i32);

/// Base chains.
const PREROUTING: (&str, Hook) = ("prerouting", Hook("filter", 0, -300));
const REDIRECT: (&str, Hook) = ("to_proxies", Hook("nat", 0, -100));
const INPUT: (&str, Hook) = ("input", Hook("filter", 1, 0));
const FORWARD: (&str, Hook) = ("forward", Hook("filter", 2, 0));
const OUTPUT: (&str, Hook) = ("output", Hook("filter", 3, 0));
const POSTROUTING: (&str, Hook) = ("postrouting", Hook("nat", 4, 100));

const BASE_CHAINS: [(&str, Hook); 6] = [PREROUTING, REDIRECT, INPUT, FORWARD, OUTPUT, POSTROUTING];
const CHAINS: [&str; 15] = [
    REDIRECT_BOX,
    TO_DNS,
    TO_EGRESS,
    FROM_BOX,
    TO_BOX,
    CHECK_SOURCE,
    TO_HOST,
    HOST_TO_BOX,
    ACCEPT_OUT,
    CUSTOM_OUT,
    REFUSE,
    QUIET,
    ACCEPT_IN,
    CUSTOM_IN,
    DENY_IN,
];

/// Creates the table. `comment` is stored with it and identifies its sets; `flags` control its ownership.
pub(super) fn table(comment: &str, flags: u32) -> Attrs {
    // The format of `nft` comments: kind, length, text.
    let mut kept = vec![userdata::TABLE_COMMENT, u8::try_from(comment.len() + 1).expect("the comment is a few words")];
    kept.extend(comment.bytes());
    kept.push(0);
    Attrs::new().text(nfta::table::NAME, TABLE).be32(nfta::table::FLAGS, flags).bytes(nfta::table::USERDATA, &kept)
}

/// The comment of a table from the kernel.
pub(super) fn comment(userdata: &[u8]) -> Option<&str> {
    std::str::from_utf8(userdata.get(2..)?).ok()?.strip_suffix('\0')
}

/// All chains, created if missing: the hook type if hooked, and their attributes.
pub(super) fn chains() -> Vec<(Option<&'static str>, Attrs)> {
    let named = |name: &str| Attrs::new().text(chain::TABLE, TABLE).text(chain::NAME, name);
    let base = BASE_CHAINS.into_iter().map(|(name, Hook(kind, number, priority))| {
        const ACCEPT: u32 = verdict::NF_ACCEPT.cast_unsigned();
        let place = Attrs::new().be32(hook::HOOKNUM, number).bytes(hook::PRIORITY, &priority.to_be_bytes());
        (Some(kind), named(name).nested(chain::HOOK, &place).be32(chain::POLICY, ACCEPT).text(chain::TYPE, kind))
    });
    let others = CHAINS.into_iter().chain(Reason::ALL.map(Reason::chain));
    base.chain(others.map(|name| (None, named(name)))).collect()
}

/// All rules, replacing the existing ones.
pub(super) fn rules(ports: ProxyPorts, connections_max: Option<u32>) -> Batch {
    let mut batch = Batch::default();
    batch.push(Verb::DeleteRule, 0, Attrs::new().text(nfta::rule::TABLE, TABLE));
    for rule in all(ports, connections_max) {
        batch.push(Verb::NewRule, CREATE | APPEND, attrs(&rule));
    }
    batch
}

/// The attributes of a rule.
pub(super) fn attrs(rule: &Rule) -> Attrs {
    Attrs::new()
        .text(nfta::rule::TABLE, TABLE)
        .text(nfta::rule::CHAIN, rule.chain)
        .nested(nfta::rule::EXPRESSIONS, &rule.expressions)
}

pub(super) fn all(ports: ProxyPorts, connections_max: Option<u32>) -> impl Iterator<Item = Rule> {
    hooks()
        .into_iter()
        .chain(redirection(ports))
        .chain(outward(connections_max))
        .chain(inward())
        .chain(host())
        .chain(quiet())
        .chain(Reason::ALL.into_iter().flat_map(told))
}

/// The rules from the hooks to our chains.
fn hooks() -> Vec<Rule> {
    let go = Verdict::Goto;
    vec![
        Rule::of(PREROUTING.0).in_by(PREFIX).then(go(CHECK_SOURCE)),
        Rule::of(REDIRECT.0).in_by(PREFIX).then(go(REDIRECT_BOX)),
        Rule::of(INPUT.0).in_by(PREFIX).then(go(TO_HOST)),
        // The proxies serve boxes only. A connection that the host began from an equal local port passes.
        Rule::of(INPUT.0).port_in(Set::Proxies).not_state(state::ESTABLISHED | state::RELATED).then(Verdict::Drop),
        Rule::of(FORWARD.0).in_by(PREFIX).then(go(FROM_BOX)),
        Rule::of(FORWARD.0).out_by(PREFIX).then(go(TO_BOX)),
        // The uplink forwards because boxes need it. It must not make the host a router.
        Rule::of(FORWARD.0).in_by_one_of(Set::Opened).state(state::NEW).then(Verdict::Drop),
        Rule::of(OUTPUT.0).out_by(PREFIX).then(go(HOST_TO_BOX)),
        Rule::of(POSTROUTING.0).source_in(Set::Addresses).not_out_by(PREFIX).masquerade(),
        // Before connection tracking: packets that a box must never send do not fill the conntrack table.
        Rule::of(CHECK_SOURCE).not_ipv4().count().then(because(Reason::Ipv6)),
        Rule::of(CHECK_SOURCE).has_ip_options().count().then(because(Reason::Options)),
        Rule::of(CHECK_SOURCE).in_by_and_source_in(Set::Boxes).then(Verdict::Return),
        Rule::of(CHECK_SOURCE).count().then(because(Reason::Source)),
    ]
}

/// Redirects to our proxies. Evaluated once for each connection. Traffic that the policy refuses is not redirected, so
/// that it meets the refusing rule. Nor are the host's own addresses, even public ones: a proxy would reach them with
/// the host's rights.
fn redirection(ports: ProxyPorts) -> Vec<Rule> {
    let go = Verdict::Goto;
    let rule = || Rule::of(REDIRECT_BOX);
    vec![
        rule().in_by_and_destination_in(Set::Gateways).port_in(Set::GatewayPorts).then(go(TO_DNS)),
        rule().destination_in(Set::Blocked).then(Verdict::Accept),
        rule().destination_is_local().then(Verdict::Accept),
        rule().outward_in(Set::Denied).then(Verdict::Accept),
        rule().verdict_of_source_and_port(Set::RedirectAlways),
        rule().outward_in(Set::Allowed).then(Verdict::Accept),
        rule().verdict_of_source_and_port(Set::RedirectElse),
        rule().then(Verdict::Accept),
        // `nft` needs the protocol here to list the rule, though only these packets arrive.
        Rule::of(TO_DNS).tcp().redirect_to(ports.dns),
        Rule::of(TO_DNS).udp().redirect_to(ports.dns),
        Rule::of(TO_EGRESS).tcp().redirect_to(ports.egress),
    ]
}

/// Traffic of a box to other destinations than the host.
fn outward(connections_max: Option<u32>) -> Vec<Rule> {
    const OURS: u32 = state::NEW | state::ESTABLISHED | state::RELATED;
    let connections = connections_max.map(|most| {
        let limit = Rule::of(ACCEPT_OUT).state(state::NEW).add_source_to(Set::Connections, &connections_over(most));
        limit.then(because(Reason::Connections))
    });
    let mut rules = vec![
        Rule::of(FROM_BOX).out_by(PREFIX).then(because(Reason::Neighbour)),
        Rule::of(FROM_BOX).destination_in(Set::Blocked).then(because(Reason::Closed)),
        Rule::of(FROM_BOX).protocol_not_in(Set::Protocols).then(because(Reason::Protocol)),
        Rule::of(FROM_BOX).port_in(Set::BlockedPorts).then(because(Reason::Mail)),
        // Untracked packets would not be masqueraded.
        Rule::of(FROM_BOX).not_state(OURS).then(Verdict::Drop),
        Rule::of(FROM_BOX).verdict_of_source(Set::PolicyOut),
        Rule::of(FROM_BOX).then(Verdict::Drop),
        // Denied wins. A connection allowed by a name keeps its mark when the name's answer has expired, until a policy
        // change replaces the mark.
        Rule::of(CUSTOM_OUT).outward_in(Set::Denied).then(because(Reason::Denied)),
        Rule::of(CUSTOM_OUT).port_in(Set::ResolverPorts).then(because(Reason::Resolver)),
        Rule::of(CUSTOM_OUT).outward_in(Set::Allowed).then(Verdict::Goto(ACCEPT_OUT)),
        // Connections older than the policy have no known name; newer ones went to a proxy.
        Rule::of(CUSTOM_OUT).port_in(Set::NamedPorts).then(because(Reason::Unlisted)),
        Rule::of(CUSTOM_OUT).outward_in(Set::Pinned).mark_from_source(Set::Generation).then(Verdict::Goto(ACCEPT_OUT)),
        Rule::of(CUSTOM_OUT)
            .state(state::ESTABLISHED | state::RELATED)
            .source_and_mark_in(Set::Current)
            .then(Verdict::Goto(ACCEPT_OUT)),
        Rule::of(CUSTOM_OUT).then(because(Reason::Unlisted)),
        Rule::of(ACCEPT_OUT).state(state::NEW).source_in(Set::NewRate).then(because(Reason::Rate)),
        // Drops like a slow link: the sender slows down.
        Rule::of(ACCEPT_OUT).source_in(Set::SendRate).then(Verdict::Drop),
        Rule::of(ACCEPT_OUT).source_in(Set::Sent),
        Rule::of(ACCEPT_OUT).tcp_of_at_most(HEADERS_BYTES_MAX).then(Verdict::Jump(QUIET)),
        Rule::of(ACCEPT_OUT).source_in(Set::Traffic),
        Rule::of(ACCEPT_OUT).then(Verdict::Accept),
        Rule::of(REFUSE).source_in(Set::Refused),
        Rule::of(REFUSE).tcp().reset(),
        Rule::of(REFUSE).prohibited(),
    ];
    let first = rules.iter().position(|rule| rule.chain == ACCEPT_OUT).unwrap_or(rules.len());
    rules.splice(first..first, connections);
    rules
}

/// Return traffic. There are no inbound connections: public URLs are dialled inside the box's namespace.
fn inward() -> Vec<Rule> {
    vec![
        Rule::of(TO_BOX).not_state(state::ESTABLISHED | state::RELATED).then(Verdict::Drop),
        Rule::of(TO_BOX).verdict_of_destination(Set::PolicyIn),
        Rule::of(TO_BOX).then(Verdict::Drop),
        Rule::of(CUSTOM_IN).inward_in(Set::Denied).then(Verdict::Drop),
        Rule::of(CUSTOM_IN).inward_in(Set::Allowed).then(Verdict::Goto(ACCEPT_IN)),
        Rule::of(CUSTOM_IN).destination_and_mark_in(Set::Current).then(Verdict::Goto(ACCEPT_IN)),
        Rule::of(CUSTOM_IN).inward_in(Set::Pinned).then(Verdict::Goto(ACCEPT_IN)),
        // ICMP errors from routers on the path (packet too big, destination unreachable); policies do not name routers.
        // Nothing else is related here: connections of boxes have no helpers.
        Rule::of(CUSTOM_IN).icmp().state(state::RELATED).then(Verdict::Goto(ACCEPT_IN)),
        Rule::of(CUSTOM_IN).then(Verdict::Drop),
        Rule::of(ACCEPT_IN).destination_in(Set::ReceiveRate).then(Verdict::Drop),
        Rule::of(ACCEPT_IN).destination_in(Set::Received),
        Rule::of(ACCEPT_IN).tcp_of_at_most(HEADERS_BYTES_MAX).then(Verdict::Jump(QUIET)),
        Rule::of(ACCEPT_IN).destination_in(Set::Traffic),
        Rule::of(ACCEPT_IN).destination_in(Set::Frozen).log(GROUP_ARRIVED, "arrived", HEADERS_BYTES_MAX.into()),
        Rule::of(ACCEPT_IN).then(Verdict::Accept),
        Rule::of(DENY_IN).then(Verdict::Drop),
    ]
}

/// Between a box and the host: our proxies, at the box's own gateway address and only for redirected traffic.
fn host() -> Vec<Rule> {
    let proxy = |rule: Rule| rule.in_by_and_destination_in(Set::Gateways).port_in(Set::Proxies).redirected();
    vec![
        proxy(Rule::of(TO_HOST)).then(Verdict::Goto(ACCEPT_OUT)),
        // ICMP errors for a proxy's answer to a closed socket. They are no refusal.
        Rule::of(TO_HOST).icmp().state(state::RELATED).then(Verdict::Drop),
        Rule::of(TO_HOST).then(because(Reason::Host)),
        // Answers of proxies, and refusals.
        Rule::of(HOST_TO_BOX).state(state::ESTABLISHED | state::RELATED).redirected().then(Verdict::Goto(ACCEPT_IN)),
        Rule::of(HOST_TO_BOX).state(state::ESTABLISHED | state::RELATED).then(Verdict::Accept),
        Rule::of(HOST_TO_BOX).then(Verdict::Drop),
    ]
}

/// Accepts TCP packets without payload, SYN, FIN or RST: acknowledgements and keep-alive probes. All others return.
fn quiet() -> Vec<Rule> {
    // The usual lengths first: with timestamps, and bare.
    let words = [8, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15];
    words.map(|words| Rule::of(QUIET).tcp_headers_only(words).then(Verdict::Accept)).into()
}

fn because(reason: Reason) -> Verdict {
    Verdict::Goto(reason.chain())
}

/// Logs a refused packet, within the box's log rate, and ends its processing.
fn told(reason: Reason) -> Vec<Rule> {
    let chain = reason.chain();
    let log = |rule: Rule| rule.log(GROUP_REFUSED, reason.name(), HEADERS_BYTES_MAX.into());
    if reason.has_trusted_source() {
        let end = Verdict::Goto(REFUSE);
        return vec![
            Rule::of(chain).source_in(Set::LogRate).then(end),
            log(Rule::of(chain)),
            Rule::of(chain).then(end),
        ];
    }
    // The source is not trusted; the interface identifies the box. The packet mark carries the box's address, and ends
    // with the packet.
    vec![
        Rule::of(chain).mark_owner(),
        Rule::of(chain).mark_in(Set::MarkedRate).then(Verdict::Drop),
        log(Rule::of(chain).mark_owner()),
        Rule::of(chain).then(Verdict::Drop),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_rules() -> Vec<Rule> {
        all(ProxyPorts::default(), Some(5)).collect()
    }

    /// A chain without a final verdict would fall back to the base chain's `accept`.
    #[test]
    fn every_chain_a_box_meets_ends_with_a_decision() {
        for chain in CHAINS.into_iter().chain(Reason::ALL.map(Reason::chain)).filter(|chain| *chain != QUIET) {
            let rules: Vec<_> = all_rules().into_iter().filter(|r| r.chain == chain).collect();
            let last = rules.last().unwrap_or_else(|| panic!("{chain} is empty"));
            let alone = |v| Rule::of(chain).then(v).expressions;
            let ends = [
                alone(Verdict::Drop),
                alone(Verdict::Accept),
                alone(Verdict::Goto(REFUSE)),
                Rule::of(chain).count().then(because(Reason::Source)).expressions,
                alone(because(Reason::Host)),
                alone(because(Reason::Unlisted)),
                Rule::of(chain).prohibited().expressions,
                Rule::of(chain).udp().redirect_to(ProxyPorts::default().dns).expressions,
                Rule::of(chain).tcp().redirect_to(ProxyPorts::default().egress).expressions,
            ];
            assert!(ends.contains(&last.expressions), "{chain} does not end with a decision");
            // Traffic that is not redirected continues to the filter chains.
            let accepts = matches!(chain, ACCEPT_OUT | ACCEPT_IN | REDIRECT_BOX);
            assert_eq!(last.expressions == alone(Verdict::Accept), accepts, "{chain} ends with accept");
        }
    }

    #[test]
    fn every_rule_stands_in_a_chain_that_is_made() {
        for rule in all_rules() {
            let base = BASE_CHAINS.iter().any(|(name, _)| *name == rule.chain);
            let told = Reason::ALL.into_iter().any(|reason| reason.chain() == rule.chain);
            assert!(base || told || CHAINS.contains(&rule.chain), "{}", rule.chain);
        }
    }

    #[test]
    fn the_comment_is_read_as_it_was_written() {
        let attrs = table("icebox sets 1", 0);
        let userdata = crate::netlink::attribute(attrs.as_bytes(), nfta::table::USERDATA).expect("userdata");
        assert_eq!(comment(userdata), Some("icebox sets 1"));
        assert_eq!(comment(&[]), None);
    }
}
