//! The one thread that writes, and its group commit.
//!
//! A commit costs a flush of the disk. A write that a caller waits for is committed at once. Writes that none waits for
//! are deferred for a few milliseconds, so that one commit carries several; an awaited write takes them along.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::Thread;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot, watch};

use super::space::{Room, Space, disk_full, is_disk_full};
use crate::error::{Cause, Error};

/// Most jobs in the queue; beyond this, callers wait.
const QUEUE_JOBS_MAX: usize = 4096;
/// Most jobs of one commit.
const GROUP_JOBS_MAX: usize = 512;

/// How long a deferred write waits for others.
pub(super) const DEFERRED_MAX: Duration = Duration::from_millis(20);

/// Becomes `true` once a commit has failed for another reason than a full disk.
pub type CommitFailure = watch::Receiver<bool>;

/// Condition under which a write is accepted on a full disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Weight {
    /// While the first half of the reserve lasts.
    Ordinary,
    /// While any of the reserve is left.
    Essential,
}

/// When a write is committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Commit {
    /// At once: a caller waits for it.
    Now,
    /// With the next write that is committed now, or some milliseconds later.
    Soon,
}

/// Runs inside the transaction, or gets the error that there is none. Returns whether to keep its changes, and a
/// function to call with the outcome of the commit.
type Job = Box<dyn FnOnce(Result<&Connection, Arc<rusqlite::Error>>) -> (bool, Completion) + Send>;
type Completion = Box<dyn FnOnce(Result<(), Arc<rusqlite::Error>>) + Send>;

enum Message {
    Job(Commit, Weight, Job),
    Close(oneshot::Sender<()>),
}

#[derive(Debug, Clone)]
pub(super) struct Writer {
    queue: mpsc::Sender<Message>,
    /// The thread that writes. It parks while deferred writes wait for others.
    thread: Thread,
    failed: watch::Receiver<bool>,
    /// Jobs queued and not yet on disk.
    outstanding: Arc<AtomicUsize>,
}

/// Counts a job from its creation to its end, in every case.
struct Outstanding(Arc<AtomicUsize>);

impl Outstanding {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Outstanding {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Writer {
    /// Starts the thread. A database in memory has no `space`. A deferred write waits for others for `deferral`.
    pub(super) fn start(connection: Connection, space: Option<Space>, deferral: Duration) -> Result<Self, Error> {
        let (queue, jobs) = mpsc::channel(QUEUE_JOBS_MAX);
        let (fail, failed) = watch::channel(false);
        let thread = std::thread::Builder::new()
            .name("db-writer".into())
            .spawn(move || write_loop(connection, space, jobs, deferral, &fail))
            .map_err(|cause| Error::new("start the database writer", "", cause))?;
        Ok(Self { queue, thread: thread.thread().clone(), failed, outstanding: Arc::default() })
    }

    /// True if a queued job is not on disk yet.
    pub(super) fn is_busy(&self) -> bool {
        self.outstanding.load(Ordering::SeqCst) > 0
    }

    pub(super) fn commit_failure(&self) -> CommitFailure {
        self.failed.clone()
    }

    pub(super) async fn run<T: Send + 'static>(
        &self,
        operation: &'static str,
        weight: Weight,
        change: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, answered) = oneshot::channel();
        let outstanding = Outstanding::new(&self.outstanding);
        let job: Job = Box::new(move |connection| {
            let done = match connection {
                Ok(connection) => change(connection).map_err(|cause| Error::new(operation, "", cause)),
                Err(cause) => Err(Error::new(operation, "", Cause::Commit(cause))),
            };
            let stays = done.is_ok();
            let complete: Completion = Box::new(move |committed| {
                let outcome = match (done, committed) {
                    (Ok(_), Err(cause)) => Err(Error::new(operation, "", Cause::Commit(cause))),
                    (done, _) => done,
                };
                drop(outstanding);
                // The caller may have gone; the change stays.
                let _ = answer.send(outcome);
            });
            (stays, complete)
        });
        let ended = || Error::new(operation, "", Cause::WorkerEnded);
        self.queue.send(Message::Job(Commit::Now, weight, job)).await.map_err(|_| ended())?;
        self.thread.unpark();
        answered.await.map_err(|_| ended())?
    }

    pub(super) fn send(
        &self,
        operation: &'static str,
        commit: Commit,
        change: impl FnOnce(&Connection) -> rusqlite::Result<()> + Send + 'static,
        after: impl FnOnce(bool) + Send + 'static,
    ) {
        let outstanding = Outstanding::new(&self.outstanding);
        let job: Job = Box::new(move |connection| {
            let stays = match connection.map(change) {
                Ok(Ok(())) => true,
                Ok(Err(cause)) => {
                    tracing::error!(operation, %cause, "a write was refused by the database");
                    false
                }
                Err(_) => false,
            };
            let complete: Completion = Box::new(move |committed| {
                drop(outstanding);
                after(stays && committed.is_ok());
            });
            (stays, complete)
        });
        match self.queue.try_send(Message::Job(commit, Weight::Ordinary, job)) {
            Ok(()) if commit == Commit::Now => self.thread.unpark(),
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(message)) => {
                // Rare: the disk is far behind. Wait in a separate task rather than lose a record.
                let queue = self.queue.clone();
                tokio::spawn(async move { queue.send(message).await.is_ok() });
            }
            Err(mpsc::error::TrySendError::Closed(_)) => {
                tracing::warn!(operation, "a write came after the database was closed");
            }
        }
    }

    pub(super) async fn close(&self) {
        let (done, ended) = oneshot::channel();
        if self.queue.send(Message::Close(done)).await.is_ok() {
            self.thread.unpark();
            // An error means that the thread has ended already, as wanted.
            let _ = ended.await;
        }
    }
}

fn write_loop(
    connection: Connection,
    mut space: Option<Space>,
    mut jobs: mpsc::Receiver<Message>,
    deferral: Duration,
    fail: &watch::Sender<bool>,
) {
    let mut closing = None;
    while closing.is_none() {
        let Some(first) = jobs.blocking_recv() else { break };
        let group = collect_group(first, &mut jobs, deferral, &mut closing);
        if !group.is_empty() {
            let room = room(&connection, space.as_mut());
            commit_accepted(&connection, room, group, fail);
        }
    }
    // After `close` the queue still holds earlier jobs.
    while let Some(message) = jobs.blocking_recv() {
        if let Message::Job(_, weight, job) = message {
            let room = room(&connection, space.as_mut());
            commit_accepted(&connection, room, vec![(weight, job)], fail);
        }
    }
    if space.is_some() {
        // Closing the last connection removes the log with its reserved blocks, and on a full disk they might not be
        // available at the next start. So this connection is never closed.
        std::mem::forget(connection);
    }
    if let Some(done) = closing {
        // The caller may have gone.
        let _ = done.send(());
    }
}

/// The writes of one commit: `first` and what comes with it. If none of them is awaited, waits for more.
fn collect_group(
    first: Message,
    jobs: &mut mpsc::Receiver<Message>,
    deferral: Duration,
    closing: &mut Option<oneshot::Sender<()>>,
) -> Vec<(Weight, Job)> {
    let end = Instant::now() + deferral;
    let mut group = Vec::new();
    let mut is_awaited = false;
    let mut next = Some(first);
    loop {
        while let Some(message) = next {
            match message {
                Message::Job(commit, weight, job) => {
                    is_awaited |= commit == Commit::Now;
                    group.push((weight, job));
                }
                Message::Close(done) => {
                    *closing = Some(done);
                    jobs.close();
                }
            }
            next = if group.len() < GROUP_JOBS_MAX { jobs.try_recv().ok() } else { None };
        }
        let left = end.saturating_duration_since(Instant::now());
        if is_awaited || closing.is_some() || group.len() >= GROUP_JOBS_MAX || left.is_zero() {
            return group;
        }
        // A deferred write does not wake this thread. An awaited one and the close do.
        std::thread::park_timeout(left);
        next = jobs.try_recv().ok();
    }
}

fn room(connection: &Connection, space: Option<&mut Space>) -> Room {
    space.map_or(Room::All, |space| space.room(connection))
}

/// Commits the jobs that the disk has room for, and refuses the others.
fn commit_accepted(connection: &Connection, room: Room, group: Vec<(Weight, Job)>, fail: &watch::Sender<bool>) {
    let (accepted, refused): (Vec<_>, Vec<_>) =
        group.into_iter().partition(|(weight, _)| room == Room::All || *weight == Weight::Essential);
    if !refused.is_empty() {
        tracing::warn!(writes = refused.len(), "the disk is full: writes are refused");
        refuse(refused.into_iter().map(|(_, job)| job), disk_full());
    }
    if !accepted.is_empty() {
        commit_group(connection, accepted.into_iter().map(|(_, job)| job).collect(), fail);
    }
}

/// Runs a group of jobs in one transaction. Each job has its own savepoint, so that one that fails undoes only itself.
fn commit_group(connection: &Connection, group: Vec<Job>, fail: &watch::Sender<bool>) {
    if let Err(cause) = run(connection, "BEGIN IMMEDIATE") {
        return refuse_group(group, cause, fail);
    }
    let mut completions = Vec::with_capacity(group.len());
    for job in group {
        completions.push(run_in_savepoint(connection, job));
    }
    let committed = run(connection, "COMMIT").map_err(Arc::new);
    if let Err(cause) = &committed {
        // Leaves no transaction open; a failure changes nothing now.
        let _ = connection.execute_batch("ROLLBACK");
        if is_disk_full(cause) {
            tracing::error!(%cause, writes = completions.len(), "the disk is full: writes are lost");
        } else {
            tracing::error!(%cause, "a commit failed: the database cannot be trusted any more");
            fail.send_replace(true);
        }
    }
    completions.into_iter().for_each(|complete| complete(committed.clone()));
}

/// Runs a statement that is compiled once.
fn run(connection: &Connection, sql: &str) -> rusqlite::Result<()> {
    connection.prepare_cached(sql)?.execute([]).map(drop)
}

/// The transaction could not even begin (disk error, or another process holds the lock far too long): every job fails.
fn refuse_group(group: Vec<Job>, cause: rusqlite::Error, fail: &watch::Sender<bool>) {
    let passing = is_disk_full(&cause) || cause.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy);
    tracing::error!(%cause, jobs = group.len(), "cannot begin a transaction");
    refuse(group.into_iter(), cause);
    if !passing {
        fail.send_replace(true);
    }
}

fn refuse(jobs: impl Iterator<Item = Job>, cause: rusqlite::Error) {
    let cause = Arc::new(cause);
    for job in jobs {
        let (_, complete) = job(Err(Arc::clone(&cause)));
        complete(Err(Arc::clone(&cause)));
    }
}

/// Runs one job; if it returns an error or panics, its changes are undone.
fn run_in_savepoint(connection: &Connection, job: Job) -> Completion {
    let refused: Completion = Box::new(|_| ());
    if run(connection, "SAVEPOINT job").is_err() {
        // Dropping the job tells its caller that the worker failed.
        return refused;
    }
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job(Ok(connection))));
    let stays = matches!(outcome, Ok((true, _)));
    let undone = if stays { Ok(()) } else { run(connection, "ROLLBACK TO job") };
    if let Err(cause) = undone.and_then(|()| run(connection, "RELEASE job")) {
        tracing::error!(%cause, "cannot end a savepoint");
    }
    match outcome {
        Ok((_, complete)) => complete,
        Err(_) => {
            tracing::error!("a database job panicked");
            refused
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Longer than any test: a deferred write is not committed by itself.
    const FOR_EVER: Duration = Duration::from_secs(3600);

    fn writer() -> Writer {
        writer_that_defers(FOR_EVER)
    }

    fn writer_that_defers(deferral: Duration) -> Writer {
        let connection = Connection::open_in_memory().expect("a database in memory");
        connection.execute_batch("CREATE TABLE t (x INTEGER UNIQUE) STRICT").expect("a table");
        Writer::start(connection, None, deferral).expect("a thread")
    }

    async fn count(writer: &Writer) -> i64 {
        writer
            .run("count", Weight::Ordinary, |c| c.query_row("SELECT count(*) FROM t", [], |row| row.get(0)))
            .await
            .expect("a count")
    }

    #[tokio::test]
    async fn a_failed_job_undoes_only_itself() {
        let writer = writer();
        let good = writer.run("insert", Weight::Ordinary, |c| c.execute("INSERT INTO t VALUES (1)", []));
        let bad = writer.run("insert two", Weight::Ordinary, |c| {
            c.execute("INSERT INTO t VALUES (2)", [])?;
            c.execute("INSERT INTO t VALUES (1)", [])
        });
        let (good, bad) = tokio::join!(good, bad);
        assert_eq!(good.expect("the first"), 1);
        assert!(bad.expect_err("a duplicate").chain().contains("UNIQUE"));
        assert_eq!(count(&writer).await, 1);
    }

    #[tokio::test]
    async fn a_full_disk_refuses_single_writes_and_ends_nothing() {
        let writer = writer();
        let full = "PRAGMA max_page_count = 1; CREATE TABLE more (x INTEGER)";
        let refused = writer.run("grow", Weight::Ordinary, move |c| c.execute_batch(full)).await.expect_err("no space");
        assert!(refused.is_disk_full(), "{}", refused.chain());
        assert!(!*writer.commit_failure().borrow());
        assert_eq!(count(&writer).await, 0);

        // With the first half of the reserve used up, only writes that end a box are accepted.
        let connection = Connection::open_in_memory().expect("a database in memory");
        let (answer, answers) = std::sync::mpsc::channel();
        let group = [Weight::Ordinary, Weight::Essential].map(|weight| {
            let answer = answer.clone();
            let job: Job = Box::new(move |connection| {
                answer.send((weight, connection.is_ok())).expect("a receiver");
                (connection.is_ok(), Box::new(|_| ()))
            });
            (weight, job)
        });
        commit_accepted(&connection, Room::Essential, group.into(), &watch::channel(false).0);
        let answers: Vec<_> = answers.try_iter().collect();
        assert_eq!(answers, [(Weight::Ordinary, false), (Weight::Essential, true)]);
    }

    #[tokio::test]
    async fn a_panicking_job_neither_ends_the_writer_nor_leaves_anything() {
        let writer = writer();
        let outcome = writer
            .run("panic", Weight::Ordinary, |c| -> rusqlite::Result<()> {
                c.execute("INSERT INTO t VALUES (1)", [])?;
                panic!("on purpose");
            })
            .await;
        assert!(outcome.is_err());
        assert_eq!(count(&writer).await, 0);
    }

    /// Sends a deferred write of `n` that tells when it runs and when it is on disk.
    fn send_telling(writer: &Writer, commit: Commit, n: i64, told: &std::sync::mpsc::Sender<(&'static str, i64)>) {
        let (runs, done) = (told.clone(), told.clone());
        let change = move |c: &Connection| {
            runs.send(("runs", n)).expect("a receiver");
            c.execute("INSERT INTO t VALUES (?1)", [n]).map(|_| ())
        };
        writer.send("insert", commit, change, move |ok| {
            assert!(ok);
            done.send(("is on disk", n)).expect("a receiver");
        });
    }

    #[tokio::test]
    async fn deferred_writes_share_the_commit_of_an_awaited_one() {
        let writer = writer();
        let (told, events) = std::sync::mpsc::channel();
        for n in [1, 2] {
            send_telling(&writer, Commit::Soon, n, &told);
        }
        assert_eq!(count(&writer).await, 2, "an awaited call is not deferred, and comes after them");
        let order: Vec<_> = events.try_iter().collect();
        assert_eq!(order, [("runs", 1), ("runs", 2), ("is on disk", 1), ("is on disk", 2)]);
        // With a reply after the commit, a record of a run is awaited through its callback.
        send_telling(&writer, Commit::Soon, 3, &told);
        send_telling(&writer, Commit::Now, 4, &told);
        let order: Vec<_> = events.iter().take(4).collect();
        assert_eq!(order, [("runs", 3), ("runs", 4), ("is on disk", 3), ("is on disk", 4)]);
    }

    #[tokio::test]
    async fn a_deferred_write_is_committed_without_another_one() {
        let writer = writer_that_defers(Duration::from_millis(1));
        let (told, events) = std::sync::mpsc::channel();
        send_telling(&writer, Commit::Soon, 1, &told);
        assert_eq!(events.iter().take(2).collect::<Vec<_>>(), [("runs", 1), ("is on disk", 1)]);
    }

    #[tokio::test]
    async fn jobs_sent_before_the_close_are_done() {
        let writer = writer();
        let done = Arc::new(AtomicUsize::new(0));
        for n in 0..100 {
            let done = Arc::clone(&done);
            writer.send(
                "insert",
                Commit::Soon,
                move |c| c.execute("INSERT INTO t VALUES (?1)", [n]).map(|_| ()),
                move |ok| {
                    done.fetch_add(usize::from(ok), Ordering::SeqCst);
                },
            );
        }
        writer.close().await;
        assert_eq!(done.load(Ordering::SeqCst), 100);
        assert!(writer.run("late", Weight::Ordinary, |_| Ok(())).await.is_err());
    }
}
