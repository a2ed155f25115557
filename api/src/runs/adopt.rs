//! Runs of an earlier run of the daemon: live ones are taken over, ended ones recorded, those of a stopped box given
//! up.

use std::collections::HashSet;
use std::sync::Arc;

use icebox_shim::ErrorKind;
use icebox_shim::handle::{RunEvent, RunStatus};

use super::collect::Tail;
use super::command::{prompt_of, stopped_text};
use super::finish::tell_init;
use super::service::Runs;
use super::start::read_label;
use super::ticket::{Ended, Ticket};
use crate::boxes::{Entry, LiveRun, WorkKind};
use crate::clock;
use crate::db::{Commit, FinishedRun, LogRow, RunRow};
use crate::domain::RunState;
use crate::events::{Fact, RunEnd};
use crate::refusal::Refusal;
use crate::text::one_line;

/// Takes over the runs that the init of a box knows. The box must be awake; the caller holds its lifecycle lock.
pub async fn adopt(runs: &Runs, entry: &Arc<Entry>) -> Result<(), Refusal> {
    let known = entry.handle().runs().await.map_err(Refusal::from)?;
    // The init command of an earlier daemon has no record, and its processes keep its cgroup.
    entry.runs.raise(entry.handle().find_leaves().await.map_err(Refusal::from)?);
    let numbers: HashSet<u64> = known.iter().map(|status| status.run).collect();
    for status in known {
        entry.runs.raise(status.run);
        if !entry.runs.has(status.run) {
            take_over(runs, entry, status).await;
        }
    }
    fail_missing(runs, entry, &numbers).await
}

/// The box has no processes any more: runs recorded as running have ended with it.
pub async fn fail_orphans(runs: &Runs, entry: &Arc<Entry>) -> Result<(), Refusal> {
    fail_missing(runs, entry, &HashSet::new()).await
}

async fn fail_missing(runs: &Runs, entry: &Arc<Entry>, known: &HashSet<u64>) -> Result<(), Refusal> {
    let missing = |run: &RunRow| !known.contains(&run.number) && !entry.runs.has(run.number);
    for run in runs.db().runs_in_flight(&entry.id).await?.into_iter().filter(missing) {
        let ended_ms = clock::unix_ms();
        let event = entry.event(Fact::RunEnded(Box::new(RunEnd {
            run_id: run.id.clone(),
            command: one_line(&run.prompt),
            state: RunState::Failed,
            exit_code: None,
            signal: None,
            duration_ms: ended_ms - run.started_ms,
            cpu_ns: 0,
            memory_peak_bytes: 0,
            oom_kills: 0,
            message: Some(stopped_text().to_owned()),
            hidden: false,
        })));
        let run = RunRow {
            state: RunState::Failed,
            ended_ms: Some(ended_ms),
            error_message: Some(stopped_text().to_owned()),
            ..run
        };
        let logs = LogRow::of(&event);
        runs.db().run_finished(FinishedRun { run, sample: None, logs, hidden: false }, Commit::Soon, |_| ());
        runs.events().publish(event);
    }
    Ok(())
}

/// Attaches to a run and reads it to its end, in a task of its own.
async fn take_over(runs: &Runs, entry: &Arc<Entry>, status: RunStatus) {
    let (id, hidden) = read_label(&status.label);
    let started_ms = i64::try_from(status.started_unix_ms).unwrap_or_else(|_| clock::unix_ms());
    let run = Arc::new(LiveRun::new(status.run, id, prompt_of(&status.argv), started_ms, hidden));
    let work = (!hidden && status.exit.is_none()).then(|| entry.activity.begin(WorkKind::Run));
    // It runs already: the limit applies to new ones.
    entry.runs.enter(Arc::clone(&run), u32::MAX);
    let ticket = Ticket { runs: runs.clone(), entry: Arc::clone(entry), run, work };
    let attached = match entry.handle().attach(status.run).await {
        Ok(attached) => attached,
        Err(error) if error.kind() == ErrorKind::NotFound => return,
        Err(error) => {
            tracing::warn!(box_id = entry.id, number = status.run, error = error.report(), "cannot take over a run");
            return;
        }
    };
    let (mut events, input) = attached.split();
    drop(input);
    let ended_ms = status.ended_unix_ms.and_then(|ms| i64::try_from(ms).ok());
    let reading = tokio::spawn(async move {
        let mut tail = Tail::default();
        let exit = loop {
            match events.next().await {
                Ok(Some(RunEvent::Stdout(bytes) | RunEvent::Stderr(bytes))) => tail.add(&bytes),
                Ok(Some(RunEvent::Dropped(_))) => {}
                Ok(Some(RunEvent::Exit(exit))) => break Ok(exit),
                Ok(None) => break Err(icebox_shim::Error::new(ErrorKind::Gone, "read run's output", "")),
                Err(error) => break Err(error),
            }
        };
        let ended_ms = ended_ms.unwrap_or_else(clock::unix_ms);
        ticket.finish(Ended { exit, tail: tail.bytes(), ended_ms, events: Some(events), truncated: false }).await
    });
    // An ended one is recorded before the box is served, so that its owner finds the exit at once.
    if status.exit.is_some() && reading.await.is_err() {
        tracing::error!(box_id = entry.id, number = status.run, "taking over a run panicked");
    }
}

/// Tells the init which runs were recorded while the box slept.
pub fn acknowledge_late(entry: &Arc<Entry>) {
    let numbers = entry.runs.take_unacknowledged();
    if numbers.is_empty() {
        return;
    }
    let (entry, work) = (Arc::clone(entry), entry.activity.begin(WorkKind::Settling));
    tokio::spawn(async move {
        for number in numbers {
            tell_init(&entry, number).await;
        }
        drop(work);
    });
}
