//! A box's network policy in its owner's terms: names and networks.
//!
//! Pure. A client's texts ([`PolicyText`]) are parsed and checked once. Names are compared in lower case without a
//! trailing dot, as the DNS does (RFC 4343).
//!
//! Leaves out: the destinations closed to every box (`firewall`), and enforcement.

use std::fmt;
use std::net::Ipv4Addr;

use super::cidr::Cidr;
use super::firewall::{self, NETWORKS_MAX};
use crate::error::Malformed;

/// Most patterns in one policy.
pub(crate) const DOMAINS_MAX: usize = 1024;
/// Longest name (RFC 1035).
const NAME_BYTES_MAX: usize = 253;
/// Longest label of a name.
const LABEL_BYTES_MAX: usize = 63;

/// A name pattern: one name, or `*.suffix` for everything below the suffix but not itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainPattern {
    suffix: String,
    below: bool,
}

impl DomainPattern {
    /// Parses a pattern.
    ///
    /// # Errors
    /// The mistake, worded for its owner.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (below, name) = match text.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let suffix = normalized(name)
            .ok_or_else(|| format!("'{}' is not a domain name like example.com or *.example.com", shortened(text)))?;
        Ok(Self { suffix, below })
    }

    /// True if it covers a name in its normal form; see [`normalized`].
    #[must_use]
    pub(crate) fn covers(&self, name: &str) -> bool {
        if self.below {
            name.strip_suffix(self.suffix.as_str()).is_some_and(|front| front.len() > 1 && front.ends_with('.'))
        } else {
            name == self.suffix
        }
    }

    /// The greater, the more specific: a name before patterns, a longer suffix before a shorter one.
    #[must_use]
    pub(crate) fn specificity(&self) -> (bool, usize) {
        (!self.below, self.suffix.len())
    }
}

impl fmt::Display for DomainPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.below { "*." } else { "" }, self.suffix)
    }
}

/// A host name in lower case without a trailing dot; none if it is no host name. An address is none.
#[must_use]
pub fn normalized(name: &str) -> Option<String> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_label = |label: &str| {
        let good = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        (1..=LABEL_BYTES_MAX).contains(&label.len()) && label.bytes().all(good)
    };
    let last_is_number = name.rsplit('.').next().is_some_and(|label| label.bytes().all(|b| b.is_ascii_digit()));
    let good = name.len() <= NAME_BYTES_MAX && name.split('.').all(is_label) && !last_is_number;
    good.then(|| name.to_ascii_lowercase())
}

/// A policy as its owner writes it.
#[derive(Debug, Clone, Copy)]
pub struct PolicyText<'a> {
    /// `allow-all`, `deny-all` or `custom`.
    pub mode: &'a str,
    /// Names and patterns that may be reached (`custom`).
    pub allowed_domains: &'a [String],
    /// Networks that may be reached (`custom`).
    pub allowed_cidrs: &'a [String],
    /// Networks that may not be reached (`custom`).
    pub denied_cidrs: &'a [String],
}

/// A checked policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BoxPolicy {
    /// Everything except the destinations closed to every box.
    AllowAll,
    /// Nothing.
    DenyAll,
    /// The listed names and networks.
    Custom {
        /// Names that are allowed.
        domains: Vec<DomainPattern>,
        /// Networks that are allowed.
        allowed: Vec<Cidr>,
        /// Networks that are denied, even if allowed or resolved from an allowed name.
        denied: Vec<Cidr>,
    },
}

impl BoxPolicy {
    /// Parses and checks a policy.
    ///
    /// # Errors
    /// The wrong field, and the expected value.
    pub fn check(text: PolicyText<'_>) -> Result<Self, Malformed> {
        let lists = [text.allowed_domains, text.allowed_cidrs, text.denied_cidrs];
        let lists_are_empty = lists.iter().all(|list| list.is_empty());
        match text.mode {
            // A list without effect is the owner's mistake.
            "allow-all" | "deny-all" if !lists_are_empty => Err(Malformed(format!(
                "mode: allowed_domains, allowed_cidrs and denied_cidrs go with mode custom, not {}",
                text.mode
            ))),
            "allow-all" => Ok(Self::AllowAll),
            "deny-all" => Ok(Self::DenyAll),
            "custom" => Self::custom(text),
            _ => Err(Malformed("mode must be allow-all, deny-all or custom".into())),
        }
    }

    fn custom(text: PolicyText<'_>) -> Result<Self, Malformed> {
        if text.allowed_domains.len() > DOMAINS_MAX {
            return Err(Malformed(format!("allowed_domains has more than {DOMAINS_MAX} entries")));
        }
        let wrong = |why| Malformed(format!("allowed_domains: {why}"));
        let domains = text
            .allowed_domains
            .iter()
            .map(|text| DomainPattern::parse(text).map_err(wrong))
            .collect::<Result<_, _>>()?;
        Ok(Self::Custom {
            domains,
            allowed: networks("allowed_cidrs", text.allowed_cidrs)?,
            denied: networks("denied_cidrs", text.denied_cidrs)?,
        })
    }

    /// The firewall's part of the policy.
    #[must_use]
    pub fn of_firewall(&self) -> firewall::Policy {
        match self {
            Self::AllowAll => firewall::Policy::AllowAll,
            Self::DenyAll => firewall::Policy::DenyAll,
            Self::Custom { allowed, denied, .. } => {
                firewall::Policy::Custom { allowed: allowed.clone(), denied: denied.clone() }
            }
        }
    }

    /// True if a name in its normal form may be resolved and reached.
    #[must_use]
    pub fn allows_name(&self, name: &str) -> bool {
        match self {
            Self::AllowAll => true,
            Self::DenyAll => false,
            Self::Custom { domains, .. } => domains.iter().any(|pattern| pattern.covers(name)),
        }
    }

    /// True if an address is allowed by itself, without a name. Destinations closed to every box are not considered.
    #[must_use]
    pub(crate) fn allows_address(&self, address: Ipv4Addr) -> bool {
        match self {
            Self::AllowAll => true,
            Self::DenyAll => false,
            Self::Custom { allowed, .. } => !self.denies(address) && allowed.iter().any(|net| net.contains(address)),
        }
    }

    /// True if some address may be allowed by itself.
    #[must_use]
    pub(crate) fn may_allow_addresses(&self) -> bool {
        match self {
            Self::AllowAll => true,
            Self::DenyAll => false,
            Self::Custom { allowed, .. } => !allowed.is_empty(),
        }
    }

    /// True if an address is denied even though its name may be allowed.
    #[must_use]
    pub(crate) fn denies(&self, address: Ipv4Addr) -> bool {
        match self {
            Self::AllowAll => false,
            Self::DenyAll => true,
            Self::Custom { denied, .. } => denied.iter().any(|net| net.contains(address)),
        }
    }
}

fn networks(key: &str, list: &[String]) -> Result<Vec<Cidr>, Malformed> {
    if list.len() > NETWORKS_MAX {
        return Err(Malformed(format!("{key} has more than {NETWORKS_MAX} entries")));
    }
    let wrong = |text: &str, why: &str| Malformed(format!("{key}: '{}' {why}", shortened(text)));
    let read = |text: &String| {
        // Boxes have no IPv6. An IPv6 network is accepted and has no effect, as it is unreachable anyway.
        if text.contains(':') {
            let address = text.split_once('/').map_or(text.as_str(), |(address, _)| address);
            return match address.parse::<std::net::Ipv6Addr>() {
                Ok(_) => Ok(None),
                Err(_) => Err(wrong(text, "is not a network like 192.0.2.0/24")),
            };
        }
        text.parse::<Cidr>().map(Some).map_err(|_| wrong(text, "is not a network like 192.0.2.0/24"))
    };
    list.iter().filter_map(|text| read(text).transpose()).collect()
}

fn shortened(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(mode: &str, domains: &[&str], allowed: &[&str], denied: &[&str]) -> Result<BoxPolicy, Malformed> {
        let owned = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        let (domains, allowed, denied) = (owned(domains), owned(allowed), owned(denied));
        BoxPolicy::check(PolicyText { mode, allowed_domains: &domains, allowed_cidrs: &allowed, denied_cidrs: &denied })
    }

    #[test]
    fn patterns_cover_what_they_say() {
        let covers = |pattern: &str, name: &str| DomainPattern::parse(pattern).expect(pattern).covers(name);
        assert!(covers("Example.COM", "example.com") && covers("example.com.", "example.com"));
        assert!(covers("*.example.com", "a.example.com") && covers("*.example.com", "a.b.example.com"));
        for (pattern, name) in [
            ("example.com", "a.example.com"),
            ("*.example.com", "example.com"),
            ("*.example.com", ".example.com"),
            ("*.example.com", "aexample.com"),
            ("example.com", "example.com.evil.net"),
        ] {
            assert!(!covers(pattern, name), "{pattern} {name}");
        }
        let bad = ["", "*", "*.", "a..b", "http://a.b", "a.b:80", "1.2.3.4", "a b.c", "*.*.a", "a.*.b", "ä.de", "."];
        for text in bad {
            assert!(DomainPattern::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_closest_pattern_is_told() {
        let of = |text: &str| DomainPattern::parse(text).expect(text).specificity();
        assert!(of("a.example.com") > of("*.example.com") && of("*.b.example.com") > of("*.example.com"));
    }

    #[test]
    fn policies_are_checked() {
        let custom = check("custom", &["*.a.b"], &["192.0.2.0/24", "2001:db8::/32"], &["192.0.2.7"]);
        let custom = custom.expect("a policy");
        assert!(custom.allows_name("x.a.b") && !custom.allows_name("a.b"));
        assert!(custom.allows_address([192, 0, 2, 1].into()) && !custom.allows_address([192, 0, 2, 7].into()));
        for bad in [
            check("none", &[], &[], &[]),
            check("allow-all", &["a.b"], &[], &[]),
            check("deny-all", &[], &[], &["192.0.2.0/24"]),
            check("custom", &["a b"], &[], &[]),
            check("custom", &[], &["192.0.2.1/24"], &[]),
            check("custom", &[], &["x/24"], &[]),
            check("custom", &[], &["a:b:c/24"], &[]),
        ] {
            assert!(bad.is_err(), "{bad:?}");
        }
        assert_eq!(
            check("custom", &[], &[], &[]).expect("nothing is allowed"),
            BoxPolicy::Custom { domains: vec![], allowed: vec![], denied: vec![] }
        );
    }
}
