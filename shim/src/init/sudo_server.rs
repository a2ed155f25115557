//! The init's side of sudo: root and the box's user may start a command as any user of the box.
//!
//! Invariants: the kernel identifies the caller (SO_PEERCRED), never the message; the socket is open to every process
//! of the box, so connections that have not asked yet are few and short-lived, and requests are small. The command
//! runs in the cgroup of the run that asked, so its CPU time and memory are the run's; it lives on the caller's own
//! descriptors, the init sees none of its data.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::net::UCred;
use rustix::process::{Pid, Signal, WaitStatus};

use super::conn::{Connection, Received};
use super::exec::exit_status;
use super::leaf::Leaf;
use super::program::{self, Program};
use super::reactor::{Happened, Interest, Token};
use super::server::{Child, Server};
use super::spawn::{self, Folder, Start, StartPipe};
use super::sudo_clients::{Running, SudoClient};
use super::user::{Accounts, Identity};
use crate::error::{Error, ErrorKind, ExecFailure};
use crate::protocol::{Answer, Envelope, Exit, Frame, FrameType, SignalMessage, VERSION, decode, encode};
use crate::sudo::{Mode, REQUEST_BYTES_MAX, REQUEST_FDS, SudoRequest};

/// Most connections without a request yet; more wait in the backlog.
const PENDING_MAX: usize = 16;
/// Most commands at one time.
const COMMANDS_MAX: usize = 256;
/// Time limit for a connection to send its request.
const REQUEST_SECONDS_MAX: u64 = 5;
/// Time between SIGHUP and SIGKILL for a command whose client is gone.
const KILL_GRACE_MS: u64 = 2000;

impl Server {
    pub(crate) fn accept_sudo(&mut self) {
        let id = self.next_id();
        let Some(sudo) = &mut self.sudo else { return };
        if sudo.pending() >= PENDING_MAX {
            self.reactor.remove(&sudo.listener);
            sudo.watched = false;
            return;
        }
        let token = Token::Sudo(id);
        let (limit, fds) = (REQUEST_BYTES_MAX, REQUEST_FDS);
        let Some(conn) = Connection::accept(&sudo.listener, token, limit, fds, &self.reactor) else {
            return;
        };
        let Ok(peer) = rustix::net::sockopt::socket_peercred(&conn.fd) else {
            return;
        };
        let deadline = Instant::now() + Duration::from_secs(REQUEST_SECONDS_MAX);
        self.reactor.set_timer(deadline, token);
        let client = SudoClient { conn: Some(conn), peer, deadline, command: None };
        sudo.clients.insert(id, client);
    }

    pub(crate) fn handle_sudo(&mut self, id: u64, event: Happened) {
        let mut scratch = std::mem::take(&mut self.scratch);
        let received = self.sudo_connection(id).map(|conn| {
            if event.writable {
                conn.flush();
            }
            conn.receive_on(event, &mut scratch)
        });
        self.scratch = scratch;
        match received {
            None => return,
            Some(Received::Bytes) => self.take_sudo_frames(id),
            Some(Received::Nothing) => {}
            Some(Received::End) => return self.drop_sudo(id),
        }
        self.settle_sudo(id);
    }

    fn sudo_client(&mut self, id: u64) -> Option<&mut SudoClient> {
        self.sudo.as_mut()?.clients.get_mut(&id)
    }

    fn sudo_connection(&mut self, id: u64) -> Option<&mut Connection> {
        self.sudo_client(id)?.conn.as_mut()
    }

    fn take_sudo_frames(&mut self, id: u64) {
        while let Some(next) = self.sudo_connection(id).and_then(Connection::next_frame) {
            match next {
                Ok(frame) => self.take_sudo_frame(id, &frame),
                Err(error) => self.refuse_sudo(id, &error),
            }
        }
    }

    fn take_sudo_frame(&mut self, id: u64, frame: &Frame) {
        let Some(client) = self.sudo_client(id) else {
            return;
        };
        match (&client.command, frame.kind) {
            (None, FrameType::Request) => {
                let deadline = client.deadline;
                self.reactor.cancel_timer(deadline, Token::Sudo(id));
                if let Err(error) = self.start_sudo(id, &frame.payload) {
                    self.refuse_sudo(id, &error);
                }
                self.listen_to_sudo_again();
            }
            (Some(running), FrameType::Signal) => {
                if let Ok(SignalMessage { signal, .. }) = decode(&frame.payload) {
                    signal_group(running.pid, signal);
                }
            }
            _ => self.drop_sudo(id),
        }
    }

    fn start_sudo(&mut self, id: u64, payload: &[u8]) -> Result<(), Error> {
        let envelope: Envelope<SudoRequest> = decode(payload)?;
        if envelope.v != VERSION {
            let step = "check protocol version";
            return Err(Error::new(ErrorKind::InvalidInput, step, envelope.v));
        }
        let request = envelope.m;
        let accounts = Accounts::read();
        let Some(client) = self.sudo_client(id) else {
            return Ok(());
        };
        let peer = client.peer;
        let uid = peer.uid.as_raw();
        if uid != 0 && uid != accounts.resolve(None)?.uid {
            let step = "run command as another user";
            return Err(Error::new(ErrorKind::PermissionDenied, step, uid).in_exec(ExecFailure::Caller));
        }
        let fds = match &mut client.conn {
            Some(conn) => std::mem::take(&mut conn.fds),
            None => Vec::new(),
        };
        let [stdin, stdout, stderr, folder] = <[OwnedFd; REQUEST_FDS]>::try_from(fds)
            .map_err(|_| Error::new(ErrorKind::InvalidInput, "receive descriptors", ""))?;
        let commands = self.sudo.as_ref().map_or(0, |sudo| sudo.clients.len());
        if commands > COMMANDS_MAX + PENDING_MAX {
            return Err(Error::new(ErrorKind::Limit, "start command", commands));
        }
        let caller = accounts.resolve(Some(&uid.to_string()))?;
        let identity = target(&request, &accounts, &caller)?;
        let program = prepare(&request, &identity, &caller, peer)?;
        let folder = match (&request.folder, request.mode) {
            (Some(path), _) => Folder::at(path)?,
            (None, Mode::Login) => Folder::at(&identity.home)?,
            (None, _) => Folder::Open(folder),
        };
        let spawned = spawn::spawn(&Start {
            program: &program,
            identity: &identity,
            folder: &folder,
            stdio: [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()],
            terminal: false,
            leaf: self.leaf_of(peer.pid),
            filter: &self.launchpad.filter,
            open_files: self.launchpad.open_files,
        })?;
        self.children.insert(spawned.pid, Child::Sudo(id));
        let token = Token::SudoStart(id);
        // If this fails, the confirmation comes with the command's end.
        let _ = self.reactor.add(&spawned.start, token, Interest::READ);
        if let Some(client) = self.sudo_client(id) {
            client.command =
                Some(Running { pid: spawned.pid, start: Some(spawned.start), background: request.background });
        }
        self.check_sudo_start(id);
        Ok(())
    }

    /// The cgroup of the live run that a process of the box belongs to. Its name is no help: runs take over the leaves of
    /// earlier ones. The kernel lists the processes of each.
    fn leaf_of(&self, pid: Pid) -> Option<&Leaf> {
        let pid = pid.as_raw_nonzero().get();
        let leaves = self.runs.values().rev().filter_map(|run| run.tree.as_ref()?.leaf.as_ref());
        leaves.into_iter().find(|leaf| leaf.pids().contains(&pid))
    }

    pub(crate) fn check_sudo_start(&mut self, id: u64) {
        let Some(client) = self.sudo_client(id) else {
            return;
        };
        let Some(running) = &mut client.command else {
            return;
        };
        let Some(outcome) = running.start.as_ref().and_then(StartPipe::outcome) else {
            return;
        };
        running.start = None;
        match outcome {
            Ok(()) => {
                let last = running.background;
                self.answer_sudo(id, Ok(Answer::Done), last);
            }
            Err(error) => self.refuse_sudo(id, &error),
        }
    }

    fn answer_sudo(&mut self, id: u64, answer: Result<Answer, &Error>, last: bool) {
        if let Some(conn) = self.sudo_connection(id) {
            conn.answer(answer, last);
        }
        self.settle_sudo(id);
    }

    fn refuse_sudo(&mut self, id: u64, error: &Error) {
        self.answer_sudo(id, Err(error), true);
    }

    pub(crate) fn sudo_ended(&mut self, id: u64, status: WaitStatus) {
        self.check_sudo_start(id);
        let exit = Exit { status: exit_status(status), timed_out: false };
        if let Some(client) = self.sudo_client(id) {
            client.command = None;
            // The time limit of the request also bounds the time for the client to read the exit.
            if let (Some(conn), Ok(payload)) = (&mut client.conn, encode(&exit)) {
                if !conn.ending {
                    conn.send(FrameType::Exit, &payload);
                }
                conn.ending = true;
            }
        }
        self.settle_sudo(id);
    }

    /// After sending, watches for the needed events or closes the connection.
    fn settle_sudo(&mut self, id: u64) {
        let Some(sudo) = &mut self.sudo else { return };
        let Some(client) = sudo.clients.get_mut(&id) else {
            return;
        };
        let over = match &mut client.conn {
            Some(conn) => {
                conn.watch(&self.reactor, true);
                conn.over()
            }
            None => client.command.is_none(),
        };
        if over {
            self.drop_sudo(id);
        }
    }

    /// The client is gone. A command in the foreground is hung up, and killed if that does not help.
    fn drop_sudo(&mut self, id: u64) {
        let Some(sudo) = &mut self.sudo else { return };
        let Some(client) = sudo.clients.get_mut(&id) else {
            return;
        };
        client.conn = None;
        match &client.command {
            None => {
                let deadline = client.deadline;
                self.reactor.cancel_timer(deadline, Token::Sudo(id));
                sudo.clients.remove(&id);
            }
            Some(running) if !running.background => {
                signal_group(running.pid, libc::SIGHUP);
                signal_group(running.pid, libc::SIGCONT);
                let at = Instant::now() + Duration::from_millis(KILL_GRACE_MS);
                self.reactor.set_timer(at, Token::SudoKill(id));
            }
            Some(_) => {}
        }
        self.listen_to_sudo_again();
    }

    pub(crate) fn kill_sudo(&mut self, id: u64) {
        if let Some(SudoClient { command: Some(running), .. }) = self.sudo_client(id) {
            signal_group(running.pid, libc::SIGKILL);
        }
    }

    /// Ends a connection whose time to send a request is over.
    pub(crate) fn expire_sudo(&mut self, id: u64) {
        if self.sudo_client(id).is_some_and(|c| c.command.is_none()) {
            self.drop_sudo(id);
        }
    }

    fn listen_to_sudo_again(&mut self) {
        if let Some(sudo) = &mut self.sudo
            && !sudo.watched
            && sudo.pending() < PENDING_MAX
        {
            let token = Token::SudoListener;
            sudo.watched = self.reactor.add(&sudo.listener, token, Interest::READ).is_ok();
        }
    }
}

/// Signals a command's process group. The command leads it and is not reaped yet, so its pid cannot be reused.
fn signal_group(pid: i32, signal: i32) {
    if let (Some(pid), Some(signal)) = (Pid::from_raw(pid), Signal::from_named_raw(signal)) {
        // A group that has just ended needs no signal.
        let _: Result<(), io::Error> = rustix::process::kill_process_group(pid, signal).map_err(io::Error::from);
    }
}

/// The identity the command runs as. With a group alone it is the caller's, as in sudo.
fn target(request: &SudoRequest, accounts: &Accounts, caller: &Identity) -> Result<Identity, Error> {
    let mut identity = match (&request.user, &request.group) {
        (Some(user), _) => accounts.resolve(Some(user))?,
        (None, Some(_)) => caller.clone(),
        (None, None) => accounts.resolve(Some("0"))?,
    };
    if let Some(group) = &request.group {
        identity.gid = accounts.group(group)?;
    }
    Ok(identity)
}

fn prepare(request: &SudoRequest, identity: &Identity, caller: &Identity, peer: UCred) -> Result<Program, Error> {
    let mut env = program::login_env(identity, false);
    let shell_of_user = request.shell.as_ref().filter(|_| request.mode == Mode::Shell).unwrap_or(&identity.shell);
    let command = if request.argv.is_empty() { shell_of_user.clone() } else { request.command.clone() };
    for (name, value) in &request.env {
        program::set(&mut env, name, value);
    }
    for (name, value) in [
        ("SUDO_USER", caller.name.as_str()),
        ("SUDO_UID", &peer.uid.as_raw().to_string()),
        ("SUDO_GID", &peer.gid.as_raw().to_string()),
        ("SUDO_COMMAND", &command),
    ] {
        program::set(&mut env, name, value);
    }
    let shell = match (request.mode, &request.shell) {
        (Mode::Command, _) => return Program::new(&request.argv, &env),
        (Mode::Shell, Some(shell)) => shell,
        _ => &identity.shell,
    };
    let mut argv = vec![shell.clone()];
    if !request.argv.is_empty() {
        let words: Vec<String> = request.argv.iter().map(|word| escape(word)).collect();
        argv.extend(["-c".to_owned(), words.join(" ")]);
    }
    let mut program = Program::new(&argv, &env)?;
    if request.mode == Mode::Login {
        // A leading dash makes a shell a login shell.
        let name = shell.rsplit('/').next().unwrap_or_default();
        program.rename(&format!("-{name}"))?;
    }
    Ok(program)
}

/// As sudo does: the shell must see each word as it was given.
fn escape(word: &str) -> String {
    if word.is_empty() {
        return "''".to_owned();
    }
    let mut text = String::with_capacity(word.len());
    for c in word.chars() {
        if !(c.is_alphanumeric() || matches!(c, '_' | '-' | '$')) {
            text.push('\\');
        }
        text.push(c);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_words() {
        assert_eq!(escape("a b"), "a\\ b");
        assert_eq!(escape("$HOME;x"), "$HOME\\;x");
        assert_eq!(escape(""), "''");
    }
}
