//! The ledger's rows.

use std::collections::HashMap;

use rusqlite::{Connection, Row, params};

use super::{Commit, Db, from_sql, to_sql};
use crate::error::Error;
use crate::ledger::{Generation, Sample};

/// Age after which readings that affect no bill are thinned to one per hour.
const THIN_AFTER_MS: i64 = 24 * 3600 * 1000;

/// A sample with the other columns of the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredSample {
    /// The box.
    pub box_id: String,
    /// The reading.
    pub sample: Sample,
    /// Reason for the reading: `tick`, `freeze`, `run`, …
    pub reason: &'static str,
}

impl StoredSample {
    /// Appends it, inside the caller's transaction. An existing sample is not changed: each counts once.
    pub fn insert(&self, connection: &Connection) -> rusqlite::Result<()> {
        connection
            .prepare_cached("INSERT OR IGNORE INTO samples VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)")?
            .execute(params![
                self.box_id,
                self.sample.generation.boot_id,
                to_sql(self.sample.generation.cgroup_inode),
                to_sql(self.sample.sequence),
                self.sample.wall_ms,
                to_sql(self.sample.boottime_ms),
                to_sql(self.sample.cpu_usec),
                self.sample.storage_bytes.map(to_sql),
                self.reason,
            ])
            .map(|_| ())
    }
}

fn read_sample(row: &Row<'_>) -> rusqlite::Result<(String, Sample)> {
    let sample = Sample {
        generation: Generation { boot_id: row.get(1)?, cgroup_inode: from_sql(row.get(2)?) },
        sequence: from_sql(row.get(3)?),
        wall_ms: row.get(4)?,
        boottime_ms: from_sql(row.get(5)?),
        cpu_usec: from_sql(row.get(6)?),
        storage_bytes: row.get::<_, Option<i64>>(7)?.map(from_sql),
    };
    Ok((row.get(0)?, sample))
}

const COLUMNS: &str = "samples.box_id, samples.boot_id, samples.cgroup_inode, sequence, wall_ms, boottime_ms, cpu_usec, \
                       storage_bytes";

impl Db {
    /// Appends samples without waiting.
    pub fn append_samples(&self, samples: Vec<StoredSample>) {
        self.write_later(
            "append to the ledger",
            Commit::Soon,
            move |connection| samples.iter().try_for_each(|sample| sample.insert(connection)),
            |_| (),
        );
    }

    /// The ledger of one box.
    pub async fn samples_of(&self, box_id: &str) -> Result<Vec<Sample>, Error> {
        let box_id = box_id.to_owned();
        self.read("read the ledger of a box", move |connection| {
            let mut query = connection
                .prepare_cached(&format!("SELECT {COLUMNS} FROM samples WHERE box_id = ?1 ORDER BY sequence"))?;
            let rows = query.query_map([box_id], |row| read_sample(row).map(|(_, sample)| sample))?;
            rows.collect()
        })
        .await
    }

    /// The ledger of the boxes of [`Db::deleted_boxes`].
    pub async fn samples_of_deleted(&self, account: &str) -> Result<HashMap<String, Vec<Sample>>, Error> {
        let account = account.to_owned();
        self.read("read the ledger of deleted boxes", move |connection| {
            let mut query = connection.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM samples JOIN boxes ON boxes.id = samples.box_id \
                 WHERE boxes.account_id = ?1 AND boxes.state <> 'ready'"
            ))?;
            let mut ledger: HashMap<String, Vec<Sample>> = HashMap::new();
            for row in query.query_map([account], read_sample)? {
                let (box_id, sample) = row?;
                ledger.entry(box_id).or_default().push(sample);
            }
            Ok(ledger)
        })
        .await
    }

    /// Thins readings older than a day to one per hour and counter. The rest folds to the same bill: the last reading
    /// of each counter stays, and so does every measurement of storage.
    pub async fn thin_samples(&self, now_ms: i64) -> Result<usize, Error> {
        self.write("thin the ledger", move |connection| {
            connection.execute(
                "DELETE FROM samples WHERE (box_id, boot_id, cgroup_inode, sequence) IN (
                   SELECT box_id, boot_id, cgroup_inode, sequence FROM (
                     SELECT box_id, boot_id, cgroup_inode, sequence, wall_ms, storage_bytes,
                       row_number() OVER (PARTITION BY box_id, boot_id, cgroup_inode ORDER BY sequence DESC) AS from_last,
                       row_number() OVER (PARTITION BY box_id, boot_id, cgroup_inode, wall_ms / 3600000
                                          ORDER BY sequence DESC) AS in_hour
                     FROM samples)
                   WHERE from_last > 1 AND in_hour > 1 AND storage_bytes IS NULL AND wall_ms < ?1)",
                [now_ms - THIN_AFTER_MS],
            )
        })
        .await
    }
}
