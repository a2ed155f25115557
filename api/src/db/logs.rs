//! The log of each box, as its owner sees it.

use rusqlite::{Connection, params};

use super::{Commit, Db, to_sql};
use crate::domain::{LogEntry, LogLevel, LogSource};
use crate::error::Error;
use crate::events::{Event, Sink};
use crate::text::cut;

/// Entries kept per box; the oldest go first.
pub(super) const LOGS_PER_BOX_MAX: u64 = 5_000;
/// Longest message.
const MESSAGE_BYTES_MAX: usize = 4096;

/// An entry to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRow {
    box_id: String,
    written_ms: i64,
    level: LogLevel,
    source: LogSource,
    message: String,
}

impl LogRow {
    /// The entries of an event. There are no others.
    #[must_use]
    pub fn of(event: &Event) -> Vec<Self> {
        let row = |line: crate::events::LogLine| Self {
            box_id: event.box_id.clone(),
            written_ms: event.at_ms,
            level: line.level,
            source: line.source,
            message: cut(line.text, MESSAGE_BYTES_MAX),
        };
        event.log_lines().into_iter().map(row).collect()
    }

    /// Writes it, inside the caller's transaction.
    pub fn insert(&self, connection: &Connection) -> rusqlite::Result<()> {
        connection
            .prepare_cached(
                "INSERT INTO logs (box_id, written_ms, level, source, message) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![self.box_id, self.written_ms, self.level.as_str(), self.source.as_str(), self.message])
            .map(|_| ())
    }
}

/// Writes the entries of events without waiting.
impl Sink for Db {
    fn take(&self, event: &Event) {
        if event.fact.is_logged_with_its_change() {
            return;
        }
        for row in LogRow::of(event) {
            self.write_later("write a log entry", Commit::Soon, move |connection| row.insert(connection), |_| ());
        }
    }
}

impl Db {
    /// Entries of a box, oldest first. Without a limit, all that are kept.
    pub async fn logs(&self, box_id: &str, offset: u64, limit: Option<u64>) -> Result<Vec<LogEntry>, Error> {
        let box_id = box_id.to_owned();
        let limit = limit.unwrap_or(LOGS_PER_BOX_MAX).min(LOGS_PER_BOX_MAX);
        self.read("read the log", move |connection| {
            let mut query = connection.prepare_cached(
                "SELECT written_ms, level, source, message FROM logs WHERE box_id = ?1 ORDER BY id LIMIT ?2 OFFSET ?3",
            )?;
            let rows = query.query_map(params![box_id, to_sql(limit), to_sql(offset)], |row| {
                Ok(LogEntry {
                    written_ms: row.get(0)?,
                    level: LogLevel::parse(&row.get::<_, String>(1)?),
                    source: LogSource::parse(&row.get::<_, String>(2)?),
                    message: row.get(3)?,
                })
            })?;
            rows.collect()
        })
        .await
    }

    /// Drops the oldest entries of every box that has too many, and late entries of deleted boxes.
    pub async fn prune_logs(&self) -> Result<usize, Error> {
        self.write("prune the logs", |connection| {
            connection.execute(
                "DELETE FROM logs WHERE box_id IN (SELECT id FROM boxes WHERE state = 'deleted') OR id IN (SELECT id FROM (SELECT id, row_number() OVER (PARTITION BY box_id \
                 ORDER BY id DESC) AS age FROM logs) WHERE age > ?1)",
                [to_sql(LOGS_PER_BOX_MAX)],
            )
        })
        .await
    }
}
