//! Lookup of the account of an API key.
//!
//! Keys are compared as SHA-256 digests, in constant time. The accounts are read from the database, where another
//! process (`iceboxd account add`) may add one at any time, and kept for a few seconds.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use subtle::ConstantTimeEq;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::db::{Account, Db, hash_key};
use crate::error::Error;
use crate::refusal::Refusal;

/// Longest time that a removed key still works.
const KEEP: Duration = Duration::from_secs(10);
/// Shortest interval between database reads because of unknown keys.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Cache of the accounts.
#[derive(Debug)]
pub(super) struct Accounts {
    db: Db,
    known: RwLock<Known>,
    loading: Mutex<()>,
}

#[derive(Debug, Default)]
struct Known {
    accounts: Arc<Vec<Account>>,
    read: Option<Instant>,
}

impl Accounts {
    /// An empty cache.
    pub(super) fn new(db: Db) -> Self {
        Self { db, known: RwLock::default(), loading: Mutex::new(()) }
    }

    pub(super) async fn of_key(&self, key: &[u8]) -> Result<Account, Refusal> {
        let digest = hash_key(key);
        for oldest in [KEEP, LOOK_AGAIN] {
            if oldest == LOOK_AGAIN {
                // The key may be newer than the last read. A refusal before the next one would be wrong, so it waits.
                self.until_older_than(oldest).await;
            }
            let accounts = self.not_older_than(oldest).await?;
            // Every account is compared, so that the time does not depend on the match.
            let mut found = None;
            for account in accounts.iter() {
                if bool::from(account.key_sha256.ct_eq(&digest)) {
                    found = Some(account.clone());
                }
            }
            if let Some(account) = found {
                return Ok(account);
            }
        }
        Err(Refusal::Unauthorized)
    }

    /// Clears the cache, after a change of our own.
    pub(super) fn changed(&self) {
        self.known.write().unwrap_or_else(PoisonError::into_inner).read = None;
    }

    async fn until_older_than(&self, age: Duration) {
        let read = self.known.read().unwrap_or_else(PoisonError::into_inner).read;
        if let Some(read) = read {
            tokio::time::sleep_until(read + age).await;
        }
    }

    async fn not_older_than(&self, age: Duration) -> Result<Arc<Vec<Account>>, Error> {
        if let Some(accounts) = self.fresh(age) {
            return Ok(accounts);
        }
        // One read answers many requests with an unknown key.
        let _loading = self.loading.lock().await;
        if let Some(accounts) = self.fresh(age) {
            return Ok(accounts);
        }
        let accounts = Arc::new(self.db.accounts().await?);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        *known = Known { accounts: Arc::clone(&accounts), read: Some(Instant::now()) };
        Ok(accounts)
    }

    fn fresh(&self, age: Duration) -> Option<Arc<Vec<Account>>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.read.is_some_and(|read| read.elapsed() < age).then(|| Arc::clone(&known.accounts))
    }
}
