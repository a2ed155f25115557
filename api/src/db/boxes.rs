//! The records of boxes (`domain::BoxRecord`), their sealed headers, and the reservations of boxes in creation.

use std::net::Ipv4Addr;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{Db, LogRow, StoredSample, from_sql, to_sql};
use crate::clock;
use crate::domain::{BoxRecord, BoxSettings, BoxState, DeletedBox, Incarnation, Reservation};
use crate::error::{Cause, Error};

/// Kind of secret.
pub const HEADERS: &str = "attach_headers";
/// Kind of a secret: the token for git's servers.
pub const GITHUB_TOKEN: &str = "github_token";
/// Kind of a secret: the key of the agent's provider.
pub const AGENT_API_KEY: &str = "agent_api_key";

const COLUMNS: &str = "id, account_id, name, state, settings, uid_base, pid, start_time_ticks, boot_id, cgroup_inode, \
                       created_ms, updated_ms, expires_ms, address, image";

/// A row whose settings may be unreadable: one damaged record must not make the others unavailable.
fn read_record(row: &Row<'_>) -> rusqlite::Result<(BoxRecord, Option<serde_json::Error>)> {
    let (settings, damage) = match serde_json::from_str(&row.get::<_, String>(4)?) {
        Ok(settings) => (settings, None),
        Err(cause) => (BoxSettings::default(), Some(cause)),
    };
    let state: String = row.get(3)?;
    let incarnation = match (row.get(6)?, row.get::<_, Option<i64>>(7)?, row.get(8)?, row.get::<_, Option<i64>>(9)?) {
        (Some(pid), Some(start), Some(boot_id), Some(inode)) => {
            Some(Incarnation { pid, start_time_ticks: from_sql(start), boot_id, cgroup_inode: from_sql(inode) })
        }
        _ => None,
    };
    let record = BoxRecord {
        id: row.get(0)?,
        account_id: row.get(1)?,
        name: row.get(2)?,
        state: if state == "deleting" { BoxState::Deleting } else { BoxState::Ready },
        settings,
        uid_base: row.get(5)?,
        incarnation,
        created_ms: row.get(10)?,
        updated_ms: row.get(11)?,
        expires_ms: row.get(12)?,
        address: row.get::<_, Option<String>>(13)?.and_then(|text| text.parse().ok()),
        image: row.get(14)?,
    };
    Ok((record, damage))
}

fn insert_record(connection: &Connection, record: &BoxRecord, settings: &str) -> rusqlite::Result<()> {
    let incarnation = record.incarnation.as_ref();
    connection
        .prepare_cached(
            "INSERT INTO boxes (id, account_id, name, state, settings, uid_base, pid, start_time_ticks, boot_id, \
             cgroup_inode, created_ms, updated_ms, expires_ms, address, image) \
             VALUES (?1, ?2, ?3, 'ready', ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
        )?
        .execute(params![
            record.id,
            record.account_id,
            record.name,
            settings,
            record.uid_base,
            incarnation.map(|i| i.pid),
            incarnation.map(|i| to_sql(i.start_time_ticks)),
            incarnation.map(|i| i.boot_id.as_str()),
            incarnation.map(|i| to_sql(i.cgroup_inode)),
            record.created_ms,
            record.updated_ms,
            record.expires_ms,
            record.address.map(|address| address.to_string()),
            record.image,
        ])
        .map(|_| ())
}

impl Db {
    /// Every box that is not deleted, with the error of its record if it has one.
    pub async fn boxes(&self) -> Result<Vec<(BoxRecord, Option<serde_json::Error>)>, Error> {
        self.read("read the box records", |connection| {
            let mut query =
                connection.prepare_cached(&format!("SELECT {COLUMNS} FROM boxes WHERE state <> 'deleted'"))?;
            let rows = query.query_map([], read_record)?;
            rows.collect()
        })
        .await
    }

    /// Turns a reservation into a box, with its first sample and log entries, in one commit.
    pub async fn insert_box(
        &self,
        record: &BoxRecord,
        secrets: Vec<(&'static str, Vec<u8>)>,
        sample: StoredSample,
        logs: Vec<LogRow>,
    ) -> Result<(), Error> {
        let record = record.clone();
        let settings = settings_text(&record)?;
        self.write("record a new box", move |connection| {
            insert_record(connection, &record, &settings)?;
            for (kind, sealed) in &secrets {
                let insert = "INSERT INTO box_secrets (box_id, kind, sealed) VALUES (?1, ?2, ?3)";
                connection.execute(insert, params![record.id, kind, sealed])?;
            }
            connection.prepare_cached("DELETE FROM reservations WHERE box_id = ?1")?.execute([&record.id])?;
            sample.insert(connection)?;
            logs.iter().try_for_each(|log| log.insert(connection))
        })
        .await
    }

    /// A secret of a box, sealed.
    pub async fn sealed_secret(&self, box_id: &str, kind: &'static str) -> Result<Option<Vec<u8>>, Error> {
        let box_id = box_id.to_owned();
        self.read("read a secret of a box", move |connection| {
            connection
                .prepare_cached("SELECT sealed FROM box_secrets WHERE box_id = ?1 AND kind = ?2")?
                .query_row(params![box_id, kind], |row| row.get(0))
                .optional()
        })
        .await
    }

    /// Writes name and settings of a box.
    pub async fn update_settings(&self, record: &BoxRecord) -> Result<(), Error> {
        let record = record.clone();
        let settings = settings_text(&record)?;
        self.write("change a box record", move |connection| {
            connection
                .execute(
                    "UPDATE boxes SET settings = ?2, updated_ms = ?3 WHERE id = ?1",
                    params![record.id, settings, record.updated_ms],
                )
                .map(|_| ())
        })
        .await
    }

    /// Gives an image to the boxes whose records are from before boxes had one.
    pub async fn set_missing_images(&self, image: &str) -> Result<(), Error> {
        let image = image.to_owned();
        self.write("record the image of boxes", move |connection| {
            let sql = "UPDATE boxes SET image = ?1 WHERE image IS NULL AND state <> 'deleted'";
            connection.execute(sql, [image]).map(|_| ())
        })
        .await
    }

    /// Records a restart of a box, with the first sample of its new counter.
    pub async fn update_incarnation(
        &self,
        box_id: &str,
        uid_base: u32,
        address: Option<Ipv4Addr>,
        incarnation: &Incarnation,
        sample: StoredSample,
        logs: Vec<LogRow>,
    ) -> Result<(), Error> {
        let (box_id, incarnation) = (box_id.to_owned(), incarnation.clone());
        self.write("record the start of a box", move |connection| {
            connection.execute(
                "UPDATE boxes SET uid_base = ?2, pid = ?3, start_time_ticks = ?4, boot_id = ?5, cgroup_inode = ?6, \
                 address = coalesce(?7, address) WHERE id = ?1",
                params![
                    box_id,
                    uid_base,
                    incarnation.pid,
                    to_sql(incarnation.start_time_ticks),
                    incarnation.boot_id,
                    to_sql(incarnation.cgroup_inode),
                    address.map(|address| address.to_string())
                ],
            )?;
            sample.insert(connection)?;
            logs.iter().try_for_each(|log| log.insert(connection))
        })
        .await
    }

    /// Marks a box as being deleted, with its last sample. From here on the deletion can only be finished.
    pub async fn begin_delete(&self, box_id: &str, samples: Vec<StoredSample>) -> Result<(), Error> {
        let box_id = box_id.to_owned();
        self.write_essential("begin the deletion of a box", move |connection| {
            connection.execute("UPDATE boxes SET state = 'deleting' WHERE id = ?1 AND state = 'ready'", [&box_id])?;
            samples.iter().try_for_each(|sample| sample.insert(connection))
        })
        .await
    }

    /// Records that all of the box except its bill is gone.
    pub async fn finish_delete(&self, box_id: &str, uid_base: u32) -> Result<(), Error> {
        let box_id = box_id.to_owned();
        self.write_essential("finish the deletion of a box", move |connection| {
            let now = clock::unix_ms();
            connection.execute(
                "UPDATE boxes SET state = 'deleted', deleted_ms = ?2, settings = '{}' WHERE id = ?1",
                params![box_id, now],
            )?;
            connection.execute("DELETE FROM runs WHERE box_id = ?1", [&box_id])?;
            connection.execute("DELETE FROM logs WHERE box_id = ?1", [&box_id])?;
            connection.execute("DELETE FROM box_secrets WHERE box_id = ?1", [&box_id])?;
            connection.execute("DELETE FROM public_urls WHERE box_id = ?1", [&box_id])?;
            connection.execute("DELETE FROM undo_points WHERE box_id = ?1", [&box_id])?;
            connection.execute("DELETE FROM snapshot_schedules WHERE box_id = ?1", [&box_id])?;
            rest_uid_range(connection, uid_base, now)
        })
        .await
    }

    /// Deleted boxes of an account, and those whose deletion has begun, for the bill.
    pub async fn deleted_boxes(&self, account: &str) -> Result<Vec<DeletedBox>, Error> {
        let account = account.to_owned();
        self.read("read the deleted boxes", move |connection| {
            let mut query = connection.prepare_cached(
                "SELECT id, name FROM boxes WHERE account_id = ?1 AND state <> 'ready' ORDER BY created_ms",
            )?;
            let rows = query.query_map([account], |row| Ok(DeletedBox { id: row.get(0)?, name: row.get(1)? }))?;
            rows.collect()
        })
        .await
    }

    /// Reservations of an earlier run of the daemon.
    pub async fn reservations(&self) -> Result<Vec<Reservation>, Error> {
        self.read("read the reservations", |connection| {
            let mut query = connection.prepare_cached("SELECT box_id, uid_base FROM reservations")?;
            let rows = query.query_map([], |row| Ok(Reservation { box_id: row.get(0)?, uid_base: row.get(1)? }))?;
            rows.collect()
        })
        .await
    }

    /// Puts reservations on disk, before any resource is made for them. An id of an existing or deleted box is skipped.
    pub async fn reserve(&self, wanted: Vec<Reservation>) -> Result<Vec<Reservation>, Error> {
        self.write("reserve box ids", move |connection| {
            let now = clock::unix_ms();
            let mut made = Vec::new();
            for one in wanted {
                let known = "SELECT 1 FROM boxes WHERE id = ?1 UNION SELECT 1 FROM reservations WHERE box_id = ?1";
                let taken = connection.prepare_cached(known)?.query_row([&one.box_id], |_| Ok(())).optional()?;
                if taken.is_none() {
                    connection.execute(
                        "INSERT INTO reservations VALUES (?1, ?2, ?3)",
                        params![one.box_id, one.uid_base, now],
                    )?;
                    connection.execute("DELETE FROM uid_rest WHERE uid_base = ?1", [one.uid_base])?;
                    made.push(one);
                }
            }
            Ok(made)
        })
        .await
    }

    /// Removes a reservation once nothing made for it is left.
    pub async fn release(&self, reservation: &Reservation) -> Result<(), Error> {
        let reservation = reservation.clone();
        self.write_essential("release a box id", move |connection| {
            connection.execute("DELETE FROM reservations WHERE box_id = ?1", [&reservation.box_id])?;
            rest_uid_range(connection, reservation.uid_base, clock::unix_ms())
        })
        .await
    }

    /// Removes reservations for which nothing was made.
    pub async fn unreserve(&self, unused: Vec<Reservation>) -> Result<(), Error> {
        self.write_essential("release box ids", move |connection| {
            let mut delete = connection.prepare_cached("DELETE FROM reservations WHERE box_id = ?1")?;
            unused.iter().try_for_each(|one| delete.execute([&one.box_id]).map(|_| ()))
        })
        .await
    }

    /// Uid ranges at rest, with the time since when, the longest first.
    pub async fn uid_bases_at_rest(&self) -> Result<Vec<(u32, i64)>, Error> {
        self.read("read the uid ranges at rest", |connection| {
            let mut query = connection.prepare_cached("SELECT uid_base, freed_ms FROM uid_rest ORDER BY freed_ms")?;
            let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect()
        })
        .await
    }
}

fn rest_uid_range(connection: &Connection, uid_base: u32, now_ms: i64) -> rusqlite::Result<()> {
    connection
        .execute(
            "INSERT INTO uid_rest VALUES (?1, ?2) ON CONFLICT DO UPDATE SET freed_ms = excluded.freed_ms",
            params![uid_base, now_ms],
        )
        .map(|_| ())
}

fn settings_text(record: &BoxRecord) -> Result<String, Error> {
    serde_json::to_string(&record.settings)
        .map_err(|cause| Error::new("write the settings of", &record.id, Cause::from(cause)))
}
