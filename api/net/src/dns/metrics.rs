//! The counters of the DNS proxy.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// What the proxy has done since it began.
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
    /// Questions taken.
    questions,
    /// Questions refused by a policy, and answers that had nothing but closed networks.
    refused,
    /// Messages that are no questions.
    malformed,
    /// Questions not taken, since a box asked too much.
    dropped,
    /// Messages of nobody we know.
    strangers,
    /// Questions asked upstream, tries not counted.
    upstream_questions,
    /// Tries that failed: no answer in time, or no sense in it.
    upstream_failures,
    /// Questions answered from memory.
    cache_hits,
    /// Answers that could not be given, since the firewall did not pin them.
    pin_failures,
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
