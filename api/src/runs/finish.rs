//! The end of a run: its usage, its record, and the message that lets the init forget it.

use std::sync::Arc;

use icebox_shim::ErrorKind;
use icebox_shim::handle::{Exit, ExitStatus, RunUsage};

use super::command::stopped_text;
use super::ticket::{EXEC_OUTPUT_BYTES_MAX, Ended, Finished, Ticket};
use crate::boxes::{Entry, WorkKind, Write};
use crate::db::{Commit, FinishedRun, LogRow, RunRow};
use crate::domain::RunState;
use crate::events::{Event, Fact, NamedRun, RunEnd};
use crate::text::one_line;

/// Most bytes of the end of a run's output in its record.
pub(super) const RECORDED_OUTPUT_BYTES: usize = 4096;
/// Exit code of a run whose box stopped: as for SIGKILL.
const EXIT_KILLED: i32 = 137;

impl Ticket {
    /// Puts a record of the run on disk while it is in flight, if it takes long.
    pub(super) fn record_if_it_lasts(&self) {
        if !self.run.hidden {
            self.runs.lasting().watch(self.runs.db(), &self.entry, &self.run);
        }
    }

    /// Reads the usage of the run and records its end. On return these are known; the record is on its way to disk, or
    /// there, as configured.
    pub async fn finish(mut self, mut ended: Ended) -> Finished {
        let usage = if ended.events.is_some() { self.usage(ended.exit.as_ref().ok()) } else { RunUsage::default() };
        let finished = self.judge(&ended, &usage);
        let event = self.event(&ended, &finished, &usage);
        let record = FinishedRun {
            run: self.row(&ended, &finished, &usage),
            sample: self.entry.meter.read(&self.entry.id, &self.entry.handle(), None, Write::IfChanged, "run"),
            logs: LogRow::of(&event),
            hidden: self.run.hidden,
        };
        if usage.oom_kills > 0 && !self.run.hidden {
            let run = NamedRun { run_id: self.run.id.clone(), command: one_line(&self.run.prompt) };
            let killed = Fact::OutOfMemory { run: Some(run), processes: usage.oom_kills, background: false };
            self.runs.events().publish(self.entry.event(killed));
        }
        self.runs.events().publish(event);
        self.entry.runs.leave(self.run.number);
        self.work = None;
        let (committed, on_disk) = tokio::sync::oneshot::channel();
        let commit = if self.runs.reply_after_commit { Commit::Now } else { Commit::Soon };
        // The init is told after the commit. A frozen one reads it when it is thawed.
        let events = ended.events.take().filter(|_| !finished.lost);
        let (entry, number, runtime) = (Arc::clone(&self.entry), self.run.number, tokio::runtime::Handle::current());
        self.runs.db().run_finished(record, commit, move |stored| {
            if let Some(events) = events.filter(|_| stored)
                && events.acknowledge().is_err()
            {
                // The init is of an earlier version, or has ended.
                runtime.spawn(async move {
                    let awake = entry.activity.begin(WorkKind::Settling);
                    tell_init(&entry, number).await;
                    drop(awake);
                });
            }
            // The caller may have gone.
            let _ = committed.send(());
        });
        if self.runs.reply_after_commit {
            // An error means that the database was closed: the daemon is stopping.
            let _ = on_disk.await;
        }
        finished
    }

    fn usage(&self, exit: Option<&Exit>) -> RunUsage {
        self.entry.handle().finish(self.run.number, exit).unwrap_or_else(|error| {
            if error.kind() != ErrorKind::NotFound {
                let (box_id, number) = (&self.entry.id, self.run.number);
                tracing::warn!(box_id, number, error = error.report(), "cannot read what a run used");
            }
            RunUsage::default()
        })
    }

    fn judge(&self, ended: &Ended, usage: &RunUsage) -> Finished {
        let cancelled = self.run.is_cancelled();
        let (exit_code, timed_out, lost) = match &ended.exit {
            // Also if its output was cut: the program's own status is what it ended with. `truncated` and the text tell of
            // the cut.
            Ok(exit) => (exit.code(), exit.timed_out, false),
            Err(_) => (EXIT_KILLED, false, true),
        };
        let killed = matches!(&ended.exit, Ok(Exit { status: ExitStatus::Signal(libc::SIGKILL), .. }));
        let state = match exit_code {
            _ if cancelled => RunState::Cancelled,
            0 if !lost => RunState::Completed,
            _ => RunState::Failed,
        };
        let ending = match (cancelled, lost, timed_out) {
            (true, _, _) => Some("cancelled".to_owned()),
            (_, true, _) => Some(stopped_text().to_owned()),
            (_, _, true) => Some("timed out".to_owned()),
            _ if ended.truncated => Some(format!("its output was cut at {EXEC_OUTPUT_BYTES_MAX} bytes")),
            _ => None,
        };
        let alone = killed && ending.is_none();
        let out_of_memory = out_of_memory_text(usage.oom_kills, alone);
        let notes: Vec<String> = ending.into_iter().chain(out_of_memory.clone()).collect();
        let error_message = (!notes.is_empty()).then(|| notes.join("; "));
        Finished { exit_code, state, cpu_ns: usage.cpu_ns, error_message, out_of_memory, timed_out, lost }
    }

    fn row(&self, ended: &Ended, finished: &Finished, usage: &RunUsage) -> RunRow {
        let tail = ended.tail.get(ended.tail.len().saturating_sub(RECORDED_OUTPUT_BYTES)..).unwrap_or_default();
        RunRow {
            state: finished.state,
            ended_ms: Some(ended.ended_ms),
            exit_code: Some(finished.exit_code),
            cpu_ns: finished.cpu_ns,
            memory_peak_bytes: (usage.memory_peak_bytes > 0).then_some(usage.memory_peak_bytes),
            oom_kills: usage.oom_kills,
            output: (!tail.is_empty()).then(|| String::from_utf8_lossy(tail).into_owned()),
            error_message: finished.error_message.clone(),
            ..self.run.row(&self.entry.id)
        }
    }

    fn event(&self, ended: &Ended, finished: &Finished, usage: &RunUsage) -> Event {
        let signal = match &ended.exit {
            Ok(Exit { status: ExitStatus::Signal(signal), .. }) => Some(*signal),
            _ => None,
        };
        self.entry.event(Fact::RunEnded(Box::new(RunEnd {
            run_id: self.run.id.clone(),
            command: one_line(&self.run.prompt),
            state: finished.state,
            exit_code: Some(finished.exit_code),
            signal,
            duration_ms: ended.ended_ms - self.run.started_ms,
            cpu_ns: finished.cpu_ns,
            memory_peak_bytes: usage.memory_peak_bytes,
            oom_kills: usage.oom_kills,
            message: finished.error_message.clone(),
            hidden: self.run.hidden,
        })))
    }
}

/// The text about processes that the kernel killed for want of memory; `leader`: the run's own process was one of them.
fn out_of_memory_text(kills: u64, leader: bool) -> Option<String> {
    match (kills, leader) {
        (0, _) => None,
        (1, true) => Some("killed: out of memory".to_owned()),
        (1, false) => Some("the kernel killed 1 process: out of memory".to_owned()),
        (n, _) => Some(format!("the kernel killed {n} processes: out of memory")),
    }
}

/// The record is on disk: the init may forget the run.
pub(super) async fn tell_init(entry: &Entry, number: u64) {
    match entry.handle().ack(number).await {
        Ok(()) => {}
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Gone | ErrorKind::Unreachable) => {}
        Err(error) => {
            tracing::debug!(box_id = entry.id, number, error = error.report(), "the init hears of it later");
            entry.runs.keep_unacknowledged(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn killed_processes_are_counted_in_words() {
        assert_eq!(out_of_memory_text(0, true), None);
        assert_eq!(out_of_memory_text(1, true).as_deref(), Some("killed: out of memory"));
        let pool = out_of_memory_text(32, false);
        assert_eq!(pool.as_deref(), Some("the kernel killed 32 processes: out of memory"));
    }
}
