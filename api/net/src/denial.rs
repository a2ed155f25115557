//! The latest refusals of a box, kept for the API and the CLI.
//!
//! Owns: the bounded list of one box. A repeated refusal is counted, not listed again.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::sync::{Mutex, PoisonError};

/// Average interval between log lines: a box that tries names one after the other must not fill the disk.
const LINE_EVERY_MS: i64 = 5000;
/// Burst of log lines.
const LINES_BURST: i64 = 20;
/// Distinct refusals kept per box.
pub(crate) const DENIALS_MAX: usize = 100;

/// A refused packet, connection or question of a box.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// The rule that refused, e.g. `deny-all`, `blocked network`, `denied_cidrs`, `not in allowed_domains`.
    pub rule: String,
    /// `tcp`, `udp`, `icmp`, `dns`, `tls`, `http`, or a protocol number.
    pub protocol: String,
    /// The destination address.
    pub address: Option<Ipv4Addr>,
    /// The destination port.
    pub port: Option<u16>,
    /// The requested name.
    pub name: Option<String>,
}

/// The name of a protocol, or its number.
#[must_use]
pub fn protocol_name(number: u8) -> String {
    match i32::from(number) {
        libc::IPPROTO_ICMP => "icmp".to_owned(),
        libc::IPPROTO_TCP => "tcp".to_owned(),
        libc::IPPROTO_UDP => "udp".to_owned(),
        number => number.to_string(),
    }
}

impl std::fmt::Display for Denial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.protocol)?;
        if let Some(name) = &self.name {
            write!(f, " {name}")?;
        }
        if let Some(address) = self.address {
            write!(f, " {address}")?;
        }
        if let Some(port) = self.port {
            write!(f, " port {port}")?;
        }
        write!(f, " ({})", self.rule)
    }
}

/// A refusal with count and times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied {
    /// The refusal.
    pub what: Denial,
    /// Number of times.
    pub count: u64,
    /// Unix milliseconds of the first time.
    pub first_ms: i64,
    /// Unix milliseconds of the last time.
    pub last_ms: i64,
}

/// The latest refusals of one box, the newest last.
#[derive(Debug, Default)]
pub struct Denials {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    list: VecDeque<Denied>,
    /// All refusals so far, including those no longer listed.
    total: u64,
    /// Unix milliseconds up to which the log budget is spent.
    spent_ms: i64,
}

impl Denials {
    /// Records a refusal. Returns true if it deserves a log line: it is not listed yet, and the line rate allows it.
    pub fn record(&self, what: Denial, now_ms: i64) -> bool {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.total += 1;
        let list = &mut inner.list;
        if let Some(at) = list.iter().position(|denied| denied.what == what)
            && let Some(mut denied) = list.remove(at)
        {
            denied.count += 1;
            denied.last_ms = now_ms;
            list.push_back(denied);
            return false;
        }
        if list.len() >= DENIALS_MAX {
            list.pop_front();
        }
        list.push_back(Denied { what, count: 1, first_ms: now_ms, last_ms: now_ms });
        let spent = inner.spent_ms.max(now_ms - LINES_BURST * LINE_EVERY_MS);
        let may = spent + LINE_EVERY_MS <= now_ms;
        inner.spent_ms = if may { spent + LINE_EVERY_MS } else { spent };
        may
    }

    /// Number of refusals so far.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).total
    }

    /// The list, the newest first.
    #[must_use]
    pub fn latest(&self) -> Vec<Denied> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).list.iter().rev().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denial(port: u16) -> Denial {
        let address = Some(Ipv4Addr::new(192, 0, 2, 1));
        Denial { rule: "deny-all".into(), protocol: "tcp".into(), address, port: Some(port), name: None }
    }

    #[test]
    fn the_same_again_is_counted_and_the_list_is_bounded() {
        let denials = Denials::default();
        let now = 1_000_000;
        let lines = (1000..1100).filter(|port| denials.record(denial(*port), now)).count();
        assert_eq!((lines, denials.total()), (20, 100), "a burst, and no more");
        assert!(denials.record(denial(1100), now + LINE_EVERY_MS), "time has passed");
        let denials = Denials::default();
        assert!(denials.record(denial(1), now + 10) && denials.record(denial(2), now + 20));
        assert!(!denials.record(denial(1), now + 30), "known");
        let latest = denials.latest();
        assert_eq!((latest.len(), latest[0].count, latest[0].first_ms, latest[0].last_ms), (2, 2, now + 10, now + 30));
        assert_eq!(latest[0].what, denial(1));
        (0..500).for_each(|port| {
            denials.record(denial(port), now + 40);
        });
        assert_eq!(denials.latest().len(), DENIALS_MAX);
    }
}
