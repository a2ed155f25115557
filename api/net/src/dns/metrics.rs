//! The counters of the DNS proxy.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// The proxy's counters since its start.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct DnsCounters {
            $($(#[$doc])* pub $name: u64,)*
        }

        #[derive(Debug, Default)]
        pub(super) struct Metrics {
            $(pub(super) $name: AtomicU64,)*
        }

        impl Metrics {
            pub(super) fn read(&self) -> DnsCounters {
                DnsCounters { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Questions accepted.
    questions,
    /// Questions refused by policy, and answers that contained only closed networks.
    refused,
    /// Messages that are not questions.
    malformed,
    /// Questions dropped because a box exceeded its limits.
    dropped,
    /// Messages from addresses that are no box's.
    strangers,
    /// Questions asked upstream, retries not counted.
    upstream_questions,
    /// Failed tries: no answer in time, or an invalid one.
    upstream_failures,
    /// Questions answered from the cache.
    cache_hits,
    /// Answers withheld because the firewall did not pin their addresses.
    pin_failures,
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
