//! The asynchronous handle of a box that the API holds.
//!
//! Owns: the client side of the control protocol, the box's cgroup as seen from the host (a leaf per run, freezing,
//! killing, usage), and the state of the init process. Holds the box's cgroup and its init by descriptors, and looks
//! for both again when they are gone. Holds no connection: each operation makes its own, so a handle outlives restarts
//! on either side. Leaves out: every decision (when to freeze, what to bill).

mod cgroup;
mod conn;
mod ended;
mod files;
mod held;
mod late_kills;
mod leaf_pool;
mod leaves;
mod memory;
mod proc_files;
mod process;
mod run;
mod still;

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

pub use crate::protocol::{
    EntryKind, ExecRequest, Exit, ExitStatus, FileEntry, FileStat, Hello, RunStatus, Scope, Winsize,
};
pub use cgroup::{BoxUsage, CpuReading, check_parent};
pub use ended::LateKills;
pub use files::{FileReader, FileWriter};
pub use icebox_runtime::cgroup::{Pressure, Stall};
pub use leaves::RunUsage;
pub use memory::{BoxMemory, BoxPressure, Footprint, Reclaimed};
pub use process::boot_id;
pub use run::{Run, RunEvent, RunEvents, RunInput};

use icebox_runtime::cgroup::CgroupPath;

use crate::error::{Error, ErrorKind};
use crate::procfiles::Kept;
use crate::protocol::{Answer, Entry, FrameType, Operation, SignalMessage, Started, decode};
use conn::{Connection, RESPONSE_MS_MAX, unexpected};

/// Most runs in a list; the guard against a hostile init.
const RUNS_MAX: usize = 8192;

/// A box as the API reaches it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct BoxHandle {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    run_dir: PathBuf,
    /// Below the cgroup root; `None` for an init that runs without cgroups (tests of the protocol).
    cgroup: Option<CgroupPath>,
    /// The box's cgroup as it was found last.
    held: held::HeldCgroup,
    init: process::Held,
    /// The files of its `/proc` that tell of it.
    files: OnceLock<Kept>,
    uid_base: u32,
}

impl BoxHandle {
    /// A handle for the box with this run directory and cgroup. Connects to nothing; the cgroup need not exist yet.
    ///
    /// # Errors
    /// `InvalidInput` if `cgroup` is not a plain relative path.
    pub fn open(run_dir: &Path, cgroup: &str, uid_base: u32) -> Result<Self, Error> {
        let path = held::check_path(cgroup)?;
        Ok(Self::build(run_dir, Some(path), uid_base))
    }

    /// A handle for an init that lives in no cgroup of ours: runs get no leaf, and everything that needs the box's
    /// cgroup answers `NotFound`. For driving an init outside a box.
    #[must_use]
    pub fn open_without_cgroup(run_dir: &Path) -> Self {
        Self::build(run_dir, None, 0)
    }

    fn build(run_dir: &Path, cgroup: Option<CgroupPath>, uid_base: u32) -> Self {
        let (held, init, files) = Default::default();
        Self { inner: Arc::new(Inner { run_dir: run_dir.to_owned(), cgroup, held, init, files, uid_base }) }
    }

    /// True if the init process exists, has this start time and boot id, and has not ended.
    #[must_use]
    pub fn alive(&self, pid: i32, start_time_ticks: u64, boot_id: &str) -> bool {
        self.inner.init.alive(pid, start_time_ticks, boot_id)
    }

    /// Returns when the init has ended; reaps it if it is this process's child.
    pub async fn wait_dead(&self, pid: i32, start_time_ticks: u64, boot_id: &str) {
        self.inner.init.wait_dead(pid, start_time_ticks, boot_id).await;
    }

    /// Asks the init for its version and pid.
    ///
    /// # Errors
    /// `Gone` if no init listens, `Timeout` if it does not answer (a frozen box).
    pub async fn hello(&self, deadline: Duration) -> Result<Hello, Error> {
        match self.request(Operation::Hello, &[], deadline).await?.1 {
            Answer::Hello(hello) => Ok(hello),
            _ => Err(wrong_answer()),
        }
    }

    /// Starts a run in a leaf cgroup that no other run has, and attaches to it.
    ///
    /// # Errors
    /// `NotFound` for the program, user or folder; `PermissionDenied`; `AlreadyExists` for a known run number; `Limit`
    /// when the box is out of processes; `Gone`. The leaf is removed then.
    pub async fn exec(&self, request: ExecRequest) -> Result<Run, Error> {
        let (run, ends_with_client) = (request.run, request.kill_on_disconnect);
        if let Some(files) = self.inner.files.get() {
            files.refresh_unwatched();
        }
        let leaf = self.make_leaf(run)?;
        let fds = leaf.borrowed();
        let deadline = Duration::from_millis(RESPONSE_MS_MAX);
        let started = self.request(Operation::Exec(request), &fds, deadline).await.and_then(|(connection, answer)| {
            // The init kills what is left of a run that ends with its client, a while after the end of the run.
            if let Answer::Started(Started { finds_leaves: true, .. }) = &answer
                && !ends_with_client
            {
                leaf.may_return(run);
            }
            started(connection, answer)
        });
        if let Err(error) = &started {
            drop(fds);
            // After a timeout the run may exist: its leaf is swept when it is empty.
            if error.kind() != ErrorKind::AlreadyExists {
                self.drop_leaf(run, leaf).await;
            }
        }
        started
    }

    /// The runs that live, or ended and were not acknowledged.
    ///
    /// # Errors
    /// `Gone`, `Timeout`.
    pub async fn runs(&self) -> Result<Vec<RunStatus>, Error> {
        let deadline = Duration::from_millis(RESPONSE_MS_MAX);
        let (mut connection, _) = self.request(Operation::Runs, &[], deadline).await?;
        let mut all = Vec::new();
        while let Some(entry) = next_item(&mut connection).await? {
            match entry {
                Entry::Run(status) if all.len() < RUNS_MAX => all.push(status),
                _ => return Err(wrong_answer()),
            }
        }
        Ok(all)
    }

    /// Attaches to a run: the kept tail of its output first, then what comes.
    ///
    /// # Errors
    /// `NotFound` if the init does not know the run (any more); `Gone`, `Timeout`.
    pub async fn attach(&self, run: u64) -> Result<Run, Error> {
        let deadline = Duration::from_millis(RESPONSE_MS_MAX);
        let (connection, answer) = self.request(Operation::Attach { run }, &[], deadline).await?;
        started(connection, answer)
    }

    /// Lets the init forget a finished run. An unknown run is forgotten already.
    ///
    /// # Errors
    /// `AlreadyExists` if the run still lives; `Gone`, `Timeout`.
    pub async fn ack(&self, run: u64) -> Result<(), Error> {
        let deadline = Duration::from_millis(RESPONSE_MS_MAX);
        self.request(Operation::Ack { run }, &[], deadline).await.map(drop)
    }

    /// Sends a signal to a run's direct process, or to every process of its tree. The tree is the run's leaf cgroup,
    /// which no process can leave; it is signalled from the host side and needs no answer from the init.
    ///
    /// # Errors
    /// `NotFound` if the run is unknown or over, `InvalidInput` for a bad signal.
    pub async fn signal(&self, run: u64, signal: i32, scope: Scope) -> Result<(), Error> {
        if scope == Scope::Tree && self.inner.cgroup.is_some() {
            return self.signal_leaf(run, signal).await;
        }
        let message = SignalMessage { signal, scope };
        let deadline = Duration::from_millis(RESPONSE_MS_MAX);
        self.request(Operation::Signal { run, message }, &[], deadline).await.map(drop)
    }

    async fn request(
        &self,
        operation: Operation,
        fds: &[BorrowedFd<'_>],
        deadline: Duration,
    ) -> Result<(Connection, Answer), Error> {
        Connection::request(&self.inner.run_dir, operation, fds, deadline).await
    }
}

fn wrong_answer() -> Error {
    Error::new(ErrorKind::Internal, "unexpected answer from init", "")
}

fn started(connection: Connection, answer: Answer) -> Result<Run, Error> {
    match answer {
        Answer::Started(started) => Ok(Run::new(connection, started)),
        _ => Err(wrong_answer()),
    }
}

/// The next item of a list answer, `None` at its end.
async fn next_item(connection: &mut Connection) -> Result<Option<Entry>, Error> {
    let deadline = Duration::from_millis(RESPONSE_MS_MAX);
    let frame = tokio::time::timeout(deadline, connection.next_frame())
        .await
        .map_err(|e| Error::new(ErrorKind::Timeout, "wait for list", "").because(e))??;
    match frame {
        Some(frame) if frame.kind == FrameType::Item => decode(&frame.payload).map(Some),
        Some(frame) if frame.kind == FrameType::End => Ok(None),
        Some(frame) => Err(unexpected(&frame)),
        None => Err(Error::new(ErrorKind::Gone, "read list", "closed")),
    }
}
