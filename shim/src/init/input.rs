//! Standard input of runs: from the client that owns it to the program, as fast as the program reads.
//!
//! Invariant: at most [`STDIN_WINDOW_BYTES`] are queued; the client gets credit back for what was written. Input
//! without a reader is discarded, with credit, so that no client waits for ever.

use std::collections::VecDeque;

use rustix::io::Errno;

use super::reactor::{Interest, Reactor, Token};
use super::run::Input;
use super::server::Server;
use crate::error::{Error, ErrorKind};
use crate::protocol::{FrameType, STDIN_WINDOW_BYTES};

/// End of transmission, as typed on a terminal.
const END_OF_TRANSMISSION: u8 = 4;

impl Server {
    /// Takes bytes from a client.
    pub(crate) fn take_input(&mut self, id: u64, number: u64, bytes: &[u8]) -> Result<(), Error> {
        let Some(run) = self.runs.get_mut(&number) else {
            return Ok(());
        };
        if run.input_owner != Some(id) || run.input.closing {
            return Ok(());
        }
        if run.input.queue.len() + bytes.len() > STDIN_WINDOW_BYTES {
            return Err(Error::new(ErrorKind::TooLarge, "take input beyond credit", number));
        }
        run.input.owed += bytes.len();
        run.input.queue.extend(bytes);
        self.feed(number);
        Ok(())
    }

    /// The client sends no more.
    pub(crate) fn close_input(&mut self, id: u64, number: u64) {
        let Some(run) = self.runs.get_mut(&number) else {
            return;
        };
        let input = &mut run.input;
        if run.input_owner != Some(id) || input.closing {
            return;
        }
        if input.terminal {
            // In the middle of a line the first EOT only delivers the line; the second one is the end of file.
            let last = input.queue.back().copied().or(input.last);
            if last.is_some_and(|byte| byte != b'\n' && byte != END_OF_TRANSMISSION) {
                input.queue.push_back(END_OF_TRANSMISSION);
            }
            input.queue.push_back(END_OF_TRANSMISSION);
        } else {
            input.closing = true;
        }
        self.feed(number);
    }

    /// Writes queued bytes, as far as the program takes them.
    pub(crate) fn feed(&mut self, number: u64) {
        let Some(run) = self.runs.get_mut(&number) else {
            return;
        };
        if run.start.is_some() {
            return;
        }
        let (credit, over) = run.input.write();
        if over {
            run.input.shut(&self.reactor);
        }
        let wanted = run.input.fd.is_some() && !run.input.queue.is_empty() && !run.input.paused;
        if let Some(fd) = &run.input.fd
            && wanted != run.input.watched
        {
            if wanted {
                let token = Token::RunStdin(number);
                run.input.watched = self.reactor.add(fd, token, Interest::WRITE).is_ok();
            } else {
                self.reactor.remove(fd);
                run.input.watched = false;
            }
        }
        let Some(id) = run.input_owner.filter(|_| credit > 0) else {
            return;
        };
        if let Some(client) = self.clients.get_mut(&id) {
            let bytes = u32::try_from(credit).unwrap_or(u32::MAX).to_le_bytes();
            client.conn.send(FrameType::Credit, &bytes);
        }
        self.settle(id);
    }
}

impl Input {
    /// Closes the input. A terminal's file stays open under another number, so the reactor must stop watching it.
    pub(crate) fn shut(&mut self, reactor: &Reactor) {
        if let Some(fd) = self.fd.take() {
            reactor.remove(&fd);
        }
        self.watched = false;
        self.queue = VecDeque::new();
    }

    /// Stops watching the input for now.
    pub(crate) fn pause(&mut self, reactor: &Reactor) {
        if let Some(fd) = self.fd.as_ref().filter(|_| self.watched) {
            reactor.remove(fd);
        }
        self.watched = false;
        self.paused = true;
    }

    /// Writes from the queue; returns how much credit the client gets back, and whether the input is over.
    fn write(&mut self) -> (usize, bool) {
        let mut written = 0;
        let mut over = self.fd.is_none();
        while let (Some(fd), (bytes, _)) = (&self.fd, self.queue.as_slices()) {
            if bytes.is_empty() {
                break;
            }
            match rustix::io::write(fd, bytes) {
                Ok(count) => {
                    self.last = count.checked_sub(1).and_then(|i| bytes.get(i)).copied();
                    written += count;
                    self.queue.drain(..count);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    // The reading end is closed.
                    over = true;
                    break;
                }
            }
        }
        if over {
            written += self.queue.len();
        } else if self.queue.is_empty() {
            self.queue = VecDeque::new();
            over = self.closing;
        }
        let credit = written.min(self.owed);
        self.owed -= credit;
        (credit, over)
    }
}
