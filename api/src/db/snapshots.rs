//! The records of snapshots.

use rusqlite::{Connection, OptionalExtension, Row, ToSql, params, params_from_iter};

use super::{Db, found, from_sql, to_sql};
use crate::clock;
use crate::domain::{Snapshot, SnapshotStatus};
use crate::error::Error;

const COLUMNS: &str = "id, account_id, box_id, name, kind, status, created_ms, deleted_ms, size_bytes, image, settings, \
                       digest, signature, agent_key, error";

fn read_snapshot(row: &Row<'_>) -> rusqlite::Result<Snapshot> {
    let status: String = row.get(5)?;
    Ok(Snapshot {
        id: row.get(0)?,
        account_id: row.get(1)?,
        box_id: row.get(2)?,
        name: row.get(3)?,
        kind: row.get(4)?,
        // The table has a check on it.
        status: SnapshotStatus::of(&status).unwrap_or(SnapshotStatus::Error),
        created_ms: row.get(6)?,
        deleted_ms: row.get(7)?,
        size_bytes: from_sql(row.get(8)?),
        image: row.get(9)?,
        settings: row.get(10)?,
        digest: row.get(11)?,
        signature: row.get(12)?,
        agent_key: row.get(13)?,
        error: row.get(14)?,
    })
}

fn select(connection: &Connection, condition: &str, values: &[&dyn ToSql]) -> rusqlite::Result<Vec<Snapshot>> {
    let sql = format!("SELECT {COLUMNS} FROM snapshots WHERE {condition} ORDER BY created_ms, id");
    let mut query = connection.prepare_cached(&sql)?;
    let rows = query.query_map(values, read_snapshot)?;
    rows.collect()
}

impl Db {
    /// Records a snapshot before anything of it exists. `false` if the account has as many as it may have.
    pub async fn insert_snapshot(&self, snapshot: &Snapshot, account_max: u32) -> Result<bool, Error> {
        let new = snapshot.clone();
        self.write("record a new snapshot", move |connection| {
            let count = "SELECT count(*) FROM snapshots WHERE account_id = ?1 AND status <> 'deleted'";
            let has: u32 = connection.prepare_cached(count)?.query_row([&new.account_id], |row| row.get(0))?;
            if has >= account_max {
                return Ok(false);
            }
            let insert = "INSERT INTO snapshots (id, account_id, box_id, name, kind, status, created_ms, image, \
                          settings, agent_key) VALUES (?1, ?2, ?3, ?4, ?5, 'creating', ?6, ?7, ?8, ?9)";
            let values = params![
                new.id,
                new.account_id,
                new.box_id,
                new.name,
                new.kind,
                new.created_ms,
                new.image,
                new.settings,
                new.agent_key
            ];
            connection.prepare_cached(insert)?.execute(values).map(|_| true)
        })
        .await
    }

    /// Records that a snapshot is complete. `false` if it was deleted meanwhile.
    pub async fn finish_snapshot(&self, snapshot: &Snapshot) -> Result<bool, Error> {
        let done = snapshot.clone();
        self.write("record a finished snapshot", move |connection| {
            let update = "UPDATE snapshots SET status = 'ready', size_bytes = ?2, digest = ?3, signature = ?4 \
                          WHERE id = ?1 AND status = 'creating'";
            let values = params![done.id, to_sql(done.size_bytes), done.digest, done.signature];
            connection.prepare_cached(update)?.execute(values).map(|changed| changed > 0)
        })
        .await
    }

    /// Records that a snapshot cannot be used. Nothing of it is left.
    pub async fn fail_snapshot(&self, id: &str, reason: &str) -> Result<(), Error> {
        let (id, reason) = (id.to_owned(), reason.to_owned());
        self.write_essential("record a failed snapshot", move |connection| {
            let update = "UPDATE snapshots SET status = 'error', error = ?2, \
                          deleted_ms = CASE size_bytes WHEN 0 THEN deleted_ms ELSE ?3 END \
                          WHERE id = ?1 AND status <> 'deleted'";
            connection.prepare_cached(update)?.execute(params![id, reason, clock::unix_ms()]).map(|_| ())
        })
        .await
    }

    /// A snapshot of an account.
    pub async fn snapshot(&self, account: &str, id: &str) -> Result<Option<Snapshot>, Error> {
        let (account, id) = (account.to_owned(), id.to_owned());
        self.read("read a snapshot", move |connection| {
            let sql =
                format!("SELECT {COLUMNS} FROM snapshots WHERE id = ?1 AND account_id = ?2 AND status <> 'deleted'");
            connection.prepare_cached(&sql)?.query_row([&id, &account], read_snapshot).optional()
        })
        .await
    }

    /// The snapshots of an account, the oldest first; of one of its boxes if `box_id` names one.
    pub async fn snapshots(&self, account: &str, box_id: Option<&str>) -> Result<Vec<Snapshot>, Error> {
        let (account, box_id) = (account.to_owned(), box_id.map(str::to_owned));
        self.read("read the snapshots", move |connection| {
            let condition = "account_id = ?1 AND status <> 'deleted' AND box_id = coalesce(?2, box_id)";
            select(connection, condition, &[&account, &box_id])
        })
        .await
    }

    /// Every snapshot that has been billed or will be, deleted ones too.
    pub async fn billed_snapshots(&self, account: &str) -> Result<Vec<Snapshot>, Error> {
        let account = account.to_owned();
        self.read("read the snapshots of the bill", move |connection| {
            select(connection, "account_id = ?1 AND size_bytes > 0", &[&account])
        })
        .await
    }

    /// The snapshots of all accounts that are not deleted.
    pub async fn all_snapshots(&self) -> Result<Vec<Snapshot>, Error> {
        self.read("read all snapshots", |connection| select(connection, "status <> 'deleted'", &[])).await
    }

    /// The ids of these that belong to deleted snapshots.
    pub async fn deleted_snapshots(&self, ids: Vec<String>) -> Result<Vec<String>, Error> {
        self.read("read the deleted snapshots", move |connection| {
            found(connection, "SELECT 1 FROM snapshots WHERE id = ?1 AND status = 'deleted'", ids)
        })
        .await
    }

    /// Deletes these snapshots of an account, or all with `None`. Returns those that were there. From here on their
    /// files can only be removed.
    pub async fn delete_snapshots(&self, account: &str, ids: Option<Vec<String>>) -> Result<Vec<String>, Error> {
        let account = account.to_owned();
        self.write_essential("delete snapshots", move |connection| {
            let now = clock::unix_ms();
            let update = "UPDATE snapshots SET status = 'deleted', deleted_ms = coalesce(deleted_ms, ?1), \
                          settings = '{}', agent_key = NULL WHERE account_id = ?2 AND status <> 'deleted'";
            let Some(ids) = ids else {
                let mut query = connection.prepare_cached(&format!("{update} RETURNING id"))?;
                let gone = query.query_map(params![now, account], |row| row.get(0))?;
                return gone.collect();
            };
            let mut query = connection.prepare_cached(&format!("{update} AND id = ?3"))?;
            let mut gone = Vec::new();
            for id in ids {
                let values: [&dyn ToSql; 3] = [&now, &account, &id];
                if query.execute(params_from_iter(values))? > 0 {
                    gone.push(id);
                }
            }
            Ok(gone)
        })
        .await
    }
}
