//! Public URLs on disk. Their credentials are stored as digests only.

use rusqlite::params;

use super::{Db, to_sql};
use crate::error::Error;

/// A port of a box that is reachable from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicUrlRow {
    /// The box.
    pub box_id: String,
    /// The port.
    pub port: u16,
    /// Unix milliseconds of its creation, or of its replacement.
    pub created_ms: i64,
    /// Digest of the token, if there is one.
    pub token_sha256: Option<[u8; 32]>,
    /// Digest of the password, if there is one.
    pub password_sha256: Option<[u8; 32]>,
}

impl Db {
    /// All of them.
    pub async fn public_urls(&self) -> Result<Vec<PublicUrlRow>, Error> {
        self.read("read the public URLs", |connection| {
            let mut query = connection
                .prepare_cached("SELECT box_id, port, created_ms, token_sha256, password_sha256 FROM public_urls")?;
            let rows = query.query_map([], |row| {
                Ok(PublicUrlRow {
                    box_id: row.get(0)?,
                    port: row.get(1)?,
                    created_ms: row.get(2)?,
                    token_sha256: row.get(3)?,
                    password_sha256: row.get(4)?,
                })
            })?;
            rows.collect()
        })
        .await
    }

    /// Adds one, or replaces the one of the same port with its credentials.
    pub async fn put_public_url(&self, row: PublicUrlRow) -> Result<(), Error> {
        self.write("record a public URL", move |connection| {
            connection
                .execute(
                    "INSERT OR REPLACE INTO public_urls VALUES (?1, ?2, ?3, ?4, ?5)",
                    params![row.box_id, row.port, row.created_ms, row.token_sha256, row.password_sha256],
                )
                .map(|_| ())
        })
        .await
    }

    /// Removes one; a missing one is not an error.
    pub async fn delete_public_url(&self, box_id: &str, port: u16) -> Result<(), Error> {
        let box_id = box_id.to_owned();
        self.write_essential("delete a public URL", move |connection| {
            connection
                .execute(
                    "DELETE FROM public_urls WHERE box_id = ?1 AND port = ?2",
                    params![box_id, to_sql(port.into())],
                )
                .map(|_| ())
        })
        .await
    }
}
