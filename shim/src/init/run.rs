//! A run's state: its process, its streams, its clients, its exit.
//!
//! Invariant: a run is starting, then live, then draining (its process has ended, what it wrote is being read), then
//! finished; it never goes back. Leaves out: reading and writing (`output`, `input`), deciding (`server`).

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use icebox_runtime::process::pidfd_signal;

use super::spawn::StartPipe;
use super::tail::Tail;
use super::tree::Tree;
use crate::protocol::{Exit, ExitStatus, RunStatus};

/// Most bytes of a run's arguments kept for its status.
const ARGV_KEPT_BYTES: usize = 2048;

/// Which output stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// One output stream of a run.
#[derive(Debug, Default)]
pub(crate) struct Output {
    /// `None` when it is over, or was never there.
    pub(crate) fd: Option<OwnedFd>,
    /// The reactor watches it.
    pub(crate) watched: bool,
    pub(crate) tail: Tail,
    /// Set when the process has ended: the number of bytes that still belong to the run.
    pub(crate) left: Option<u64>,
}

/// Standard input of a run.
#[derive(Debug, Default)]
pub(crate) struct Input {
    /// `None` when it is closed, or was never there.
    pub(crate) fd: Option<OwnedFd>,
    pub(crate) queue: VecDeque<u8>,
    /// Bytes taken from the client for which it has not got credit back.
    pub(crate) owed: usize,
    /// Close it when the queue is written.
    pub(crate) closing: bool,
    /// The reactor watches it.
    pub(crate) watched: bool,
    /// It is a terminal whose other side is closed.
    pub(crate) paused: bool,
    /// It is a terminal.
    pub(crate) terminal: bool,
    /// The last byte given to a terminal, to know whether a line is begun.
    pub(crate) last: Option<u8>,
}

#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) number: u64,
    pub(crate) label: String,
    pub(crate) argv: Vec<String>,
    pub(crate) pid: i32,
    pub(crate) pidfd: Option<OwnedFd>,
    /// While it is starting.
    pub(crate) start: Option<StartPipe>,
    pub(crate) stdout: Output,
    pub(crate) stderr: Output,
    pub(crate) input: Input,
    /// Its processes; `None` once the direct one has ended.
    pub(crate) tree: Option<Tree>,
    /// Connections that get its output.
    pub(crate) clients: Vec<u64>,
    /// The connection whose input counts: the one that attached last.
    pub(crate) input_owner: Option<u64>,
    pub(crate) kill_on_disconnect: bool,
    /// When its time is up.
    pub(crate) deadline: Option<Instant>,
    pub(crate) timed_out: bool,
    pub(crate) started_unix_ms: u64,
    pub(crate) ended_unix_ms: Option<u64>,
    /// The exit status of its process.
    pub(crate) status: Option<ExitStatus>,
    /// The exit was reported, or can be: no more output follows.
    pub(crate) finished: bool,
}

impl Run {
    pub(crate) fn output(&mut self, stream: Stream) -> &mut Output {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    /// Sends a signal to its direct process.
    pub(crate) fn signal_leader(&self, signal: i32) -> std::io::Result<()> {
        match &self.pidfd {
            Some(pidfd) if self.live() => pidfd_signal(pidfd.as_fd(), signal),
            _ => Err(std::io::Error::from_raw_os_error(libc::ESRCH)),
        }
    }

    /// True if its process has not ended.
    pub(crate) fn live(&self) -> bool {
        self.status.is_none()
    }

    /// Its exit, once all output was read.
    pub(crate) fn exit(&self) -> Option<Exit> {
        let timed_out = self.timed_out;
        self.status.filter(|_| self.finished).map(|status| Exit { status, timed_out })
    }

    pub(crate) fn to_status(&self) -> RunStatus {
        RunStatus {
            run: self.number,
            label: self.label.clone(),
            argv: self.argv.clone(),
            pid: self.pid,
            started_unix_ms: self.started_unix_ms,
            exit: self.exit(),
            ended_unix_ms: self.ended_unix_ms,
        }
    }

    /// Bytes of output it holds.
    pub(crate) fn tail_bytes(&self) -> usize {
        self.stdout.tail.len() + self.stderr.tail.len()
    }
}

/// The wall clock; only reported, never used in calculations.
pub(crate) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// The arguments, cut to the length that a status shows.
pub(crate) fn clip_argv(argv: &[String]) -> Vec<String> {
    let mut room = ARGV_KEPT_BYTES;
    let mut kept = Vec::new();
    for argument in argv {
        if room == 0 {
            break;
        }
        let mut end = argument.len().min(room);
        while !argument.is_char_boundary(end) {
            end -= 1;
        }
        kept.push(argument.get(..end).unwrap_or_default().to_owned());
        // An empty argument counts as one byte: there may be many.
        room = room.saturating_sub(end.max(1));
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_arguments_are_bounded() {
        let many = vec![String::new(); 100_000];
        assert!(clip_argv(&many).len() <= ARGV_KEPT_BYTES);
        let long = vec!["é".repeat(5000)];
        assert!(clip_argv(&long)[0].len() <= ARGV_KEPT_BYTES);
        let short = vec!["ls".to_owned(), "-l".to_owned()];
        assert_eq!(clip_argv(&short), short);
    }
}
