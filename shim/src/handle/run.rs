//! A run as its client sees it: a stream of events and an input.
//!
//! Invariants: after `Exit` there is only `None`; input never sends more than what the init gave credit for, so a
//! program that does not read its input blocks neither output nor signals. Dropping [`RunEvents`] ends the connection:
//! a run with `kill_on_disconnect` dies then, any other goes on.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::conn::{Connection, Sender, unexpected};
use crate::error::{Error, ErrorKind};
use crate::protocol::{
    DATA_BYTES_MAX, Exit, FrameType, Resize, STDIN_WINDOW_BYTES, Scope, SignalMessage, Started, decode, encode,
};

/// A started (or attached) run.
#[derive(Debug)]
pub struct Run {
    /// Pid of the direct process inside the box.
    pub pid: i32,
    /// The run's number.
    pub run: u64,
    events: RunEvents,
    input: RunInput,
}

/// An event of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunEvent {
    /// Bytes of standard output, or of the terminal.
    Stdout(Bytes),
    /// Bytes of standard error.
    Stderr(Bytes),
    /// So many bytes of earlier output are not kept (after an attach).
    Dropped(u64),
    /// The direct process has ended; the last event.
    Exit(Exit),
}

/// The output of a run. Must be polled for [`RunInput::write`] to get further than the first 64 KiB.
#[derive(Debug)]
pub struct RunEvents {
    /// `None` once the exit is acknowledged: the init closes the connection by itself.
    connection: Option<Connection>,
    credit: Arc<Semaphore>,
    over: bool,
}

/// The input of a run. May be dropped early; the program's input stays open then.
#[derive(Debug)]
pub struct RunInput {
    sender: Sender,
    credit: Arc<Semaphore>,
}

impl Run {
    pub(super) fn new(connection: Connection, started: Started) -> Self {
        let permits = usize::try_from(started.stdin_credit).unwrap_or(0);
        let credit = Arc::new(Semaphore::new(permits.min(STDIN_WINDOW_BYTES)));
        let input = RunInput { sender: connection.sender.clone(), credit: Arc::clone(&credit) };
        Self {
            pid: started.pid,
            run: started.run,
            events: RunEvents { connection: Some(connection), credit, over: false },
            input,
        }
    }

    /// Splits the run into output and input, for two tasks.
    #[must_use]
    pub fn split(self) -> (RunEvents, RunInput) {
        (self.events, self.input)
    }
}

impl RunEvents {
    /// The next event; `None` after `Exit`. Cancel-safe.
    ///
    /// # Errors
    /// `Gone` when the init died or closed the connection before the exit; `Internal` when it sends an invalid frame.
    pub async fn next(&mut self) -> Result<Option<RunEvent>, Error> {
        while let Some(connection) = self.connection.as_mut().filter(|_| !self.over) {
            let Some(frame) = connection.next_frame().await? else {
                self.finish();
                return Err(Error::new(ErrorKind::Gone, "read run's output", "closed"));
            };
            match frame.kind {
                FrameType::Stdout => {
                    return Ok(Some(RunEvent::Stdout(Bytes::from(frame.payload))));
                }
                FrameType::Stderr => {
                    return Ok(Some(RunEvent::Stderr(Bytes::from(frame.payload))));
                }
                FrameType::Dropped => match <[u8; 8]>::try_from(frame.payload.as_slice()) {
                    Ok(bytes) => return Ok(Some(RunEvent::Dropped(u64::from_le_bytes(bytes)))),
                    Err(_) => return Err(unexpected(&frame)),
                },
                FrameType::Credit => match <[u8; 4]>::try_from(frame.payload.as_slice()) {
                    Ok(bytes) => self.add_credit(u32::from_le_bytes(bytes)),
                    Err(_) => return Err(unexpected(&frame)),
                },
                FrameType::Exit => {
                    let exit = decode(&frame.payload)?;
                    self.finish();
                    return Ok(Some(RunEvent::Exit(exit)));
                }
                _ => return Err(unexpected(&frame)),
            }
        }
        Ok(None)
    }

    /// After the exit: tells the init that the exit is recorded, so that it may forget the run, and closes the connection.
    /// Never waits: a frozen init reads it when it is thawed.
    ///
    /// # Errors
    /// `Gone` when the init has closed the connection: it has ended, or it is of an earlier version, which only accepts
    /// [`BoxHandle::ack`](super::BoxHandle::ack). `Timeout` when the socket is full.
    pub fn acknowledge(mut self) -> Result<(), Error> {
        self.connection.take().map_or(Ok(()), |connection| connection.end_with(FrameType::Ack))
    }

    /// A hostile init cannot make the window grow: the semaphore would panic beyond its own maximum.
    fn add_credit(&self, bytes: u32) {
        let room = STDIN_WINDOW_BYTES.saturating_sub(self.credit.available_permits());
        self.credit.add_permits(usize::try_from(bytes).unwrap_or(0).min(room));
    }

    fn finish(&mut self) {
        self.over = true;
        self.credit.close();
    }
}

impl Drop for RunEvents {
    fn drop(&mut self) {
        self.credit.close();
        if let Some(connection) = &self.connection {
            connection.sender.shutdown();
        }
    }
}

impl RunInput {
    /// Sends bytes to the program's standard input, as fast as the program reads them.
    ///
    /// # Errors
    /// `Gone` when the run or the connection is over.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let mut rest = bytes;
        while !rest.is_empty() {
            // Takes the available credit instead of waiting for a full frame's worth.
            let wanted = rest.len().min(DATA_BYTES_MAX).min(self.credit.available_permits().max(1));
            let permits = u32::try_from(wanted).unwrap_or(1);
            let permit = self
                .credit
                .acquire_many(permits)
                .await
                .map_err(|e| Error::new(ErrorKind::Gone, "write to run's input", "run is over").because(e))?;
            permit.forget();
            let (now, later) = rest.split_at(wanted);
            self.sender.send(FrameType::Stdin, now).await?;
            rest = later;
        }
        Ok(())
    }

    /// Ends the program's standard input (end-of-transmission on a terminal).
    ///
    /// # Errors
    /// `Gone` when the connection is over.
    pub async fn close(&mut self) -> Result<(), Error> {
        self.sender.send(FrameType::StdinClose, &[]).await
    }

    /// Gives the terminal another size.
    ///
    /// # Errors
    /// `Gone` when the connection is over.
    pub async fn resize(&mut self, rows: u16, cols: u16) -> Result<(), Error> {
        let payload = encode(&Resize { rows, cols })?;
        self.sender.send(FrameType::Resize, &payload).await
    }

    /// Sends a signal to the direct process.
    ///
    /// # Errors
    /// `Gone` when the connection is over.
    pub async fn signal(&mut self, signal: i32) -> Result<(), Error> {
        let payload = encode(&SignalMessage { signal, scope: Scope::Leader })?;
        self.sender.send(FrameType::Signal, &payload).await
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::handle::BoxHandle;
    use crate::protocol::{Answer, Envelope, ExitStatus, HEADER_BYTES, header};

    /// An init of an earlier version closes the connection after the exit.
    #[tokio::test]
    async fn an_acknowledgement_that_an_init_cannot_take_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("ctl.sock")).unwrap();
        let init = std::thread::spawn(move || {
            use std::io::{Read, Write};
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = [0; HEADER_BYTES];
            stream.read_exact(&mut head).unwrap();
            let mut request = vec![0; u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize];
            stream.read_exact(&mut request).unwrap();
            let started = Answer::Started(Started { run: 7, pid: 2, stdin_credit: 0, finds_leaves: false });
            let answer = encode(&Envelope::new(Ok::<_, crate::protocol::WireError>(started))).unwrap();
            let exit = encode(&Exit { status: ExitStatus::Code(0), timed_out: false }).unwrap();
            for (kind, payload) in [(FrameType::Response, answer), (FrameType::Exit, exit)] {
                stream.write_all(&header(kind, payload.len())).unwrap();
                stream.write_all(&payload).unwrap();
            }
        });
        let (mut events, _) = BoxHandle::open_without_cgroup(dir.path()).attach(7).await.unwrap().split();
        assert!(matches!(events.next().await.unwrap(), Some(RunEvent::Exit(_))));
        init.join().unwrap();
        assert_eq!(events.acknowledge().unwrap_err().kind(), ErrorKind::Gone);
    }
}
