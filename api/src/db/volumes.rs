//! The records of volumes.

use rusqlite::{Connection, OptionalExtension, Row, ToSql, params};

use super::{Db, found, from_sql, to_sql};
use crate::clock;
use crate::domain::{Stored, Volume, VolumeState};
use crate::error::Error;

const COLUMNS: &str = "id, account_id, name, state, size_gib, created_ms, stored_bytes, measured_ms, stored_byte_ms";

/// What became of a new record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    /// It is there.
    Done,
    /// The account has a volume of this name.
    NameTaken,
    /// The account has as many as it may have.
    TooMany,
}

fn read_volume(row: &Row<'_>) -> rusqlite::Result<Volume> {
    let state: String = row.get(3)?;
    let byte_ms: String = row.get(8)?;
    Ok(Volume {
        id: row.get(0)?,
        account_id: row.get(1)?,
        name: row.get(2)?,
        state: if state == VolumeState::Creating.as_str() { VolumeState::Creating } else { VolumeState::Ready },
        size_gib: row.get(4)?,
        created_ms: row.get(5)?,
        stored: Stored {
            bytes: from_sql(row.get(6)?),
            measured_ms: row.get(7)?,
            // Written by this file only.
            byte_ms: byte_ms.parse().unwrap_or(0),
        },
    })
}

fn select(connection: &Connection, condition: &str, values: &[&dyn ToSql]) -> rusqlite::Result<Vec<Volume>> {
    let sql = format!("SELECT {COLUMNS} FROM volumes WHERE {condition} ORDER BY name, id");
    let mut query = connection.prepare_cached(&sql)?;
    let rows = query.query_map(values, read_volume)?;
    rows.collect()
}

/// Writes the storage of a volume, which is `bytes` from now on.
fn measured(connection: &Connection, id: &str, bytes: u64, now_ms: i64) -> rusqlite::Result<()> {
    let Some(volume) = select(connection, "id = ?1", &[&id])?.pop() else { return Ok(()) };
    if volume.stored.bytes == bytes {
        return Ok(());
    }
    let stored = volume.stored.then(bytes, now_ms);
    let update = "UPDATE volumes SET stored_bytes = ?2, measured_ms = ?3, stored_byte_ms = ?4 WHERE id = ?1";
    let values = params![id, to_sql(stored.bytes), stored.measured_ms, stored.byte_ms.to_string()];
    connection.prepare_cached(update)?.execute(values).map(drop)
}

impl Db {
    /// Records a volume before anything of it exists.
    pub async fn insert_volume(&self, volume: &Volume, account_max: usize) -> Result<Inserted, Error> {
        let new = volume.clone();
        self.write("record a new volume", move |connection| {
            let of_account = select(connection, "account_id = ?1 AND state <> 'deleted'", &[&new.account_id])?;
            if of_account.iter().any(|other| other.name == new.name) {
                return Ok(Inserted::NameTaken);
            }
            if of_account.len() >= account_max {
                return Ok(Inserted::TooMany);
            }
            let insert = "INSERT INTO volumes (id, account_id, name, state, size_gib, created_ms, measured_ms) \
                          VALUES (?1, ?2, ?3, 'creating', ?4, ?5, ?5)";
            let values = params![new.id, new.account_id, new.name, new.size_gib, new.created_ms];
            connection.prepare_cached(insert)?.execute(values).map(|_| Inserted::Done)
        })
        .await
    }

    /// Records that a volume is complete, and what it occupies.
    pub async fn finish_volume(&self, id: &str, bytes: u64) -> Result<(), Error> {
        let id = id.to_owned();
        self.write("record a finished volume", move |connection| {
            let update = "UPDATE volumes SET state = 'ready' WHERE id = ?1 AND state = 'creating'";
            connection.prepare_cached(update)?.execute([&id])?;
            measured(connection, &id, bytes, clock::unix_ms())
        })
        .await
    }

    /// A volume of an account that boxes can have.
    pub async fn volume(&self, account: &str, name: &str) -> Result<Option<Volume>, Error> {
        let (account, name) = (account.to_owned(), name.to_owned());
        self.read("read a volume", move |connection| {
            let sql = format!("SELECT {COLUMNS} FROM volumes WHERE account_id = ?1 AND name = ?2 AND state = 'ready'");
            connection.prepare_cached(&sql)?.query_row([&account, &name], read_volume).optional()
        })
        .await
    }

    /// The volumes of an account that boxes can have, by name.
    pub async fn volumes(&self, account: &str) -> Result<Vec<Volume>, Error> {
        let account = account.to_owned();
        self.read("read the volumes", move |connection| {
            select(connection, "account_id = ?1 AND state = 'ready'", &[&account])
        })
        .await
    }

    /// Every volume of an account that is billed, deleted ones too: those have no bytes.
    pub async fn billed_volumes(&self, account: &str) -> Result<Vec<Volume>, Error> {
        let account = account.to_owned();
        self.read("read the volumes of the bill", move |connection| {
            select(connection, "account_id = ?1 AND (stored_bytes > 0 OR stored_byte_ms <> '0')", &[&account])
        })
        .await
    }

    /// The volumes of all accounts that are not deleted.
    pub async fn all_volumes(&self) -> Result<Vec<Volume>, Error> {
        self.read("read all volumes", |connection| select(connection, "state <> 'deleted'", &[])).await
    }

    /// The ids of these that belong to deleted volumes.
    pub async fn deleted_volumes(&self, ids: Vec<String>) -> Result<Vec<String>, Error> {
        self.read("read the deleted volumes", move |connection| {
            found(connection, "SELECT 1 FROM volumes WHERE id = ?1 AND state = 'deleted'", ids)
        })
        .await
    }

    /// Records what these volumes occupy now.
    pub async fn measure_volumes(&self, measures: Vec<(String, u64)>) -> Result<(), Error> {
        self.write("record what volumes occupy", move |connection| {
            let now_ms = clock::unix_ms();
            measures.iter().try_for_each(|(id, bytes)| measured(connection, id, *bytes, now_ms))
        })
        .await
    }

    /// Records the size that a volume is about to have. It only grows.
    pub async fn grow_volume(&self, id: &str, size_gib: u32) -> Result<(), Error> {
        let id = id.to_owned();
        self.write("record the size of a volume", move |connection| {
            let update = "UPDATE volumes SET size_gib = ?2 WHERE id = ?1 AND size_gib < ?2";
            connection.prepare_cached(update)?.execute(params![id, size_gib]).map(drop)
        })
        .await
    }

    /// Deletes a volume. From here on its file can only be removed.
    pub async fn delete_volume(&self, id: &str) -> Result<(), Error> {
        let id = id.to_owned();
        self.write_essential("delete a volume", move |connection| {
            let now_ms = clock::unix_ms();
            measured(connection, &id, 0, now_ms)?;
            let update = "UPDATE volumes SET state = 'deleted', deleted_ms = ?2 WHERE id = ?1";
            connection.prepare_cached(update)?.execute(params![id, now_ms]).map(drop)
        })
        .await
    }
}
