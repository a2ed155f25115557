//! What accounts give to their new boxes, in memory.
//!
//! Invariant: a change is forgotten here after its commit, also if its caller has gone, and a reading that began before the
//! commit is not kept.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Accounts of which they are kept.
const ACCOUNTS_MAX: usize = 256;

/// What an account gives to its new boxes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AccountDefaults {
    /// The environment.
    pub env: BTreeMap<String, String>,
    /// The headers, sealed.
    pub sealed_headers: Option<Vec<u8>>,
}

/// Those that were read.
#[derive(Debug, Clone, Default)]
pub(super) struct Cache(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    of_account: HashMap<String, Arc<AccountDefaults>>,
    /// Number of changes.
    changes: u64,
}

/// Forgets an account when it is dropped.
#[derive(Debug)]
pub(super) struct Stale {
    cache: Cache,
    account: String,
}

impl Cache {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those of an account. An error is the number of changes before the reading that has to follow.
    pub(super) fn get(&self, account: &str) -> Result<Arc<AccountDefaults>, u64> {
        let known = self.lock();
        known.of_account.get(account).map(Arc::clone).ok_or(known.changes)
    }

    /// Keeps what was read after so many changes, if it is still true.
    pub(super) fn keep(&self, account: &str, defaults: &Arc<AccountDefaults>, changes: u64) {
        let mut known = self.lock();
        if known.changes != changes {
            return;
        }
        if known.of_account.len() >= ACCOUNTS_MAX {
            known.of_account.clear();
        }
        known.of_account.insert(account.to_owned(), Arc::clone(defaults));
    }

    /// For a change of an account.
    pub(super) fn stale(&self, account: &str) -> Stale {
        Stale { cache: self.clone(), account: account.to_owned() }
    }
}

impl Stale {
    pub(super) fn account(&self) -> &str {
        &self.account
    }
}

impl Drop for Stale {
    fn drop(&mut self) {
        let mut known = self.cache.lock();
        known.changes += 1;
        known.of_account.remove(&self.account);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_before_a_change_is_not_kept() {
        let cache = Cache::default();
        let defaults = Arc::new(AccountDefaults::default());
        let before = cache.get("a").expect_err("nothing is known");
        drop(cache.stale("a"));
        cache.keep("a", &defaults, before);
        let now = cache.get("a").expect_err("it was read before the change");
        cache.keep("a", &defaults, now);
        assert!(cache.get("a").is_ok());
        drop(cache.stale("a"));
        assert!(cache.get("a").is_err());
    }
}
