//! A run whose whole output is returned at its end.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::FutureExt as _;
use icebox_shim::handle::{RunEvent, RunEvents, RunInput};
use tokio::sync::{Semaphore, SemaphorePermit, oneshot};

use super::command::{Command, stopped_text};
use super::finish::RECORDED_OUTPUT_BYTES;
use super::service::Runs;
use super::start::{Started, start};
use super::ticket::{EXEC_OUTPUT_BYTES_MAX, Ended, Finished, Ticket, ended_now};
use crate::boxes::{Awake, Lasting};
use crate::refusal::Refusal;

const MIB: usize = 1024 * 1024;
/// Most bytes that all answers together may keep beyond their first MiB. The memory is twice that: the output, and its
/// JSON.
static SHARED_MIB: Semaphore = Semaphore::const_new(512);

/// The part of the shared memory that an output occupies.
#[derive(Debug, Default)]
pub struct Share(Vec<SemaphorePermit<'static>>);

impl Share {
    /// Room for this many bytes of output. The first MiB is free, so that small outputs never have to wait for large
    /// ones.
    fn holds(&mut self, bytes: usize) -> bool {
        while bytes > (self.0.len() + 1) * MIB {
            match SHARED_MIB.try_acquire() {
                Ok(permit) => self.0.push(permit),
                Err(_) => return false,
            }
        }
        true
    }
}

/// A finished run with its output.
#[derive(Debug)]
pub struct Outcome {
    /// The end of the run.
    pub finished: Finished,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// Some output was dropped.
    pub truncated: bool,
    /// Held until the output is sent.
    pub share: Share,
}

impl Outcome {
    /// A finished run without output.
    #[must_use]
    pub fn of(finished: Finished) -> Self {
        Self { finished, stdout: Vec::new(), stderr: Vec::new(), truncated: false, share: Share::default() }
    }
}

/// A command whose output is being read by the task that awaits this. If it is dropped before the end, a task of its own
/// reads on: the command continues and its end is recorded.
pub struct Collecting(Lasting<Outcome>);

impl std::fmt::Debug for Collecting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Collecting").finish_non_exhaustive()
    }
}

impl Collecting {
    fn new(reading: impl Future<Output = Outcome> + Send + 'static) -> Self {
        Self(Lasting::new(reading))
    }

    /// Reads in a task of its own from now on, at its own pace.
    #[must_use]
    pub fn apart(mut self) -> oneshot::Receiver<Outcome> {
        let (answer, outcome) = oneshot::channel();
        if let Some(reading) = self.0.take() {
            tokio::spawn(async move {
                // The client may have disconnected: the record stays.
                let _ = answer.send(reading.await);
            });
        }
        outcome
    }
}

impl Future for Collecting {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome> {
        self.0.poll_unpin(context)
    }
}

/// Starts a command. Its output is read by the task that awaits the result.
pub async fn collect(runs: &Runs, awake: &Awake, command: &Command) -> Result<Collecting, Refusal> {
    Ok(match start(runs, awake, command).await? {
        Started::NotExecutable { message, finished, .. } => {
            let done = Outcome { stderr: message.into_bytes(), ..Outcome::of(finished) };
            Collecting::new(std::future::ready(done))
        }
        Started::Running { events, input, ticket, .. } => {
            feed(input, command.stdin.clone());
            Collecting::new(read_all(events, ticket))
        }
    })
}

/// Feeds standard input concurrently with reading the output: each may wait for the other.
pub(super) fn feed(mut input: RunInput, stdin: Option<Bytes>) {
    let Some(bytes) = stdin else { return };
    tokio::spawn(async move {
        // A program that ends or closes its input early is not an error.
        if input.write(&bytes).await.is_ok() {
            let _ = input.close().await;
        }
    });
}

async fn read_all(mut events: RunEvents, ticket: Ticket) -> Outcome {
    let mut output = Output::default();
    ticket.record_if_it_lasts();
    let exit = loop {
        match next(&mut events, &ticket).await {
            Ok(Some(RunEvent::Stdout(bytes))) => output.add(&bytes, Stream::Out),
            Ok(Some(RunEvent::Stderr(bytes))) => output.add(&bytes, Stream::Err),
            Ok(Some(RunEvent::Dropped(_))) => output.truncated = true,
            Ok(Some(RunEvent::Exit(exit))) => break Ok(exit),
            Ok(None) => break Err(icebox_shim::Error::new(icebox_shim::ErrorKind::Gone, "read run's output", "")),
            Err(error) => break Err(error),
        }
    };
    let Output { stdout, mut stderr, truncated, share, tail, .. } = output;
    let finished = ticket.finish(Ended { truncated, ..ended_now(events, exit, tail.bytes()) }).await;
    if finished.lost {
        stderr.extend_from_slice(stopped_text().as_bytes());
    }
    Outcome { finished, stdout, stderr, truncated, share }
}

/// The next event of a run, at the rate of its box.
pub(super) async fn next(events: &mut RunEvents, ticket: &Ticket) -> Result<Option<RunEvent>, icebox_shim::Error> {
    let event = events.next().await;
    if let Ok(Some(event)) = &event {
        ticket.entry().pass(event).await;
    }
    event
}

#[derive(Debug, Clone, Copy)]
enum Stream {
    Out,
    Err,
}

#[derive(Debug, Default)]
struct Output {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    /// Some output of a stream was dropped.
    truncated: bool,
    stdout_cut: bool,
    stderr_cut: bool,
    share: Share,
    tail: Tail,
}

impl Output {
    fn add(&mut self, bytes: &Bytes, stream: Stream) {
        let held = self.stdout.len() + self.stderr.len();
        let (kept, cut) = match stream {
            Stream::Out => (&mut self.stdout, &mut self.stdout_cut),
            Stream::Err => (&mut self.stderr, &mut self.stderr_cut),
        };
        self.tail.add(bytes);
        // Output of the same stream after a gap is dropped too.
        let room = if *cut { 0 } else { EXEC_OUTPUT_BYTES_MAX - kept.len() };
        let taken = bytes.get(..room).unwrap_or(bytes);
        if self.share.holds(held + taken.len()) {
            kept.extend_from_slice(taken);
            *cut |= taken.len() < bytes.len();
        } else {
            *cut = true;
        }
        self.truncated |= *cut;
    }
}

/// The end of a run's output, both streams as they came.
#[derive(Debug, Default)]
pub(super) struct Tail {
    bytes: Vec<u8>,
}

impl Tail {
    /// Adds output.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        let new = bytes.get(bytes.len().saturating_sub(RECORDED_OUTPUT_BYTES)..).unwrap_or(bytes);
        let old = RECORDED_OUTPUT_BYTES - new.len();
        if self.bytes.len() > old {
            self.bytes.drain(..self.bytes.len() - old);
        }
        self.bytes.extend_from_slice(new);
    }

    /// The output kept.
    #[must_use]
    pub(super) fn bytes(self) -> Vec<u8> {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_beyond_the_limit_is_dropped_and_said_so() {
        let mut output = Output::default();
        let piece = Bytes::from(vec![b'x'; 1024 * 1024]);
        for _ in 0..EXEC_OUTPUT_BYTES_MAX / piece.len() {
            output.add(&piece, Stream::Out);
        }
        assert!(!output.truncated && output.stdout.len() == EXEC_OUTPUT_BYTES_MAX);
        output.add(&Bytes::from_static(b"y"), Stream::Out);
        output.add(&Bytes::from_static(b"z"), Stream::Err);
        assert!(output.truncated);
        assert_eq!((output.stdout.len(), output.stderr.as_slice()), (EXEC_OUTPUT_BYTES_MAX, b"z".as_slice()));
        output.add(&Bytes::from_static(b"y"), Stream::Out);
        assert_eq!(output.stdout.len(), EXEC_OUTPUT_BYTES_MAX, "nothing after a gap");
    }

    #[test]
    fn the_tail_is_the_end() {
        let mut tail = Tail::default();
        for n in 0..5000_u32 {
            tail.add(&n.to_le_bytes());
        }
        tail.add(b"end");
        let bytes = tail.bytes();
        assert_eq!(bytes.len(), RECORDED_OUTPUT_BYTES);
        assert!(bytes.ends_with(b"end"));
        let mut tail = Tail::default();
        tail.add(&vec![1; 3 * RECORDED_OUTPUT_BYTES]);
        assert_eq!(tail.bytes().len(), RECORDED_OUTPUT_BYTES);
    }
}
