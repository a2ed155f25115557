//! What accounts give to their new boxes: environment and headers.
//!
//! Each creation asks for them, so they are kept in memory (`defaults_cache`).

use std::collections::BTreeMap;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, params};

use super::boxes::HEADERS;
use super::defaults_cache::AccountDefaults;
use super::{Db, from_sql};
use crate::error::Error;

fn read(connection: &Connection, account: &str) -> rusqlite::Result<AccountDefaults> {
    let mut query = connection.prepare_cached("SELECT name, value FROM account_env WHERE account_id = ?1")?;
    let env = query.query_map([account], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
    let sealed_headers = connection
        .prepare_cached("SELECT sealed FROM account_secrets WHERE account_id = ?1 AND kind = ?2")?
        .query_row(params![account, HEADERS], |row| row.get(0))
        .optional()?;
    Ok(AccountDefaults { env, sealed_headers })
}

impl Db {
    /// What an account gives to its new boxes.
    pub async fn account_defaults(&self, account: &str) -> Result<Arc<AccountDefaults>, Error> {
        let changes = match self.defaults.get(account) {
            Ok(known) => return Ok(known),
            Err(changes) => changes,
        };
        let of = account.to_owned();
        let defaults =
            self.read("read what an account gives to boxes", move |connection| read(connection, &of)).await?;
        let defaults = Arc::new(defaults);
        self.defaults.keep(account, &defaults, changes);
        Ok(defaults)
    }

    async fn change_defaults<T: Send + 'static>(
        &self,
        operation: &'static str,
        account: &str,
        change: impl FnOnce(&Connection, &str) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let stale = self.defaults.stale(account);
        // It is a part of the outcome, which is dropped after the commit: here, or by the writer if the caller has gone.
        let done = self.write(operation, move |connection| Ok((change(connection, stale.account())?, stale))).await;
        done.map(|(done, _)| done)
    }

    /// Sets the headers that an account gives to its new boxes, sealed; none removes them.
    pub async fn set_account_headers(&self, account: &str, sealed: Option<Vec<u8>>) -> Result<(), Error> {
        self.change_defaults("set the headers of an account", account, move |connection, account| {
            match sealed {
                Some(sealed) => connection.execute(
                    "INSERT OR REPLACE INTO account_secrets (account_id, kind, sealed) VALUES (?1, ?2, ?3)",
                    params![account, HEADERS, sealed],
                ),
                None => connection.execute(
                    "DELETE FROM account_secrets WHERE account_id = ?1 AND kind = ?2",
                    params![account, HEADERS],
                ),
            }
            .map(|_| ())
        })
        .await
    }

    /// Replaces the whole environment of an account.
    pub async fn replace_account_env(&self, account: &str, env: BTreeMap<String, String>) -> Result<(), Error> {
        self.change_defaults("replace the account's environment", account, move |connection, account| {
            connection.execute("DELETE FROM account_env WHERE account_id = ?1", [account])?;
            let mut insert = connection.prepare_cached("INSERT INTO account_env VALUES (?1, ?2, ?3)")?;
            env.iter().try_for_each(|(name, value)| insert.execute([account, name, value]).map(|_| ()))
        })
        .await
    }

    /// Sets one variable unless the account has `limit` others already. Returns true if it did.
    pub async fn set_account_env(&self, account: &str, name: &str, value: &str, limit: usize) -> Result<bool, Error> {
        let (name, value) = (name.to_owned(), value.to_owned());
        self.change_defaults("set a variable of the account", account, move |connection, account| {
            let others: i64 = connection.query_row(
                "SELECT count(*) FROM account_env WHERE account_id = ?1 AND name <> ?2",
                [account, &name],
                |row| row.get(0),
            )?;
            if from_sql(others) >= limit as u64 {
                return Ok(false);
            }
            let sql = "INSERT INTO account_env VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET value = excluded.value";
            connection.execute(sql, [account, &name, &value]).map(|_| true)
        })
        .await
    }

    /// Removes one variable. Returns true if it existed.
    pub async fn remove_account_env(&self, account: &str, name: &str) -> Result<bool, Error> {
        let name = name.to_owned();
        self.change_defaults("remove a variable of the account", account, move |connection, account| {
            let sql = "DELETE FROM account_env WHERE account_id = ?1 AND name = ?2";
            connection.execute(sql, [account, &name]).map(|removed| removed > 0)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::ensure_first_account;

    async fn database(dir: &std::path::Path) -> (Db, String) {
        let db = Db::open(dir).expect("a database");
        let connection = Db::connect(dir).expect("a second connection");
        ensure_first_account(&connection, None).expect("an account");
        let account = db.account_id("default").await.expect("a look-up").expect("an account");
        (db, account)
    }

    async fn env(db: &Db, account: &str) -> BTreeMap<String, String> {
        db.account_defaults(account).await.expect("read").env.clone()
    }

    #[tokio::test]
    async fn account_env_is_replaced_changed_and_limited() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (db, account) = database(dir.path()).await;
        assert_eq!(env(&db, &account).await, BTreeMap::new());
        let two = BTreeMap::from([("A".to_owned(), "1".to_owned()), ("B".to_owned(), "2".to_owned())]);
        db.replace_account_env(&account, two.clone()).await.expect("replaced");
        assert_eq!(env(&db, &account).await, two);
        assert!(db.set_account_env(&account, "A", "3", 2).await.expect("changed"));
        assert!(!db.set_account_env(&account, "C", "3", 2).await.expect("too many"));
        assert!(db.remove_account_env(&account, "B").await.expect("removed"));
        assert_eq!(env(&db, &account).await, BTreeMap::from([("A".to_owned(), "3".to_owned())]));
    }

    #[tokio::test]
    async fn headers_are_those_of_the_last_change() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (db, account) = database(dir.path()).await;
        for sealed in [None, Some(vec![1]), Some(vec![2]), None] {
            db.set_account_headers(&account, sealed.clone()).await.expect("set");
            for _ in 0..2 {
                assert_eq!(db.account_defaults(&account).await.expect("read").sealed_headers, sealed);
            }
        }
    }

    #[tokio::test]
    async fn a_change_whose_caller_has_gone_is_seen() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (db, account) = database(dir.path()).await;
        assert_eq!(env(&db, &account).await, BTreeMap::new());
        let one = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
        let mut change = Box::pin(db.replace_account_env(&account, one.clone()));
        assert!(futures::poll!(&mut change).is_pending(), "it is queued");
        drop(change);
        // The writer has done all that was queued before this.
        db.write("settle", |_| Ok(())).await.expect("settled");
        assert_eq!(env(&db, &account).await, one);
    }
}
