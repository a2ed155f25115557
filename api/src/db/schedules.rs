//! The schedules of automatic snapshots.

use rusqlite::{OptionalExtension, Row, params};

use super::Db;
use crate::domain::{KeepRules, Schedule};
use crate::error::Error;

const COLUMNS: &str = "box_id, hourly, daily, weekly, due_ms, mark, error";

fn read_schedule(row: &Row<'_>) -> rusqlite::Result<Schedule> {
    Ok(Schedule {
        box_id: row.get(0)?,
        rules: KeepRules { hourly: row.get(1)?, daily: row.get(2)?, weekly: row.get(3)? },
        due_ms: row.get(4)?,
        mark: row.get(5)?,
        error: row.get(6)?,
    })
}

impl Db {
    /// All schedules, the next one that is due first.
    pub async fn schedules(&self) -> Result<Vec<Schedule>, Error> {
        self.read("read the schedules of snapshots", |connection| {
            let sql = format!("SELECT {COLUMNS} FROM snapshot_schedules ORDER BY due_ms, box_id");
            let mut query = connection.prepare_cached(&sql)?;
            let rows = query.query_map([], read_schedule)?;
            rows.collect()
        })
        .await
    }

    /// The schedule of a box.
    pub async fn schedule(&self, box_id: &str) -> Result<Option<Schedule>, Error> {
        let box_id = box_id.to_owned();
        self.read("read the schedule of snapshots", move |connection| {
            let sql = format!("SELECT {COLUMNS} FROM snapshot_schedules WHERE box_id = ?1");
            connection.prepare_cached(&sql)?.query_row([&box_id], read_schedule).optional()
        })
        .await
    }

    /// Sets the rules of a box. One that has none yet is due at `due_ms`; another at the earlier of the two times.
    pub async fn set_schedule(&self, box_id: &str, rules: KeepRules, due_ms: i64) -> Result<(), Error> {
        let box_id = box_id.to_owned();
        self.write("record a schedule of snapshots", move |connection| {
            let sql = "INSERT INTO snapshot_schedules (box_id, hourly, daily, weekly, due_ms) VALUES (?1, ?2, ?3, ?4, ?5) \
                       ON CONFLICT DO UPDATE SET hourly = ?2, daily = ?3, weekly = ?4, due_ms = min(due_ms, ?6)";
            let later = due_ms.saturating_add(rules.period_ms());
            let values = params![box_id, rules.hourly, rules.daily, rules.weekly, due_ms, later];
            connection.execute(sql, values).map(drop)
        })
        .await
    }

    /// Records what has become of an attempt. The schedule may have been removed meanwhile.
    pub async fn move_schedule(&self, schedule: &Schedule) -> Result<(), Error> {
        let schedule = schedule.clone();
        self.write("record an automatic snapshot", move |connection| {
            let sql = "UPDATE snapshot_schedules SET due_ms = ?2, mark = ?3, error = ?4 WHERE box_id = ?1";
            let values = params![schedule.box_id, schedule.due_ms, schedule.mark, schedule.error];
            connection.prepare_cached(sql)?.execute(values).map(drop)
        })
        .await
    }

    /// Removes the schedule of a box.
    pub async fn remove_schedule(&self, box_id: &str) -> Result<(), Error> {
        let box_id = box_id.to_owned();
        self.write_essential("remove a schedule of snapshots", move |connection| {
            connection.execute("DELETE FROM snapshot_schedules WHERE box_id = ?1", [&box_id]).map(drop)
        })
        .await
    }
}
