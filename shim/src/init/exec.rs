//! The life of a run: start, confirmed start, end of its process, end of its output.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::{Gid, Uid};
use rustix::pipe::PipeFlags;
use rustix::process::WaitStatus;

use super::leaf::Leaf;
use super::program::{self, Program};
use super::pty;
use super::reactor::{ID_MAX, Interest, Token};
use super::run::{Input, Output, Run, Stream, clip_argv, unix_ms};
use super::server::{Child, Role, Server};
use super::spawn::{self, Folder, Spawned, Start};
use super::tree::{self, Tree};
use super::user::{Accounts, Identity};
use crate::error::{Error, ErrorKind};
use crate::protocol::{ExecRequest, ExitStatus, FrameType, STDIN_WINDOW_BYTES, Started, encode};

/// Most live runs at one time.
const RUNS_LIVE_MAX: usize = 1024;
/// Most finished runs kept until acknowledged; the oldest are dropped first.
const RUNS_FINISHED_MAX: usize = 1024;
/// Most output kept of all finished runs together; the oldest run loses its output first.
const FINISHED_TAIL_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Time between SIGHUP and SIGKILL for the processes of a run that ends with its client.
pub(crate) const KILL_GRACE_MS: u64 = 1000;
/// A terminal does not report how many bytes it holds; no more than this fits between its two sides.
const TERMINAL_DRAIN_BYTES_MAX: u64 = 256 * 1024;

/// The program's three standard streams, and the init's sides of them.
struct Stdio {
    theirs: [Option<OwnedFd>; 3],
    input: Input,
    stdout: OwnedFd,
    stderr: Option<OwnedFd>,
}

impl Server {
    /// Starts a run for a connection. The answer is sent when the program runs, or could not.
    pub(crate) fn exec(&mut self, id: u64, request: ExecRequest) {
        let number = request.run;
        match self.start_run(id, request) {
            Ok(()) => {
                if let Some(client) = self.clients.get_mut(&id) {
                    client.role = Role::Starting(number);
                }
                // The child has often executed the program already.
                self.check_start(number);
            }
            Err(error) => self.refuse(id, &error),
        }
    }

    fn start_run(&mut self, id: u64, request: ExecRequest) -> Result<(), Error> {
        self.check_room(request.run)?;
        let leaf = self.take_leaf(id);
        let identity = Accounts::read().resolve(request.user.as_deref())?;
        let program = prepare(&request, &identity)?;
        let folder = Folder::at(&request.cwd)?;
        let stdio = make_stdio(&request, &identity)?;
        let [stdin, stdout, stderr] = &stdio.theirs;
        let null = self.launchpad.null.as_fd();
        let spawned = spawn::spawn(&Start {
            program: &program,
            identity: &identity,
            folder: &folder,
            stdio: [stdin, stdout, stderr].map(|fd| fd.as_ref().map_or(null, AsFd::as_fd)),
            terminal: request.tty.is_some(),
            leaf: leaf.as_ref(),
            filter: &self.launchpad.filter,
            open_files: self.launchpad.open_files,
        })?;
        self.children.insert(spawned.pid, Child::Run(request.run));
        // A time beyond any clock is no limit.
        let deadline = request.timeout_ms.and_then(|ms| Instant::now().checked_add(Duration::from_millis(ms)));
        // Without a watch the confirmation would come only when the process ends, so this is an error.
        let watched = self.reactor.add(&spawned.start, Token::RunStart(request.run), Interest::READ);
        let run = Run { deadline, ..new_run(id, request, spawned, stdio, leaf) };
        if let Err(e) = watched {
            let _ = run.signal_leader(libc::SIGKILL);
            return Err(Error::own("watch start pipe", "", e));
        }
        if let Some(at) = deadline {
            self.reactor.set_timer(at, Token::RunTimeout(run.number));
        }
        self.runs.insert(run.number, run);
        Ok(())
    }

    fn check_room(&self, number: u64) -> Result<(), Error> {
        let step = "start run";
        if number > ID_MAX {
            return Err(Error::new(ErrorKind::InvalidInput, step, number));
        }
        if self.runs.contains_key(&number) {
            return Err(Error::new(ErrorKind::AlreadyExists, step, number));
        }
        let live = self.runs.len().saturating_sub(self.finished.len());
        if live >= RUNS_LIVE_MAX {
            return Err(Error::new(ErrorKind::Limit, step, number));
        }
        Ok(())
    }

    fn take_leaf(&mut self, id: u64) -> Option<Leaf> {
        let client = self.clients.get_mut(&id)?;
        Leaf::from_request(std::mem::take(&mut client.conn.fds))
    }

    /// Checks whether a starting run has executed its program.
    pub(crate) fn check_start(&mut self, number: u64) {
        let Some(run) = self.runs.get_mut(&number) else {
            return;
        };
        let Some(outcome) = run.start.as_ref().and_then(spawn::StartPipe::outcome) else {
            return;
        };
        run.start = None;
        let clients = run.clients.clone();
        match outcome {
            Ok(()) => {
                let stdin_credit = u32::try_from(STDIN_WINDOW_BYTES).unwrap_or(0);
                let started = Started { run: number, pid: run.pid, stdin_credit, finds_leaves: true };
                for id in clients {
                    self.send_started(id, started);
                }
                self.resume_outputs(number);
                self.feed(number);
            }
            Err(error) => {
                if let Some(Some(at)) = self.runs.remove(&number).map(|run| run.deadline) {
                    self.reactor.cancel_timer(at, Token::RunTimeout(number));
                }
                for id in clients {
                    if let Some(client) = self.clients.get_mut(&id) {
                        client.role = Role::New;
                    }
                    self.refuse(id, &error);
                }
            }
        }
    }

    /// Handles the end of the direct process. Its output is still in the pipes: exactly that many bytes are read before
    /// the exit is reported, so a background program that holds the pipes delays nothing.
    pub(crate) fn run_ended(&mut self, number: u64, status: WaitStatus) {
        self.check_start(number);
        let Some(run) = self.runs.get_mut(&number) else {
            return;
        };
        run.status = Some(exit_status(status));
        run.ended_unix_ms = Some(unix_ms());
        run.pidfd = None;
        let tree = run.tree.take().filter(|_| run.kill_on_disconnect);
        run.input.shut(&self.reactor);
        if let Some(at) = run.deadline.take() {
            self.reactor.cancel_timer(at, Token::RunTimeout(number));
        }
        let terminal = run.input.terminal;
        for output in [&mut run.stdout, &mut run.stderr] {
            output.left = output.fd.as_ref().map(|fd| {
                if terminal { TERMINAL_DRAIN_BYTES_MAX } else { rustix::io::ioctl_fionread(fd).unwrap_or(0) }
            });
        }
        if let Some(tree) = tree {
            self.doom(number, tree);
        }
        self.pump(number, Stream::Stdout);
        self.pump(number, Stream::Stderr);
        self.finish_if_drained(number);
    }

    /// Ends the remaining processes of a run that its client owns: SIGHUP now, SIGKILL a little later.
    fn doom(&mut self, number: u64, tree: Tree) {
        tree::signal_tree(&tree, libc::SIGHUP);
        tree::signal_tree(&tree, libc::SIGCONT);
        self.doomed.insert(number, tree);
        self.reactor.set_timer(Instant::now() + Duration::from_millis(KILL_GRACE_MS), Token::RunKill(number));
    }

    /// Reports the exit when the last output was read.
    pub(crate) fn finish_if_drained(&mut self, number: u64) {
        let Some(run) = self.runs.get_mut(&number) else {
            return;
        };
        let drained = run.stdout.fd.is_none() && run.stderr.fd.is_none();
        if run.live() || run.finished || !drained {
            return;
        }
        run.finished = true;
        run.stdout.tail.shrink();
        run.stderr.tail.shrink();
        let clients = std::mem::take(&mut run.clients);
        let exit = run.exit();
        self.finished.push_back(number);
        for id in clients {
            self.send_exit(id, number, exit);
        }
        self.bound_finished();
    }

    /// Sends the exit as the last frame. The connection stays open for the client's acknowledgement.
    pub(crate) fn send_exit(&mut self, id: u64, number: u64, exit: Option<crate::protocol::Exit>) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        match exit.map(|exit| encode(&exit)) {
            Some(Ok(payload)) => client.conn.send(FrameType::Exit, &payload),
            _ => client.conn.dead = true,
        }
        client.role = Role::Ended(number);
        self.settle(id);
    }

    fn bound_finished(&mut self) {
        while self.finished.len() > RUNS_FINISHED_MAX {
            if let Some(oldest) = self.finished.pop_front() {
                self.runs.remove(&oldest);
            }
        }
        let mut kept = 0;
        for number in self.finished.iter().rev() {
            let Some(run) = self.runs.get_mut(number) else {
                continue;
            };
            kept += run.tail_bytes();
            if kept > FINISHED_TAIL_BYTES_MAX {
                run.stdout.tail.discard();
                run.stderr.tail.discard();
            }
        }
    }
}

/// A wait status in the protocol's form.
pub(crate) fn exit_status(status: WaitStatus) -> ExitStatus {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => ExitStatus::Code(code),
        (None, Some(signal)) => ExitStatus::Signal(signal),
        // wait was asked for ended children only.
        (None, None) => ExitStatus::Code(-1),
    }
}

fn prepare(request: &ExecRequest, identity: &Identity) -> Result<Program, Error> {
    let mut env = program::login_env(identity, request.tty.is_some());
    for (name, value) in &request.env {
        program::set(&mut env, name, value);
    }
    Program::new(&request.argv, &env)
}

fn make_stdio(request: &ExecRequest, identity: &Identity) -> Result<Stdio, Error> {
    if let Some(size) = request.tty {
        let terminal = pty::open(size, identity)?;
        let again = |fd: &OwnedFd| fd.try_clone().map_err(|e| Error::own("share terminal", "", e));
        let input = Input { fd: Some(again(&terminal.ours)?), terminal: true, ..Input::default() };
        return Ok(Stdio {
            theirs: [Some(again(&terminal.theirs)?), Some(again(&terminal.theirs)?), Some(terminal.theirs)],
            input,
            stdout: terminal.ours,
            stderr: None,
        });
    }
    let (stdout, their_stdout) = pipe(true, identity)?;
    let (stderr, their_stderr) = pipe(true, identity)?;
    let mut input = Input::default();
    let mut their_stdin = None;
    if request.stdin {
        let (theirs, ours) = pipe(false, identity)?;
        input.fd = Some(ours);
        their_stdin = Some(theirs);
    }
    Ok(Stdio { theirs: [their_stdin, Some(their_stdout), Some(their_stderr)], input, stdout, stderr: Some(stderr) })
}

/// A pipe of which only the init's end is non-blocking: programs do not expect that of theirs. It belongs to the run's
/// user, so a program can open it again, as `/dev/stdout` for example.
fn pipe(ours_reads: bool, identity: &Identity) -> Result<(OwnedFd, OwnedFd), Error> {
    let failed = |e: rustix::io::Errno| Error::own("make pipe", "", e);
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(failed)?;
    let (owner, group) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    rustix::fs::fchown(&writer, Some(owner), Some(group)).map_err(failed)?;
    let ours = if ours_reads { &reader } else { &writer };
    rustix::io::ioctl_fionbio(ours, true).map_err(failed)?;
    Ok((reader, writer))
}

fn new_run(id: u64, request: ExecRequest, spawned: Spawned, stdio: Stdio, leaf: Option<Leaf>) -> Run {
    let output = |fd| Output { fd, ..Output::default() };
    Run {
        number: request.run,
        label: request.label,
        argv: clip_argv(&request.argv),
        pid: spawned.pid,
        pidfd: Some(spawned.pidfd),
        start: Some(spawned.start),
        stdout: output(Some(stdio.stdout)),
        stderr: output(stdio.stderr),
        input: stdio.input,
        tree: Some(Tree { leaf, leader: spawned.pid }),
        clients: vec![id],
        input_owner: Some(id),
        kill_on_disconnect: request.kill_on_disconnect,
        deadline: None,
        timed_out: false,
        started_unix_ms: unix_ms(),
        ended_unix_ms: None,
        status: None,
        finished: false,
    }
}
