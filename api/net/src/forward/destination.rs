//! Where a request goes: the host and port that it names, and the judgement of them.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::rules::ForwardRules;
use super::uplink::Uplink;
use crate::denial::Denial;
use crate::firewall::closed;
use crate::policy::{BoxPolicy, normalized};

/// Mail is sent there.
const PORT_SMTP: u16 = 25;

/// The host and port that a request names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Destination {
    host: Host,
    pub(super) port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    /// In its normal form.
    Name(String),
    Address(Ipv4Addr),
}

/// Why a request gets no connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoWay {
    /// A rule refuses it.
    Refused(Denial),
    /// The name has no address that can be used; the resolver's words.
    Unresolved(String),
}

impl Destination {
    /// Reads `host:port`; the port may be left out if there is a default. None if it is neither a name nor an IPv4 address.
    pub(super) fn read(authority: &str, default_port: Option<u16>) -> Option<Self> {
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') => (host, port.parse().ok().filter(|port| *port != 0)?),
            _ => (authority, default_port?),
        };
        let host = match host.parse() {
            Ok(address) => Host::Address(address),
            Err(_) => Host::Name(normalized(host)?),
        };
        Some(Self { host, port })
    }

    /// The addresses that the box may connect to.
    pub(super) async fn judge(&self, rules: &ForwardRules, uplink: &dyn Uplink) -> Result<Vec<SocketAddrV4>, NoWay> {
        let refused = |rule: &str, address| NoWay::Refused(self.denial(rule, address));
        if rules.policy == BoxPolicy::DenyAll {
            return Err(refused("deny-all", None));
        }
        if self.port == PORT_SMTP {
            return Err(refused("port 25", None));
        }
        let (found, by_name) = match &self.host {
            Host::Address(address) => (vec![*address], false),
            Host::Name(name) => {
                let by_name = rules.policy.allows_name(name);
                if !by_name && !rules.policy.may_allow_addresses() {
                    return Err(refused("not in allowed_domains", None));
                }
                let found = uplink.resolve(name).await.map_err(|cause| NoWay::Unresolved(cause.to_string()))?;
                (found, by_name)
            }
        };
        let is_private = matches!(&self.host, Host::Name(name) if rules.private_hosts.iter().any(|p| p.covers(name)));
        let rule_of = |address: Ipv4Addr| match address {
            _ if !is_private && closed(rules.pool, address) => Some("closed network"),
            _ if !is_private && uplink.is_own(address) => Some("the host itself"),
            _ if rules.policy.allows_address(address) => None,
            _ if rules.policy.denies(address) => Some("denied_cidrs"),
            _ if !by_name => Some("not allowed (custom)"),
            _ => None,
        };
        let good: Vec<SocketAddrV4> = found
            .iter()
            .filter(|address| rule_of(**address).is_none())
            .map(|address| SocketAddrV4::new(*address, self.port))
            .collect();
        match found.first() {
            _ if !good.is_empty() => Ok(good),
            Some(first) => Err(refused(rule_of(*first).unwrap_or("closed network"), Some(*first))),
            None => Err(NoWay::Unresolved("the name has no IPv4 address".into())),
        }
    }

    /// The record of a refusal.
    pub(super) fn denial(&self, rule: &str, address: Option<Ipv4Addr>) -> Denial {
        let (name, own) = match &self.host {
            Host::Name(name) => (Some(name.clone()), None),
            Host::Address(address) => (None, Some(*address)),
        };
        let (rule, protocol) = (rule.to_owned(), "proxy".to_owned());
        Denial { rule, protocol, address: address.or(own), port: Some(self.port), name }
    }
}

impl std::fmt::Display for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.host {
            Host::Name(name) => write!(f, "{name}:{}", self.port),
            Host::Address(address) => write!(f, "{address}:{}", self.port),
        }
    }
}
