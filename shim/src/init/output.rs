//! Output of runs: from their pipes or terminals to the attached clients and into the tails.
//!
//! Invariant: nothing is read that an attached client could not take; the pipe fills and the program waits. Without
//! clients everything is read, and the tail keeps the newest. Leaves out: outputs of finished runs (`server::linger`).

use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::reactor::{Interest, Token};
use super::run::Stream;
use super::server::Server;
use crate::protocol::{FrameType, TAIL_BYTES};

/// Most reads of one stream before the others get their turn.
const READS_PER_TURN: u32 = 4;

impl Stream {
    fn frame(self) -> FrameType {
        match self {
            Self::Stdout => FrameType::Stdout,
            Self::Stderr => FrameType::Stderr,
        }
    }

    fn token(self, run: u64) -> Token {
        match self {
            Self::Stdout => Token::RunStdout(run),
            Self::Stderr => Token::RunStderr(run),
        }
    }
}

/// Interval between checks of a terminal that its program has closed.
const TERMINAL_RETRY_MS: u64 = 100;

/// The result of one turn of reading.
enum Turn {
    /// There may be more.
    More,
    /// There is nothing to read now.
    Empty,
    /// A client's send queue is full.
    Congested,
    /// The program has closed the terminal, which it may open again while it lives. Closing our side now would kill it
    /// (SIGHUP), between its last close and its exit for example.
    HungUp,
    /// The stream has ended, or all of the run's output was read.
    Over,
}

impl Server {
    /// Reads a stream for a turn.
    pub(crate) fn pump(&mut self, number: u64, stream: Stream) {
        let turn = self.read_stream(number, stream);
        let Some(run) = self.runs.get_mut(&number) else {
            return;
        };
        let clients = run.clients.clone();
        let output = run.output(stream);
        match turn {
            Turn::More | Turn::Empty => {}
            // epoll reports a hang-up even with an empty event mask, so the descriptor must be removed.
            Turn::Congested => {
                if std::mem::take(&mut output.watched)
                    && let Some(fd) = &output.fd
                {
                    self.reactor.remove(fd);
                }
            }
            Turn::HungUp => {
                output.watched = false;
                if let Some(fd) = &output.fd {
                    self.reactor.remove(fd);
                }
                run.input.pause(&self.reactor);
                let at = Instant::now() + Duration::from_millis(TERMINAL_RETRY_MS);
                self.reactor.set_timer(at, Token::RunTerminal(number));
            }
            Turn::Over => {
                output.watched = false;
                let unread = output.left.is_some();
                if let Some(fd) = output.fd.take() {
                    self.reactor.remove(&fd);
                    // A background program may hold the other end; without a reader it would block or die.
                    if unread {
                        self.linger(fd);
                    }
                }
            }
        }
        for id in clients {
            self.settle(id);
        }
        self.finish_if_drained(number);
    }

    /// Reads a live run's stream for one turn. The rest of an ended run's output is read without a break: it is at most
    /// a pipe's capacity, and a pipe that is empty and still held open causes no further event.
    fn read_stream(&mut self, number: u64, stream: Stream) -> Turn {
        for reads in 1.. {
            let Some(run) = self.runs.get_mut(&number) else {
                return Turn::Empty;
            };
            if run.output(stream).left == Some(0) {
                return Turn::Over;
            }
            let behind =
                run.clients.iter().any(|id| self.clients.get(id).is_some_and(|client| client.conn.congested()));
            if behind {
                return Turn::Congested;
            }
            let may_return = run.input.terminal && run.live();
            let output = run.output(stream);
            let Some(fd) = &output.fd else {
                return Turn::Empty;
            };
            let most = output.left.map_or(self.scratch.len(), |left| {
                usize::try_from(left).map_or(self.scratch.len(), |left| left.min(self.scratch.len()))
            });
            let space = self.scratch.get_mut(..most).unwrap_or_default();
            let bytes = match rustix::io::read(fd, &mut *space) {
                Err(Errno::IO) if may_return => return Turn::HungUp,
                Ok(0) | Err(Errno::IO) => {
                    output.left = None;
                    return Turn::Over;
                }
                Ok(count) => space.get(..count).unwrap_or_default(),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) if output.left.is_some() => return Turn::Over,
                Err(Errno::AGAIN) => return Turn::Empty,
                Err(_) => {
                    output.left = None;
                    return Turn::Over;
                }
            };
            output.tail.push(bytes, TAIL_BYTES);
            if let Some(left) = &mut output.left {
                *left = left.saturating_sub(bytes.len() as u64);
            }
            for id in &run.clients {
                if let Some(client) = self.clients.get_mut(id) {
                    client.conn.send(stream.frame(), bytes);
                }
            }
            if run.live() && reads >= READS_PER_TURN {
                break;
            }
        }
        Turn::More
    }

    /// Checks whether a closed terminal was opened again.
    pub(crate) fn retry_terminal(&mut self, number: u64) {
        if let Some(run) = self.runs.get_mut(&number) {
            run.input.paused = false;
        }
        self.resume_outputs(number);
        self.feed(number);
    }

    /// Watches the outputs of a run (again), after its start or when a client has caught up.
    pub(crate) fn resume_outputs(&mut self, number: u64) {
        if self.runs.get(&number).is_none_or(|run| run.start.is_some()) {
            return;
        }
        for stream in [Stream::Stdout, Stream::Stderr] {
            match self.runs.get(&number) {
                Some(run) if run.live() => self.rewatch(number, stream),
                // Called directly: a pipe that is empty by now causes no event.
                Some(run) if !run.finished => self.pump(number, stream),
                _ => {}
            }
        }
    }

    fn rewatch(&mut self, number: u64, stream: Stream) {
        let Some(run) = self.runs.get_mut(&number) else {
            return;
        };
        let output = run.output(stream);
        if let Some(fd) = &output.fd
            && !output.watched
        {
            let added = self.reactor.add(fd, stream.token(number), Interest::READ);
            output.watched = added.is_ok();
        }
    }

    /// Sends a new client the kept output, and the exit if there is one.
    pub(crate) fn replay(&mut self, id: u64, number: u64) {
        let (Some(run), Some(client)) = (self.runs.get_mut(&number), self.clients.get_mut(&id)) else {
            return;
        };
        let dropped = run.stdout.tail.dropped() + run.stderr.tail.dropped();
        if dropped > 0 {
            client.conn.send(FrameType::Dropped, &dropped.to_le_bytes());
        }
        for (kind, tail) in [(FrameType::Stdout, &run.stdout.tail), (FrameType::Stderr, &run.stderr.tail)] {
            let (head, rest) = tail.parts();
            for part in [head, rest] {
                if !part.is_empty() {
                    client.conn.send(kind, part);
                }
            }
        }
        let exit = run.exit();
        if exit.is_some() {
            run.clients.retain(|client| *client != id);
            self.send_exit(id, number, exit);
        } else {
            self.settle(id);
        }
    }
}
