//! A run whose output is streamed.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use icebox_shim::handle::{RunEvent, RunEvents};
use tokio::sync::mpsc;

use super::collect::{Tail, feed, next};
use super::command::{Command, stopped_text};
use super::service::Runs;
use super::start::{Started, start};
use super::ticket::{Finished, Ticket, ended_now};
use crate::boxes::{Awake, LiveRun};
use crate::refusal::Refusal;

/// Most pieces of output on their way to a client. Beyond it the program waits for its reader, as with any pipe.
const PIECES_MAX: usize = 8;
/// A client that has read nothing for this long counts as disconnected.
const STALL_MAX: Duration = Duration::from_secs(300);

/// Items of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamItem {
    /// Output of the program, both streams merged.
    Output(Bytes),
    /// The end; the last item.
    End(Finished),
}

/// The streamed output of a run. When it is dropped, the run continues without a reader.
#[derive(Debug)]
pub struct RunStream {
    items: mpsc::Receiver<StreamItem>,
    run: Option<Arc<LiveRun>>,
}

impl RunStream {
    /// The next piece; none after the end.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<StreamItem>> {
        self.items.poll_recv(context)
    }
}

impl From<mpsc::Receiver<StreamItem>> for RunStream {
    fn from(items: mpsc::Receiver<StreamItem>) -> Self {
        Self { items, run: None }
    }
}

impl Drop for RunStream {
    fn drop(&mut self) {
        if let Some(run) = &self.run {
            run.reader_left();
        }
    }
}

/// Starts a command whose output is streamed.
pub async fn stream(runs: &Runs, awake: &Awake, command: &Command) -> Result<RunStream, Refusal> {
    let (sender, items) = mpsc::channel(PIECES_MAX);
    let mut streamed = RunStream::from(items);
    match start(runs, awake, command).await? {
        Started::NotExecutable { message, finished, .. } => {
            // There is room for both.
            let _ = sender.try_send(StreamItem::Output(Bytes::from(message)));
            let _ = sender.try_send(StreamItem::End(finished));
        }
        Started::Running { events, input, ticket, .. } => {
            feed(input, command.stdin.clone());
            streamed.run = Some(Arc::clone(&ticket.run));
            tokio::spawn(forward(events, ticket, sender));
        }
    }
    Ok(streamed)
}

async fn forward(mut events: RunEvents, ticket: Ticket, sender: mpsc::Sender<StreamItem>) {
    let mut tail = Tail::default();
    ticket.record_if_it_lasts();
    let mut client = Some(sender);
    let exit = loop {
        match next(&mut events, &ticket).await {
            Ok(Some(RunEvent::Stdout(bytes) | RunEvent::Stderr(bytes))) => {
                tail.add(&bytes);
                client = hand_on(client, bytes).await;
            }
            Ok(Some(RunEvent::Dropped(_))) => {}
            Ok(Some(RunEvent::Exit(exit))) => break Ok(exit),
            Ok(None) => break Err(icebox_shim::Error::new(icebox_shim::ErrorKind::Gone, "read run's output", "")),
            Err(error) => break Err(error),
        }
    };
    let finished = ticket.finish(ended_now(events, exit, tail.bytes())).await;
    if let Some(client) = client {
        if finished.lost {
            let _ = client.send(StreamItem::Output(Bytes::from_static(stopped_text().as_bytes()))).await;
        }
        // The client may have disconnected by now.
        let _ = client.send(StreamItem::End(finished)).await;
    }
}

/// Sends a piece to the client. Returns the client if still connected; without a client, output is read and dropped.
async fn hand_on(client: Option<mpsc::Sender<StreamItem>>, bytes: Bytes) -> Option<mpsc::Sender<StreamItem>> {
    let client = client?;
    match tokio::time::timeout(STALL_MAX, client.send(StreamItem::Output(bytes))).await {
        Ok(Ok(())) => Some(client),
        // Disconnected, or stalled.
        Ok(Err(_)) | Err(_) => None,
    }
}
