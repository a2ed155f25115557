//! Listing and cancelling runs.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use icebox_shim::handle::Scope;

use super::service::Runs;
use crate::boxes::{Awake, Entry};
use crate::db::RunRow;
use crate::domain::RunState;
use crate::error::Error;
use crate::refusal::Refusal;

/// Most runs of one answer.
const RUNS_LISTED_MAX: u64 = 1000;
/// Delay between SIGTERM and SIGKILL.
const CANCEL_GRACE: Duration = Duration::from_secs(2);

/// The runs of a box, newest first: those in flight from memory, the others from disk.
pub async fn runs_of(runs: &Runs, entry: &Arc<Entry>) -> Result<Vec<RunRow>, Error> {
    // Taken before the records are read: a run that ends in between is found there.
    let live = entry.runs.live();
    runs.db().settle().await?;
    let mut rows = runs.db().runs_of(&entry.id, RUNS_LISTED_MAX).await?;
    for run in live {
        if rows.iter().all(|row| row.number != run.number) {
            rows.push(run.row(&entry.id));
        }
    }
    rows.sort_by_key(|row| std::cmp::Reverse(row.number));
    Ok(rows)
}

/// Ends a run: sends SIGTERM to all its processes, and SIGKILL to the rest a little later. They are the processes of
/// its cgroup, so new sessions, other users and handlers of SIGTERM make no difference, and it works for a run whose
/// own process has ended already. A second request kills at once. An unknown run is answered quickly, since clients
/// send ids that the server never gave them.
///
/// The public clients cancel a stream by an id of their own making: it means the stream of that client.
///
/// `wake` wakes the box; it is called only if there is a process to signal.
pub async fn cancel(
    runs: &Runs,
    entry: &Arc<Entry>,
    run_id: &str,
    client: Option<SocketAddr>,
    wake: impl AsyncFnOnce() -> Result<Awake, Refusal>,
) -> Result<(), Refusal> {
    let handle = entry.handle();
    let (number, again) = match entry.runs.by_id(run_id).filter(|run| !run.hidden) {
        Some(run) => (run.number, !run.cancel()),
        None => match runs.db().run_state(&entry.id, run_id).await? {
            // Checked before the box is woken (or started) needlessly.
            Some((number, state)) if state != RunState::Running => match handle.has_processes(number).await? {
                true => (number, state == RunState::Cancelled),
                false => return Ok(()),
            },
            Some(_) => return Err(Refusal::NotFound("run does not exist".into())),
            None => match entry.runs.streamed_to(client) {
                Some(run) => (run.number, !run.cancel()),
                None => return Err(Refusal::NotFound("run does not exist".into())),
            },
        },
    };
    // A frozen process does not handle signals.
    let awake = wake().await?;
    if again {
        return signal(&handle, number, libc::SIGKILL).await;
    }
    if let Err(error) = signal(&handle, number, libc::SIGTERM).await {
        // For example, it forks faster than it can be signalled. The kernel kills a cgroup as a whole.
        tracing::debug!(box_id = entry.id, number, %error, "a cancelled run is killed without being asked to end");
        return signal(&handle, number, libc::SIGKILL).await;
    }
    tokio::spawn(async move {
        tokio::time::sleep(CANCEL_GRACE).await;
        if let Err(refusal) = signal(&handle, number, libc::SIGKILL).await {
            tracing::warn!(box_id = awake.entry.id, number, %refusal, "cannot end a cancelled run");
        }
    });
    Ok(())
}

/// Signals all processes of a run. One that has just ended is not an error.
async fn signal(handle: &icebox_shim::handle::BoxHandle, number: u64, signal: i32) -> Result<(), Refusal> {
    match handle.signal(number, signal, Scope::Tree).await {
        Err(error) if error.kind() != icebox_shim::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}
