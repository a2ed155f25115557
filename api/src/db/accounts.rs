//! Accounts and their keys (hashed).

use rusqlite::{Connection, OptionalExtension, params};
use sha2::{Digest, Sha256};

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
}
