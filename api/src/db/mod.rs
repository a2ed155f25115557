//! The database: records, runs, logs and the ledger in one SQLite file.
//!
//! Owns the file `icebox.db`, its schema and every query. Invariants: one thread writes; writes that arrive together
//! share one commit (WAL, `synchronous=FULL`: a commit is on disk when its caller gets the answer); writes that none waits
//! for are deferred for some milliseconds to share one; reads go through a
//! small pool and never wait for the writer; a full disk refuses single writes and does not end the daemon (`space`).
//! Other modules see functions, not SQL.

mod accounts;
mod boxes;
mod defaults;
mod defaults_cache;
mod logs;
mod public_urls;
mod roots;
mod runs;
mod samples;
mod schedules;
mod schema;
mod snapshots;
mod space;
mod undo;
mod volumes;
mod writer;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use crate::error::{Cause, Error};

pub use accounts::{Account, NewKey, create_account, ensure_first_account, hash_key};
pub use boxes::{AGENT_API_KEY, GITHUB_TOKEN, HEADERS};
pub use defaults_cache::AccountDefaults;
pub use logs::LogRow;
pub use public_urls::PublicUrlRow;
pub use runs::{FinishedRun, RunRow};
pub use samples::StoredSample;
pub use space::free_bytes;
pub use volumes::Inserted;
pub use writer::{Commit, CommitFailure};

use space::Space;
use writer::{Weight, Writer};

/// Longest wait for another process (`iceboxd account add`) that holds the write lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections that read at once.
const READERS_MAX: usize = 4;

/// The open database. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Db {
    writer: Writer,
    readers: Arc<Mutex<Vec<Connection>>>,
    path: Arc<Path>,
    defaults: defaults_cache::Cache,
}

impl Db {
    /// Opens (or makes) the database in `data_dir`, brings its schema up to date and starts the writer.
    pub fn open(data_dir: &Path) -> Result<Self, Error> {
        let path = data_dir.join("icebox.db");
        let subject = path.display().to_string();
        let failed = |cause: rusqlite::Error| Error::new("open the database", &subject, cause);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        let mut space = Space::new(data_dir);
        let connection = space.open_with(|| {
            let mut connection = connect(&path, flags).map_err(failed)?;
            schema::migrate(&mut connection)?;
            Ok(connection)
        })?;
        space.fill();
        let writer = Writer::start(connection, Some(space), writer::DEFERRED_MAX)?;
        Ok(Self { writer, readers: Arc::default(), path: path.into(), defaults: defaults_cache::Cache::default() })
    }

    /// A connection of its own, for a process that makes one change.
    pub fn connect(data_dir: &Path) -> Result<Connection, Error> {
        let path = data_dir.join("icebox.db");
        let subject = path.display().to_string();
        let mut connection = connect(&path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)
            .map_err(|cause| Error::new("open the database", subject, cause))?;
        schema::migrate(&mut connection)?;
        Ok(connection)
    }

    /// Runs `change` in the next commit. On return it is on disk.
    pub async fn write<T: Send + 'static>(
        &self,
        operation: &'static str,
        change: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        self.writer.run(operation, Weight::Ordinary, change).await
    }

    /// Like [`Db::write`], for changes that end a box or free space: on a full disk they may use the whole reserve.
    pub async fn write_essential<T: Send + 'static>(
        &self,
        operation: &'static str,
        change: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        self.writer.run(operation, Weight::Essential, change).await
    }

    /// Hands `change` to the writer and does not wait. `after` is called in the writer's thread once it is on disk.
    pub fn write_later(
        &self,
        operation: &'static str,
        commit: Commit,
        change: impl FnOnce(&Connection) -> rusqlite::Result<()> + Send + 'static,
        after: impl FnOnce(bool) + Send + 'static,
    ) {
        self.writer.send(operation, commit, change, after);
    }

    /// Waits until all writes queued so far are on disk, so that a reader sees them. Usually none are pending.
    pub async fn settle(&self) -> Result<(), Error> {
        if self.writer.is_busy() { self.write("settle", |_| Ok(())).await } else { Ok(()) }
    }

    /// Writes the queued jobs and ends the writer's thread.
    pub async fn close(&self) {
        self.writer.close().await;
    }

    /// Becomes `true` when a commit has failed for another reason than a full disk. The disk cannot be trusted any more,
    /// so the daemon must stop.
    #[must_use]
    pub fn commit_failure(&self) -> CommitFailure {
        self.writer.commit_failure()
    }

    /// Runs a query on a reading connection.
    pub async fn read<T: Send + 'static>(
        &self,
        operation: &'static str,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let (readers, path) = (Arc::clone(&self.readers), Arc::clone(&self.path));
        let failed = move |cause: rusqlite::Error| Error::new(operation, "", cause);
        let work = tokio::task::spawn_blocking(move || {
            let idle = readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let connection = match idle {
                Some(connection) => connection,
                None => connect(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)?,
            };
            let answer = query(&connection);
            let mut idle = readers.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() < READERS_MAX {
                idle.push(connection);
            }
            answer
        });
        work.await.map_err(|_| Error::new(operation, "", Cause::WorkerEnded))?.map_err(failed)
    }
}

fn connect(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    if flags.contains(OpenFlags::SQLITE_OPEN_READ_WRITE) {
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "full")?;
        // Nothing is written before the commit, and no file but the database's own is needed.
        connection.pragma_update(None, "cache_spill", false)?;
        connection.pragma_update(None, "temp_store", "memory")?;
    }
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

/// The ids for which the query, whose only parameter is an id, has a row.
fn found(connection: &Connection, query: &str, ids: Vec<String>) -> rusqlite::Result<Vec<String>> {
    let mut query = connection.prepare_cached(query)?;
    let mut found = Vec::new();
    for id in ids {
        if query.exists([&id])? {
            found.push(id);
        }
    }
    Ok(found)
}

/// SQLite integers are signed: larger values do not occur in our counters, and would be capped rather than wrapped.
fn to_sql(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The inverse of [`to_sql`].
fn from_sql(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

#[cfg(test)]
mod tests;
