//! The kernel features that the table needs, and which of them are missing.
//!
//! For a failed transaction the kernel reports only that some part is missing. So the parts are tried one by one, each
//! in a table that is removed in the same transaction, in a private namespace.

use std::collections::BTreeSet;

use super::batch::{Batch, Socket, Verb};
use super::expr::Rule;
use super::nfta::{dynset, expr, set, table};
use super::ruleset;
use super::sets::{ALL, Set};
use super::settings::ProxyPorts;
use crate::error::Error;
use crate::netlink::{APPEND, Attrs, CREATE, attribute, attributes};

/// A kernel feature: its module, and its Kconfig option.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Part {
    pub(crate) module: &'static str,
    pub(crate) option: &'static str,
}

/// The nftables core.
pub(crate) const NFTABLES: Part = Part { module: "nf_tables", option: "NF_TABLES, NF_TABLES_INET" };
const NAT_CHAINS: Part = Part { module: "nft_chain_nat", option: "NFT_NAT" };

/// The modules of expressions that `nf_tables` does not contain itself.
const EXPRESSIONS: [(&str, Part); 9] = [
    ("ct", Part { module: "nft_ct", option: "NFT_CT" }),
    ("connlimit", Part { module: "nft_connlimit", option: "NFT_CONNLIMIT" }),
    ("fib", Part { module: "nft_fib_inet", option: "NFT_FIB_INET" }),
    ("limit", Part { module: "nft_limit", option: "NFT_LIMIT" }),
    ("log", Part { module: "nft_log", option: "NFT_LOG" }),
    ("masq", Part { module: "nft_masq", option: "NFT_MASQ" }),
    ("redir", Part { module: "nft_redir", option: "NFT_REDIR" }),
    ("reject", Part { module: "nft_reject_inet", option: "NFT_REJECT" }),
    ("counter", Part { module: "nft_counter", option: "NFT_COUNTER" }),
];

/// The missing kernel features, probed in the namespace of the calling thread. Empty: the kernel has them all, or
/// refuses the table for another reason.
pub(crate) fn missing() -> Result<Vec<Part>, Error> {
    let mut socket = Socket::open()?;
    missing_by(|parts| does(&mut socket, parts))
}

/// The messages of a trial table.
type Parts = Vec<(Verb, u16, Attrs)>;

fn does(socket: &mut Socket, parts: &Parts) -> bool {
    let mut batch = Batch::default();
    batch.push(Verb::NewTable, CREATE, Attrs::new().text(table::NAME, ruleset::TABLE));
    parts.iter().for_each(|(verb, flags, attrs)| batch.push(*verb, *flags, attrs.clone()));
    batch.push(Verb::DeleteTable, 0, Attrs::new().text(table::NAME, ruleset::TABLE));
    socket.commit("try", "a table", &batch).is_ok()
}

fn missing_by(mut does: impl FnMut(&Parts) -> bool) -> Result<Vec<Part>, Error> {
    if !does(&Parts::new()) {
        return Ok(vec![NFTABLES]);
    }
    let mut missing = BTreeSet::new();
    let mut good = Parts::new();
    for of in ALL {
        let part = (Verb::NewSet, CREATE, of.attrs(ruleset::TABLE));
        if does(&vec![part.clone()]) { good.push(part) } else { missing.extend(part_of_set(of)) }
    }
    for (hook, attrs) in ruleset::chains() {
        let part = (Verb::NewChain, CREATE, attrs);
        if does(&vec![part.clone()]) {
            good.push(part);
        } else {
            missing.extend(hook.map(|kind| if kind == "nat" { NAT_CHAINS } else { NFTABLES }));
        }
    }
    // An expression of a working rule is not the cause of another rule's failure.
    let (mut works, mut fails) = (BTreeSet::new(), BTreeSet::new());
    for rule in ruleset::all(ProxyPorts::default(), Some(1)) {
        let one = [(Verb::NewRule, CREATE | APPEND, ruleset::attrs(&rule))];
        let is_done = does(&good.iter().chain(&one).cloned().collect());
        if is_done { &mut works } else { &mut fails }.extend(names(&rule));
    }
    let is_missing = |name: &str| fails.contains(name) && !works.contains(name);
    missing.extend(EXPRESSIONS.into_iter().filter(|(name, _)| is_missing(name)).map(|(_, part)| part));
    Ok(missing.into_iter().collect())
}

/// The feature that a set needs beside `nf_tables`.
fn part_of_set(of: Set) -> Option<Part> {
    let name = attribute(of.attrs(ruleset::TABLE).as_bytes(), set::EXPR).and_then(name_of)?;
    EXPRESSIONS.into_iter().find(|(known, _)| *known == name).map(|(_, part)| part)
}

/// The names of a rule's expressions, nested ones included.
fn names(rule: &Rule) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (_, expression) in attributes(rule.expressions.as_bytes()) {
        let Some(name) = name_of(expression) else { continue };
        if name == "dynset" {
            found.extend(attribute(expression, expr::DATA).and_then(|data| name_of(attribute(data, dynset::EXPR)?)));
        }
        found.insert(name);
    }
    found
}

fn name_of(expression: &[u8]) -> Option<String> {
    std::str::from_utf8(attribute(expression, expr::NAME)?.strip_suffix(&[0])?).ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::super::nfta::chain;
    use super::*;

    /// A simulated kernel that lacks some expressions, in sets and in rules, or NAT chains.
    fn kernel(lacks: &[&str], parts: &Parts) -> bool {
        let rules = ruleset::all(ProxyPorts::default(), Some(1)).collect::<Vec<_>>();
        parts.iter().all(|(verb, _, attrs)| match verb {
            Verb::NewSet => attribute(attrs.as_bytes(), set::EXPR)
                .and_then(name_of)
                .is_none_or(|name| !lacks.contains(&name.as_str())),
            Verb::NewChain => {
                let kind = attribute(attrs.as_bytes(), chain::TYPE).unwrap_or_default();
                kind != b"nat\0" || !lacks.contains(&"nat")
            }
            Verb::NewRule => {
                let rule = rules.iter().find(|r| ruleset::attrs(r) == *attrs).expect("a rule");
                let of_chain = Attrs::new().text(chain::NAME, rule.chain);
                let name = attribute(of_chain.as_bytes(), chain::NAME);
                let is_there = |(verb, _, attrs): &(Verb, u16, Attrs)| {
                    *verb == Verb::NewChain && attribute(attrs.as_bytes(), chain::NAME) == name
                };
                parts.iter().any(is_there) && names(rule).iter().all(|name| !lacks.contains(&name.as_str()))
            }
            _ => true,
        })
    }

    #[test]
    fn what_is_missing_is_named_and_nothing_else() {
        let modules = |lacks: &[&str]| -> Vec<&str> {
            let found = missing_by(|parts| kernel(lacks, parts)).expect("found");
            found.into_iter().map(|part| part.module).collect()
        };
        assert!(modules(&[]).is_empty());
        for (name, part) in EXPRESSIONS.into_iter().skip(1) {
            assert_eq!(modules(&[name]), [part.module], "{name}");
        }
        // No rule has one without the other.
        assert_eq!(modules(&["ct"]), ["nft_connlimit", "nft_ct"]);
        // Rules in missing chains cannot be tried.
        assert!(modules(&["nat"]).contains(&"nft_chain_nat"));
        assert_eq!(modules(&["masq", "log"]), ["nft_log", "nft_masq"]);
        assert_eq!(missing_by(|_| false).expect("found"), [NFTABLES]);
    }

    /// A new expression in a rule or set needs an entry here, unless `nf_tables` contains it.
    #[test]
    fn the_parts_of_all_expressions_are_known() {
        const OWN: [&str; 9] =
            ["bitwise", "cmp", "dynset", "exthdr", "immediate", "lookup", "meta", "payload", "byteorder"];
        for name in ruleset::all(ProxyPorts::default(), Some(1)).flat_map(|rule| names(&rule)) {
            let is_known = OWN.contains(&name.as_str()) || EXPRESSIONS.iter().any(|(known, _)| *known == name);
            assert!(is_known, "{name}");
        }
    }
}
