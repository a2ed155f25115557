//! Accounts, their keys (hashed) and their environment.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, params};
use sha2::{Digest, Sha256};

use super::boxes::HEADERS;
use super::{Db, from_sql, to_sql};
use crate::clock;
use crate::error::{Cause, Error};
use crate::ids;

/// Bytes of randomness in a key.
const KEY_RANDOM_BYTES: usize = 24;
/// Longest key that is accepted.
const KEY_BYTES_MAX: usize = 256;

/// An account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Internal id.
    pub id: String,
    /// Name.
    pub name: String,
    /// SHA-256 of its key; the key itself is not stored.
    pub key_sha256: [u8; 32],
    /// Idle time of its boxes, if it has one of its own.
    pub idle_seconds: Option<u64>,
}

/// A new key: shown once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewKey(pub String);

impl NewKey {
    /// A random key.
    #[must_use]
    pub fn generate() -> Self {
        use rand::RngCore;
        let mut random = [0_u8; KEY_RANDOM_BYTES];
        rand::rng().fill_bytes(&mut random);
        Self(random.iter().fold(String::from("box_"), |text, byte| text + &format!("{byte:02x}")))
    }
}

/// SHA-256 of a key, the only form in which keys are kept and compared.
#[must_use]
pub fn hash_key(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}

/// Adds an account with this key.
pub fn create_account(connection: &Connection, name: &str, key: &NewKey) -> Result<(), Error> {
    let failed = |cause: Cause| Error::new("add the account", name, cause);
    if ids::check_name(name).is_err() {
        return Err(failed(Cause::Invalid("a name has 1 to 63 letters, digits, '-', '_' or '.'")));
    }
    if key.0.is_empty() || key.0.len() > KEY_BYTES_MAX || key.0.bytes().any(|byte| !byte.is_ascii_graphic()) {
        return Err(failed(Cause::Invalid("a key has 1 to 256 printable ASCII characters")));
    }
    connection
        .execute(
            "INSERT INTO accounts (id, name, key_sha256, created_ms) VALUES (?1, ?2, ?3, ?4)",
            params![uuid::Uuid::new_v4().to_string(), name, hash_key(key.0.as_bytes()), clock::unix_ms()],
        )
        .map(|_| ())
        .map_err(|cause| failed(cause.into()))
}

/// Makes the first account if there is none: with the key `wanted`, or else a new one. Returns the key if it made the
/// account.
pub fn ensure_first_account(connection: &Connection, wanted: Option<String>) -> Result<Option<NewKey>, Error> {
    let accounts: i64 = connection
        .query_row("SELECT count(*) FROM accounts", [], |row| row.get(0))
        .map_err(|cause| Error::new("count the accounts", "", cause))?;
    if accounts > 0 {
        return Ok(None);
    }
    let key = wanted.filter(|key| !key.is_empty()).map_or_else(NewKey::generate, NewKey);
    create_account(connection, "default", &key)?;
    Ok(Some(key))
}

impl Db {
    /// All accounts.
    pub async fn accounts(&self) -> Result<Vec<Account>, Error> {
        self.read("read the accounts", |connection| {
            let mut query = connection.prepare_cached("SELECT id, name, key_sha256, idle_seconds FROM accounts")?;
            let rows = query.query_map([], |row| {
                Ok(Account {
                    id: row.get(0)?,
                    name: row.get(1)?,
                    key_sha256: row.get(2)?,
                    idle_seconds: row.get::<_, Option<i64>>(3)?.map(from_sql),
                })
            })?;
            rows.collect()
        })
        .await
    }

    /// Sets the idle time of an account.
    pub async fn set_account_idle(&self, account: &str, idle_seconds: Option<u64>) -> Result<(), Error> {
        let account = account.to_owned();
        self.write("set the idle time of an account", move |connection| {
            connection
                .execute(
                    "UPDATE accounts SET idle_seconds = ?2 WHERE id = ?1",
                    params![account, idle_seconds.map(to_sql)],
                )
                .map(|_| ())
        })
        .await
    }

    /// Sets the headers that an account gives to its new boxes, sealed; none removes them.
    pub async fn set_account_headers(&self, account: &str, sealed: Option<Vec<u8>>) -> Result<(), Error> {
        let account = account.to_owned();
        self.write("set the headers of an account", move |connection| {
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

    /// The sealed headers of an account.
    pub async fn account_headers(&self, account: &str) -> Result<Option<Vec<u8>>, Error> {
        let account = account.to_owned();
        self.read("read the headers of an account", move |connection| {
            connection
                .prepare_cached("SELECT sealed FROM account_secrets WHERE account_id = ?1 AND kind = ?2")?
                .query_row(params![account, HEADERS], |row| row.get(0))
                .optional()
        })
        .await
    }

    /// The environment that an account gives to its boxes.
    pub async fn account_env(&self, account: &str) -> Result<BTreeMap<String, String>, Error> {
        let account = account.to_owned();
        self.read("read the account's environment", move |connection| {
            let mut query = connection.prepare_cached("SELECT name, value FROM account_env WHERE account_id = ?1")?;
            let rows = query.query_map([account], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect()
        })
        .await
    }

    /// Replaces the whole environment of an account.
    pub async fn replace_account_env(&self, account: &str, env: BTreeMap<String, String>) -> Result<(), Error> {
        let account = account.to_owned();
        self.write("replace the account's environment", move |connection| {
            connection.execute("DELETE FROM account_env WHERE account_id = ?1", [&account])?;
            let mut insert = connection.prepare_cached("INSERT INTO account_env VALUES (?1, ?2, ?3)")?;
            env.iter().try_for_each(|(name, value)| insert.execute([&account, name, value]).map(|_| ()))
        })
        .await
    }

    /// Sets one variable unless the account has `limit` others already. Returns true if it did.
    pub async fn set_account_env(&self, account: &str, name: &str, value: &str, limit: usize) -> Result<bool, Error> {
        let (account, name, value) = (account.to_owned(), name.to_owned(), value.to_owned());
        self.write("set a variable of the account", move |connection| {
            let others: i64 = connection.query_row(
                "SELECT count(*) FROM account_env WHERE account_id = ?1 AND name <> ?2",
                [&account, &name],
                |row| row.get(0),
            )?;
            if from_sql(others) >= limit as u64 {
                return Ok(false);
            }
            let sql = "INSERT INTO account_env VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET value = excluded.value";
            connection.execute(sql, [&account, &name, &value]).map(|_| true)
        })
        .await
    }

    /// Removes one variable. Returns true if it existed.
    pub async fn remove_account_env(&self, account: &str, name: &str) -> Result<bool, Error> {
        let (account, name) = (account.to_owned(), name.to_owned());
        self.write("remove a variable of the account", move |connection| {
            let sql = "DELETE FROM account_env WHERE account_id = ?1 AND name = ?2";
            connection.execute(sql, [account, name]).map(|removed| removed > 0)
        })
        .await
    }

    /// The id of an account by name, for tests and the command line.
    pub async fn account_id(&self, name: &str) -> Result<Option<String>, Error> {
        let name = name.to_owned();
        self.read("look an account up", move |connection| {
            connection.query_row("SELECT id FROM accounts WHERE name = ?1", [name], |row| row.get(0)).optional()
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keys_are_kept_hashed_and_the_first_account_is_made_once() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let db = Db::open(dir.path()).expect("a database");
        let connection = Db::connect(dir.path()).expect("a second connection");
        let key = ensure_first_account(&connection, Some("box_first_key".into())).expect("made").expect("new");
        assert_eq!(key.0, "box_first_key");
        assert_eq!(ensure_first_account(&connection, Some("other".into())).expect("no change"), None);
        let accounts = db.accounts().await.expect("accounts");
        assert_eq!(accounts.len(), 1);
        assert_eq!(accounts[0].key_sha256, hash_key(b"box_first_key"));
        db.close().await;
        for entry in std::fs::read_dir(dir.path()).expect("list").flatten() {
            let bytes = std::fs::read(entry.path()).expect("read");
            assert!(!bytes.windows(13).any(|part| part == b"box_first_key"), "{:?} holds the key", entry.path());
        }
    }

    #[test]
    fn generated_keys_differ_and_have_the_usual_form() {
        let (one, two) = (NewKey::generate(), NewKey::generate());
        assert_ne!(one, two);
        assert!(one.0.starts_with("box_") && one.0.len() == 4 + 2 * KEY_RANDOM_BYTES);
    }

    #[tokio::test]
    async fn account_env_is_replaced_changed_and_limited() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let db = Db::open(dir.path()).expect("a database");
        let connection = Db::connect(dir.path()).expect("a second connection");
        ensure_first_account(&connection, None).expect("an account");
        let account = db.account_id("default").await.expect("a look-up").expect("an account");
        let env = BTreeMap::from([("A".to_owned(), "1".to_owned()), ("B".to_owned(), "2".to_owned())]);
        db.replace_account_env(&account, env).await.expect("replaced");
        assert!(db.set_account_env(&account, "A", "3", 2).await.expect("changed"));
        assert!(!db.set_account_env(&account, "C", "3", 2).await.expect("too many"));
        assert!(db.remove_account_env(&account, "B").await.expect("removed"));
        assert!(!db.remove_account_env(&account, "B").await.expect("not there"));
        let now = db.account_env(&account).await.expect("read");
        assert_eq!(now, BTreeMap::from([("A".to_owned(), "3".to_owned())]));
    }
}
