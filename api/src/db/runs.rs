//! Records of runs.

use rusqlite::{Connection, OptionalExtension, params};

use super::{Commit, Db, LogRow, StoredSample, from_sql, to_sql};
use crate::domain::RunState;
use crate::error::Error;
use crate::events::NamedRun;
use crate::text::one_line;

/// Runs kept per box; the oldest go first.
pub(super) const RUNS_PER_BOX_MAX: u64 = 10_000;

/// The record of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunRow {
    /// The box.
    pub box_id: String,
    /// Number within the box: the name of its cgroup.
    pub number: u64,
    /// Public id.
    pub id: String,
    /// State.
    pub state: RunState,
    /// Argument vector joined by blanks.
    pub prompt: String,
    /// Unix milliseconds.
    pub started_ms: i64,
    /// Unix milliseconds.
    pub ended_ms: Option<i64>,
    /// Exit code.
    pub exit_code: Option<i32>,
    /// CPU time.
    pub cpu_ns: u64,
    /// Most memory used at once.
    pub memory_peak_bytes: Option<u64>,
    /// Processes of the run that the kernel killed for want of memory.
    pub oom_kills: u64,
    /// End of its output.
    pub output: Option<String>,
    /// Reason of its failure, beyond the exit code.
    pub error_message: Option<String>,
}

/// The rows written when a run ends, in one commit.
#[derive(Debug, Clone)]
pub struct FinishedRun {
    /// The run.
    pub run: RunRow,
    /// The box's counters at its end, if they could be read.
    pub sample: Option<StoredSample>,
    /// Its lines in the box's log.
    pub logs: Vec<LogRow>,
    /// Icebox's own: only sample and log line are written.
    pub hidden: bool,
}

impl RunRow {
    /// Writes the row. A final row is not changed: an exit that is reported twice counts once.
    fn upsert(&self, connection: &Connection) -> rusqlite::Result<bool> {
        connection
            .prepare_cached(
                "INSERT INTO runs VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13) \
                 ON CONFLICT (box_id, number) DO UPDATE SET status = excluded.status, ended_ms = excluded.ended_ms, \
                 exit_code = excluded.exit_code, cpu_ns = excluded.cpu_ns, \
                 memory_peak_bytes = excluded.memory_peak_bytes, oom_kills = excluded.oom_kills, \
                 output = excluded.output, error_message = excluded.error_message WHERE runs.status = 'running'",
            )?
            .execute(params![
                self.box_id,
                to_sql(self.number),
                self.id,
                self.state.as_str(),
                self.prompt,
                self.started_ms,
                self.ended_ms,
                self.exit_code,
                to_sql(self.cpu_ns),
                self.memory_peak_bytes.map(to_sql),
                to_sql(self.oom_kills),
                self.output,
                self.error_message,
            ])
            .map(|changed| changed > 0)
    }
}

impl FinishedRun {
    fn insert(&self, connection: &Connection) -> rusqlite::Result<()> {
        if self.hidden || self.run.upsert(connection)? {
            self.logs.iter().try_for_each(|log| log.insert(connection))?;
        }
        self.sample.as_ref().map_or(Ok(()), |sample| sample.insert(connection))
    }
}

impl Db {
    /// Records a run that has been in progress for a while.
    pub fn run_started(&self, run: RunRow) {
        let change = move |connection: &Connection| run.upsert(connection).map(|_| ());
        self.write_later("record a run", Commit::Soon, change, |_| ());
    }

    /// Records the end of a run; `after` is told whether it is on disk.
    pub fn run_finished(&self, finished: FinishedRun, commit: Commit, after: impl FnOnce(bool) + Send + 'static) {
        self.write_later("record the end of a run", commit, move |connection| finished.insert(connection), after);
    }

    /// The numbers of the runs of a box that are recorded as running.
    pub async fn runs_in_flight(&self, box_id: &str) -> Result<Vec<RunRow>, Error> {
        self.query_runs(box_id, "AND status = 'running' ORDER BY number", u64::MAX).await
    }

    /// The newest runs of a box, newest first.
    pub async fn runs_of(&self, box_id: &str, limit: u64) -> Result<Vec<RunRow>, Error> {
        self.query_runs(box_id, "ORDER BY number DESC", limit).await
    }

    async fn query_runs(&self, box_id: &str, rest: &'static str, limit: u64) -> Result<Vec<RunRow>, Error> {
        let box_id = box_id.to_owned();
        self.read("read the runs", move |connection| {
            let mut query = connection.prepare_cached(&format!(
                "SELECT number, id, status, prompt, started_ms, ended_ms, exit_code, cpu_ns, memory_peak_bytes, \
                 oom_kills, output, error_message FROM runs WHERE box_id = ?1 {rest} LIMIT ?2"
            ))?;
            let rows = query.query_map(params![box_id, to_sql(limit)], |row| {
                Ok(RunRow {
                    box_id: box_id.clone(),
                    number: from_sql(row.get(0)?),
                    id: row.get(1)?,
                    state: RunState::parse(&row.get::<_, String>(2)?),
                    prompt: row.get(3)?,
                    started_ms: row.get(4)?,
                    ended_ms: row.get(5)?,
                    exit_code: row.get(6)?,
                    cpu_ns: from_sql(row.get(7)?),
                    memory_peak_bytes: row.get::<_, Option<i64>>(8)?.map(from_sql),
                    oom_kills: from_sql(row.get(9)?),
                    output: row.get(10)?,
                    error_message: row.get(11)?,
                })
            })?;
            rows.collect()
        })
        .await
    }

    /// The state of one run, by its public id.
    pub async fn run_state(&self, box_id: &str, run_id: &str) -> Result<Option<(u64, RunState)>, Error> {
        let (box_id, run_id) = (box_id.to_owned(), run_id.to_owned());
        self.read("look a run up", move |connection| {
            let sql = "SELECT number, status FROM runs WHERE box_id = ?1 AND id = ?2";
            let read =
                |row: &rusqlite::Row<'_>| Ok((from_sql(row.get(0)?), RunState::parse(&row.get::<_, String>(1)?)));
            connection.query_row(sql, [box_id, run_id], read).optional()
        })
        .await
    }

    /// The run with this number, for people. It waits for records that are on their way to disk.
    pub async fn run_by_number(&self, box_id: &str, number: u64) -> Result<Option<NamedRun>, Error> {
        let box_id = box_id.to_owned();
        self.write("look a run up", move |connection| {
            let sql = "SELECT id, prompt FROM runs WHERE box_id = ?1 AND number = ?2";
            let read = |row: &rusqlite::Row<'_>| {
                Ok(NamedRun { run_id: row.get(0)?, command: one_line(&row.get::<_, String>(1)?) })
            };
            connection.query_row(sql, params![box_id, to_sql(number)], read).optional()
        })
        .await
    }

    /// The highest run number of each box.
    pub async fn last_run_numbers(&self) -> Result<Vec<(String, u64)>, Error> {
        self.read("read the run numbers", |connection| {
            let mut query = connection.prepare_cached("SELECT box_id, max(number) FROM runs GROUP BY box_id")?;
            let rows = query.query_map([], |row| Ok((row.get(0)?, from_sql(row.get(1)?))))?;
            rows.collect()
        })
        .await
    }

    /// Drops the oldest finished runs of every box that has too many, and late records of deleted boxes.
    pub async fn prune_runs(&self) -> Result<usize, Error> {
        self.write("prune the runs", |connection| {
            connection.execute(
                "DELETE FROM runs WHERE box_id IN (SELECT id FROM boxes WHERE state = 'deleted') OR \
                 (status <> 'running' AND number <= \
                 (SELECT max(number) - ?1 FROM runs AS newest WHERE newest.box_id = runs.box_id))",
                [to_sql(RUNS_PER_BOX_MAX)],
            )
        })
        .await
    }
}
