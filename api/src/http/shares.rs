//! Shares: the part of a common resource that one account may take.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The last 1/`RESERVE_PART` of a total is reserved for accounts that have little.
const RESERVE_PART: u32 = 8;
/// An account with less than 1/`LITTLE_PART` of a total has little.
const LITTLE_PART: u32 = 64;

/// True if an account that has `mine` may take another one, where `all` of `most` are taken and `share` is the most for
/// one.
pub(super) fn allows(all: u32, mine: u32, most: u32, share: u32) -> bool {
    let has_little = mine < (most / LITTLE_PART).max(1);
    mine < share && all < most && (has_little || all < most - most / RESERVE_PART)
}

/// Requests in progress, by account. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Shares {
    requests_max: u32,
    per_account_max: u32,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    all: u32,
    of: HashMap<String, u32>,
}

/// A request in progress. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Share {
    shares: Shares,
    account: String,
}

/// Reason for refusing a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// The account has used its share.
    Account,
    /// The server is busy.
    Server,
}

impl Shares {
    pub(super) fn new(requests_max: u32, per_account_max: u32) -> Self {
        Self { requests_max, per_account_max, taken: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a request of this account. Requests without a valid key count for the account ``.
    pub(super) fn take(&self, account: &str) -> Result<Share, Full> {
        let mut taken = self.lock();
        let mine = taken.of.get(account).copied().unwrap_or(0);
        if mine >= self.per_account_max {
            return Err(Full::Account);
        }
        if !allows(taken.all, mine, self.requests_max, self.per_account_max) {
            return Err(Full::Server);
        }
        taken.all += 1;
        *taken.of.entry(account.to_owned()).or_default() += 1;
        Ok(Share { shares: self.clone(), account: account.to_owned() })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.shares.lock();
        taken.all = taken.all.saturating_sub(1);
        if let Some(mine) = taken.of.get_mut(&self.account) {
            *mine -= 1;
            if *mine == 0 {
                taken.of.remove(&self.account);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_part_is_for_accounts_that_have_little() {
        let shares = Shares::new(64, 40);
        let first: Vec<Share> = (0..40).map(|_| shares.take("a").expect("within the share")).collect();
        assert_eq!(shares.take("a").expect_err("its share"), Full::Account);
        let second: Vec<Share> = std::iter::from_fn(|| shares.take("b").ok()).collect();
        assert_eq!(second.len(), 16, "up to the reserve");
        assert_eq!(shares.take("b").expect_err("the reserve"), Full::Server);
        let third = shares.take("c").expect("the reserve is for this");
        drop((first, second, third));
        assert!(shares.lock().of.is_empty() && shares.lock().all == 0);
    }
}
