//! The init's event loop: one thread, one epoll, no blocking.
//!
//! Owns: the table of connections, runs and children, and the order of things. Invariant: each event is answered in
//! bounded time, independently of what the processes in the box do; work that would block waits for an epoll event.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use icebox_runtime::plan::Rlimit;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::process::WaitOptions;

use super::conn::{Connection, Received};
use super::deny::Filter;
use super::keep::KeepFile;
use super::reactor::{Happened, Interest, Reactor, Token};
use super::run::{Run, Stream};
use super::sudo_clients::SudoServer;
use super::tree::Tree;
use crate::error::Error;
use crate::protocol::{Answer, PAYLOAD_BYTES_MAX, REQUEST_FDS_MAX};

/// Connections at one time; more wait in the socket's backlog.
const CONNECTIONS_MAX: usize = 1024;
/// Time limit for a connection to send its request.
const REQUEST_SECONDS_MAX: u64 = 30;
/// Delay between the end of a run or connection and the return of its memory to the kernel.
const TRIM_DELAY_MS: u64 = 500;
/// Children reaped before other events get their turn.
const REAP_BATCH: usize = 256;
/// The one buffer that output passes through.
const SCRATCH_BYTES: usize = 32 * 1024;
/// Outputs that outlived their runs and are still emptied, so that background programs do not block on them.
const LINGERING_MAX: usize = 256;

/// A connection to the control socket and what it is for.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) conn: Connection,
    pub(crate) role: Role,
    /// When its request must have come.
    pub(crate) deadline: Instant,
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Its request has not come yet.
    New,
    /// It asked to start this run, which has not started yet.
    Starting(u64),
    /// It is attached to this run.
    Attached(u64),
    /// It was sent the exit of this run, and may acknowledge it.
    Ended(u64),
    /// It only receives what is still queued.
    Ending,
}

/// The owner of a child process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Child {
    Run(u64),
    Sudo(u64),
    FileWorker,
}

/// How programs are started.
#[derive(Debug)]
pub(crate) struct Launchpad {
    pub(crate) filter: Filter,
    /// /dev/null, opened before any process of the box can replace it.
    pub(crate) null: OwnedFd,
    pub(crate) open_files: Rlimit,
}

/// The init.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) reactor: Reactor,
    control: OwnedFd,
    control_watched: bool,
    signals: SignalFd,
    pub(crate) clients: BTreeMap<u64, Client>,
    pub(crate) runs: BTreeMap<u64, Run>,
    /// Finished runs, oldest first.
    pub(crate) finished: VecDeque<u64>,
    /// Remaining processes of ended runs that their clients owned, until they are killed.
    pub(crate) doomed: BTreeMap<u64, Tree>,
    pub(crate) children: BTreeMap<i32, Child>,
    pub(crate) sudo: Option<SudoServer>,
    pub(crate) keep: Option<KeepFile>,
    pub(crate) launchpad: Launchpad,
    lingering: BTreeMap<u64, OwnedFd>,
    pub(crate) scratch: Vec<u8>,
    last_id: u64,
    /// There may be more zombies than were reaped.
    unreaped: bool,
    /// A timer is set to give freed memory back.
    trim_pending: bool,
}

impl Server {
    /// Takes over the listening control socket.
    pub(crate) fn new(
        control: OwnedFd,
        launchpad: Launchpad,
        sudo: Option<SudoServer>,
        keep: Option<KeepFile>,
    ) -> Result<Self, Error> {
        let failed = |step: &'static str| move |e: io::Error| Error::io(step, "", e);
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.thread_block().map_err(|e| failed("block signals")(e.into()))?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(|e| failed("make signalfd")(e.into()))?;
        let reactor = Reactor::new().map_err(failed("make epoll"))?;
        rustix::io::ioctl_fionbio(&control, true).map_err(|e| failed("set up control socket")(e.into()))?;
        let watch = |fd: &dyn AsFd, token| reactor.add(fd.as_fd(), token, Interest::READ);
        watch(&control, Token::Control).map_err(failed("watch control socket"))?;
        watch(&signals, Token::Signals).map_err(failed("watch signals"))?;
        if let Some(sudo) = &sudo {
            watch(&sudo.listener, Token::SudoListener).map_err(failed("watch sudo socket"))?;
        }
        Ok(Self {
            reactor,
            control,
            control_watched: true,
            signals,
            clients: BTreeMap::new(),
            runs: BTreeMap::new(),
            finished: VecDeque::new(),
            doomed: BTreeMap::new(),
            children: BTreeMap::new(),
            sudo,
            keep,
            launchpad,
            lingering: BTreeMap::new(),
            scratch: vec![0; SCRATCH_BYTES],
            last_id: 0,
            // Children may have ended before SIGCHLD was blocked.
            unreaped: true,
            trim_pending: false,
        })
    }

    /// Serves for ever; returns only if epoll itself fails.
    pub(crate) fn serve(&mut self) -> Error {
        loop {
            let events = match self.reactor.wait(self.unreaped) {
                Ok(events) => events,
                Err(e) => return Error::io("wait for events", "", e),
            };
            for event in events {
                self.handle(event);
            }
            if self.unreaped {
                self.reap();
            }
            for token in self.reactor.due(Instant::now()) {
                self.handle_timer(token);
            }
        }
    }

    /// Schedules the return of freed memory to the kernel.
    pub(crate) fn trim_soon(&mut self) {
        if !self.trim_pending {
            self.trim_pending = true;
            let at = Instant::now() + Duration::from_millis(TRIM_DELAY_MS);
            self.reactor.set_timer(at, Token::Trim);
        }
    }

    /// An id that was never used.
    pub(crate) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn handle(&mut self, event: Happened) {
        match event.token {
            Token::Control => self.accept(),
            Token::Signals => {
                // Signals coalesce: the count does not matter, reaping goes on until no zombie is left.
                while let Ok(Some(_)) = self.signals.read_signal() {}
                self.unreaped = true;
            }
            Token::SudoListener => self.accept_sudo(),
            Token::Connection(id) => self.handle_connection(id, event),
            Token::Sudo(id) => self.handle_sudo(id, event),
            Token::SudoStart(id) => self.check_sudo_start(id),
            Token::RunStart(run) => self.check_start(run),
            Token::RunStdout(run) => self.pump(run, Stream::Stdout),
            Token::RunStderr(run) => self.pump(run, Stream::Stderr),
            Token::RunStdin(run) => self.feed(run),
            Token::Lingering(id) => self.drain_lingering(id),
            Token::RunTimeout(_) | Token::RunKill(_) | Token::RunTerminal(_) | Token::SudoKill(_) | Token::Trim => {}
        }
    }

    fn handle_timer(&mut self, token: Token) {
        match token {
            Token::Trim => {
                self.trim_pending = false;
                crate::sys::return_free_memory();
            }
            Token::RunTimeout(run) => self.time_out(run),
            Token::RunKill(run) => self.kill_run(run),
            Token::RunTerminal(run) => self.retry_terminal(run),
            Token::SudoKill(id) => self.kill_sudo(id),
            Token::Sudo(id) => self.expire_sudo(id),
            Token::Connection(id) if self.clients.get(&id).is_some_and(|c| c.role == Role::New) => {
                self.drop_client(id);
            }
            _ => {}
        }
    }

    fn accept(&mut self) {
        if self.clients.len() >= CONNECTIONS_MAX {
            self.reactor.remove(&self.control);
            self.control_watched = false;
            return;
        }
        let id = self.next_id();
        let token = Token::Connection(id);
        let (limit, fds) = (PAYLOAD_BYTES_MAX, REQUEST_FDS_MAX);
        let Some(conn) = Connection::accept(&self.control, token, limit, fds, &self.reactor) else {
            return;
        };
        let deadline = Instant::now() + Duration::from_secs(REQUEST_SECONDS_MAX);
        self.reactor.set_timer(deadline, token);
        let role = Role::New;
        let client = Client { conn, role, deadline };
        self.clients.insert(id, client);
    }

    fn handle_connection(&mut self, id: u64, event: Happened) {
        if event.writable {
            self.flush_client(id);
        }
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        match client.conn.receive_on(event, &mut self.scratch) {
            Received::Bytes => self.take_frames(id),
            Received::Nothing => {}
            Received::End => self.drop_client(id),
        }
    }

    fn take_frames(&mut self, id: u64) {
        while let Some(next) = self.clients.get_mut(&id).and_then(|client| client.conn.next_frame()) {
            match next {
                Ok(frame) => self.take_frame(id, frame),
                Err(error) => self.refuse(id, &error),
            }
        }
    }

    /// Sends a connection's queued frames, then resumes its run.
    fn flush_client(&mut self, id: u64) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        client.conn.flush();
        let attached = match client.role {
            Role::Attached(run) if client.conn.idle() => Some(run),
            _ => None,
        };
        self.settle(id);
        if let Some(run) = attached {
            self.resume_outputs(run);
        }
    }

    /// After sending, watches for the needed events or closes the connection.
    pub(crate) fn settle(&mut self, id: u64) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        client.conn.watch(&self.reactor, true);
        if client.conn.over() {
            self.drop_client(id);
        }
    }

    /// Answers an operation; with `last` the connection ends then.
    pub(crate) fn answer(&mut self, id: u64, answer: Result<Answer, &Error>, last: bool) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        client.conn.answer(answer, last);
        if last {
            client.role = Role::Ending;
        }
        self.settle(id);
    }

    pub(crate) fn refuse(&mut self, id: u64, error: &Error) {
        if let Some(Client { role: Role::Attached(run) | Role::Starting(run), .. }) = self.clients.get(&id) {
            let run = *run;
            self.detach(id, run);
        }
        self.answer(id, Err(error), true);
    }

    /// Forgets a connection. A run with `kill_on_disconnect` ends with its last connection.
    pub(crate) fn drop_client(&mut self, id: u64) {
        let Some(client) = self.clients.remove(&id) else {
            return;
        };
        self.reactor.cancel_timer(client.deadline, Token::Connection(id));
        self.trim_soon();
        if let Role::Attached(run) | Role::Starting(run) = client.role {
            self.detach(id, run);
        }
        if !self.control_watched {
            let again = self.reactor.add(&self.control, Token::Control, Interest::READ);
            self.control_watched = again.is_ok();
        }
    }

    /// Takes a connection out of the table and out of the reactor, for a child that will own it.
    pub(crate) fn take_client(&mut self, id: u64) -> Option<Client> {
        let client = self.clients.remove(&id)?;
        self.reactor.cancel_timer(client.deadline, Token::Connection(id));
        self.reactor.remove(&client.conn.fd);
        Some(client)
    }

    /// Reaps every child there is: the init is the parent of all orphans of the box.
    fn reap(&mut self) {
        for _ in 0..REAP_BATCH {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    let pid = pid.as_raw_nonzero().get();
                    match self.children.remove(&pid) {
                        Some(Child::Run(run)) => self.run_ended(run, status),
                        Some(Child::Sudo(id)) => self.sudo_ended(id, status),
                        Some(Child::FileWorker) | None => {}
                    }
                }
                _ => {
                    self.unreaped = false;
                    return;
                }
            }
        }
    }

    /// Keeps an output open that background programs of a finished run still hold, and throws away what they write.
    pub(crate) fn linger(&mut self, fd: OwnedFd) {
        // The other end is usually closed by now.
        if let Ok(0) | Err(rustix::io::Errno::IO) = rustix::io::read(&fd, self.scratch.as_mut_slice()) {
            return;
        }
        if self.lingering.len() >= LINGERING_MAX {
            // The oldest writer gets SIGPIPE, as if its terminal had been closed.
            self.lingering.pop_first();
        }
        let id = self.next_id();
        if self.reactor.add(&fd, Token::Lingering(id), Interest::READ).is_ok() {
            self.lingering.insert(id, fd);
        }
    }

    fn drain_lingering(&mut self, id: u64) {
        let Some(fd) = self.lingering.get(&id) else {
            return;
        };
        match rustix::io::read(fd, self.scratch.as_mut_slice()) {
            Ok(1..) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Ok(_) | Err(_) => {
                self.lingering.remove(&id);
            }
        }
    }
}
