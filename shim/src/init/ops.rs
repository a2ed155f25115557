//! Requests of connections: the first frame is a request, later frames belong to the attached run.
//!
//! Leaves out: starting runs (`exec`), streams (`output`, `input`), files (`files`).

use std::time::{Duration, Instant};

use icebox_runtime::process::{Cloned, clone3};

use super::conn::Connection;
use super::exec::KILL_GRACE_MS;
use super::files;
use super::keep::KeepFile;
use super::reactor::Token;
use super::server::{Child, Role, Server};
use super::{pty, tree};
use crate::error::{Error, ErrorKind};
use crate::protocol::{
    Answer, Entry, Envelope, Frame, FrameType, Hello, Operation, Resize, STDIN_WINDOW_BYTES, Scope, SignalMessage,
    Started, VERSION, decode, encode,
};

/// Most clients attached to one run.
const ATTACHED_MAX: usize = 8;
/// Most file operations at one time, each in a child.
const FILE_WORKERS_MAX: usize = 64;

impl Server {
    pub(crate) fn take_frame(&mut self, id: u64, frame: Frame) {
        let role = match self.clients.get(&id) {
            Some(client) => client.role,
            None => return,
        };
        match role {
            Role::New => self.take_request(id, frame),
            Role::Starting(run) | Role::Attached(run) => self.take_run_frame(id, run, frame),
            Role::Ended(run) => self.take_late_frame(id, run, frame.kind),
            Role::Ending => {}
        }
    }

    fn take_request(&mut self, id: u64, frame: Frame) {
        if let Some(client) = self.clients.get(&id) {
            let deadline = client.deadline;
            self.reactor.cancel_timer(deadline, Token::Connection(id));
        }
        let operation = match read_request(&frame) {
            Ok(operation) => operation,
            Err(error) => return self.refuse(id, &error),
        };
        match operation {
            Operation::Hello => {
                let hello = Hello {
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                    pid: std::process::id().cast_signed(),
                    runs: self.runs.len(),
                    kept: self.keep.as_ref().is_some_and(KeepFile::is_locked),
                };
                self.answer(id, Ok(Answer::Hello(hello)), true);
            }
            Operation::Exec(request) => self.exec(id, request),
            Operation::Attach { run } => self.attach(id, run),
            Operation::Runs => self.list_runs(id),
            Operation::Ack { run } => {
                let result = self.acknowledge(run);
                self.answer_done(id, &result);
            }
            Operation::Signal { run, message } => {
                let result = self.signal_run(run, message);
                self.answer_done(id, &result);
            }
            operation => self.start_file_worker(id, operation),
        }
    }

    fn answer_done(&mut self, id: u64, result: &Result<(), Error>) {
        let answer = result.as_ref().map(|()| Answer::Done);
        self.answer(id, answer, true);
    }

    fn take_run_frame(&mut self, id: u64, run: u64, frame: Frame) {
        let result = match frame.kind {
            FrameType::Stdin => self.take_input(id, run, &frame.payload),
            FrameType::StdinClose => {
                self.close_input(id, run);
                Ok(())
            }
            FrameType::Resize => decode(&frame.payload).map(|size| self.resize(run, size)),
            // The run may have ended just now: too late is no error on a stream.
            FrameType::Signal => decode(&frame.payload).map(|message| {
                let _ = self.signal_run(run, message);
            }),
            other => {
                let what = format!("{other:?}");
                Err(Error::new(ErrorKind::InvalidInput, "unexpected frame", what))
            }
        };
        if result.is_err() {
            // A client that breaks the protocol in the middle of a stream gets no answer in it.
            self.drop_client(id);
        }
    }

    /// After the exit only its acknowledgement counts. Input and signals may have been sent before the exit arrived.
    fn take_late_frame(&mut self, id: u64, run: u64, kind: FrameType) {
        match kind {
            FrameType::Stdin | FrameType::StdinClose | FrameType::Resize | FrameType::Signal => return,
            // Another client of the run may have acknowledged it before: then it is forgotten already.
            FrameType::Ack => drop(self.acknowledge(run)),
            _ => {}
        }
        self.drop_client(id);
    }

    fn list_runs(&mut self, id: u64) {
        let items: Vec<Vec<u8>> = self
            .runs
            .values()
            .filter(|run| run.start.is_none())
            .filter_map(|run| encode(&Entry::Run(run.to_status())).ok())
            .collect();
        self.answer(id, Ok(Answer::List), false);
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        for item in items {
            client.conn.send(FrameType::Item, &item);
        }
        client.conn.send(FrameType::End, &[]);
        client.conn.ending = true;
        client.role = Role::Ending;
        self.settle(id);
    }

    fn attach(&mut self, id: u64, number: u64) {
        let missing = || Error::new(ErrorKind::NotFound, "attach to run", number);
        let Some(run) = self.runs.get_mut(&number).filter(|run| run.start.is_none()) else {
            return self.refuse(id, &missing());
        };
        if run.clients.len() >= ATTACHED_MAX {
            let error = Error::new(ErrorKind::Limit, "attach to run", number);
            return self.refuse(id, &error);
        }
        run.clients.push(id);
        run.input_owner = Some(id);
        run.input.owed = 0;
        let started = Started {
            run: number,
            pid: run.pid,
            stdin_credit: u32::try_from(STDIN_WINDOW_BYTES - run.input.queue.len()).unwrap_or(0),
            finds_leaves: true,
        };
        self.send_started(id, started);
        self.replay(id, number);
    }

    pub(crate) fn send_started(&mut self, id: u64, started: Started) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.role = Role::Attached(started.run);
        }
        self.answer(id, Ok(Answer::Started(started)), false);
    }

    /// Removes a closed connection from its run.
    pub(crate) fn detach(&mut self, id: u64, number: u64) {
        let Some(run) = self.runs.get_mut(&number) else {
            return;
        };
        run.clients.retain(|client| *client != id);
        if run.input_owner == Some(id) {
            run.input_owner = None;
        }
        if run.kill_on_disconnect
            && run.clients.is_empty()
            && let Some(tree) = &run.tree
        {
            // As when a terminal is closed; processes that do not exit are killed later.
            tree::signal_tree(tree, libc::SIGHUP);
            tree::signal_tree(tree, libc::SIGCONT);
            let at = Instant::now() + Duration::from_millis(KILL_GRACE_MS);
            self.reactor.set_timer(at, Token::RunKill(number));
        }
        self.resume_outputs(number);
    }

    fn acknowledge(&mut self, number: u64) -> Result<(), Error> {
        match self.runs.get(&number) {
            Some(run) if run.finished => {
                self.runs.remove(&number);
                self.finished.retain(|known| *known != number);
                Ok(())
            }
            Some(_) => Err(Error::new(ErrorKind::AlreadyExists, "forget run that lives", number)),
            None => Ok(()),
        }
    }

    fn signal_run(&mut self, number: u64, message: SignalMessage) -> Result<(), Error> {
        let step = "signal run";
        if !(1..=libc::SIGRTMAX()).contains(&message.signal) {
            return Err(Error::new(ErrorKind::InvalidInput, step, message.signal));
        }
        let missing = || Error::new(ErrorKind::NotFound, step, number);
        let run = self.runs.get(&number).ok_or_else(missing)?;
        let tree = run.tree.as_ref().ok_or_else(missing)?;
        match message.scope {
            Scope::Leader => run.signal_leader(message.signal).map_err(|e| Error::io(step, number, e)),
            Scope::Tree => {
                tree::signal_tree(tree, message.signal);
                Ok(())
            }
        }
    }

    pub(crate) fn time_out(&mut self, number: u64) {
        if let Some(run) = self.runs.get_mut(&number).filter(|run| run.live()) {
            run.timed_out = true;
            if let Some(tree) = &run.tree {
                tree::signal_tree(tree, libc::SIGKILL);
            }
            // A child that is still on its way into its cgroup is not in the list.
            let _ = run.signal_leader(libc::SIGKILL);
        }
    }

    pub(crate) fn kill_run(&mut self, number: u64) {
        if let Some(tree) = self.doomed.remove(&number) {
            return tree::signal_tree(&tree, libc::SIGKILL);
        }
        // A client may have attached again during the grace period.
        if let Some(run) = self.runs.get(&number).filter(|run| run.clients.is_empty())
            && let Some(tree) = &run.tree
        {
            tree::signal_tree(tree, libc::SIGKILL);
            let _ = run.signal_leader(libc::SIGKILL);
        }
    }

    fn resize(&mut self, number: u64, size: Resize) {
        if let Some(run) = self.runs.get(&number)
            && run.input.terminal
            && let Some(terminal) = &run.stdout.fd
        {
            // Nothing to be done about a terminal that is hung up.
            let _ = pty::resize(terminal, size);
        }
    }

    /// File operations block and need the user's ids, so a child does each one and takes over the connection.
    fn start_file_worker(&mut self, id: u64, operation: Operation) {
        let workers = self.children.values().filter(|child| **child == Child::FileWorker).count();
        if workers >= FILE_WORKERS_MAX {
            let error = Error::new(ErrorKind::Limit, "start file operation", workers);
            return self.refuse(id, &error);
        }
        match clone3(0, None) {
            Ok(Cloned::Child) => {
                let conn: Option<Connection> = self.clients.remove(&id).map(|client| client.conn);
                files::work(conn, operation)
            }
            Ok(Cloned::Parent(pid, _)) => {
                self.children.insert(pid.as_raw_pid(), Child::FileWorker);
                // The child owns the connection now; it must not stay watched here through the shared file.
                drop(self.take_client(id));
            }
            Err(e) => {
                let error = Error::own("start file operation", "", e);
                self.refuse(id, &error);
            }
        }
    }
}

fn read_request(frame: &Frame) -> Result<Operation, Error> {
    if frame.kind != FrameType::Request {
        let what = format!("{:?}", frame.kind);
        return Err(Error::new(ErrorKind::InvalidInput, "expect request", what));
    }
    let envelope: Envelope<serde_json::Value> = decode(&frame.payload)?;
    if envelope.v != VERSION {
        return Err(Error::new(ErrorKind::InvalidInput, "check protocol version", envelope.v));
    }
    serde_json::from_value(envelope.m).map_err(|e| Error::new(ErrorKind::InvalidInput, "decode request", "").because(e))
}
