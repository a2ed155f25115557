//! Interactive sessions: a process tree that lives as long as its client is connected.
//!
//! Owns: the program of a session, its two directions, and its end. A wire (WebSocket, SSH) feeds it with
//! [`SessionInput`] and takes its output through [`SessionOutput`]. Invariants: all output is delivered in order,
//! before the exit code; when the program exits or the client disconnects, every process of the session is killed.
//! Leaves out: frames and connections.

use std::future::pending;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use icebox_shim::handle::{BoxHandle, Exit, RunEvent, RunEvents, RunInput, Scope, Winsize};
use icebox_shim::{Error as ShimError, ErrorKind};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::collect::Tail;
use super::command::Command;
use super::service::Runs;
use super::start::{Started, start};
use super::ticket::{Ticket, ended_now};
use crate::boxes::{Awake, Entry};
use crate::ids;
use crate::refusal::Refusal;

/// Default grace between TERM and KILL.
const GRACE_DEFAULT: Duration = Duration::from_secs(5);
/// Longest grace.
const GRACE_MAX: Duration = Duration::from_secs(3600);
/// Default size of a terminal.
const ROWS_DEFAULT: u16 = 24;
const COLS_DEFAULT: u16 = 80;
/// Most pieces of input that wait for the program. Beyond it the client has to wait, as with any pipe.
const PENDING_INPUTS_MAX: usize = 64;

/// A client's request for a session.
#[derive(Debug, Clone, Default)]
pub struct SessionStart {
    /// Argument vector; wins over `shell`.
    pub argv: Option<Vec<String>>,
    /// A line for `bash -lc`.
    pub shell: Option<String>,
    /// Working directory; the home folder if absent.
    pub cwd: Option<String>,
    /// `NAME=VALUE` each, above the environment of the box. Names that a client may not set are skipped.
    pub env: Vec<String>,
    /// Rows and columns of the terminal; 0 for the default.
    pub terminal: Option<(u16, u16)>,
}

/// Input of a running session.
#[derive(Debug)]
pub enum SessionInput {
    /// Bytes for standard input.
    Bytes(Vec<u8>),
    /// End of standard input; on a terminal the end-of-file character.
    End,
    /// New size of the terminal.
    Resize {
        /// Lines.
        rows: u16,
        /// Columns.
        cols: u16,
    },
    /// A signal for every process of the session.
    Signal(i32),
    /// TERM now, KILL after the grace. Only the first one counts.
    Terminate(Option<Duration>),
}

/// The client of a session accepts no more output.
#[derive(Debug, Clone, Copy)]
pub struct ClientGone;

/// Delivers the output of a session to its client.
pub trait SessionOutput: Send {
    /// Standard output, or the output of the terminal.
    fn stdout(&mut self, bytes: Bytes) -> impl Future<Output = Result<(), ClientGone>> + Send;
    /// Standard error.
    fn stderr(&mut self, bytes: Bytes) -> impl Future<Output = Result<(), ClientGone>> + Send;
}

/// Result of the start of a session.
#[derive(Debug)]
pub enum Opened {
    /// The program runs.
    Running(Box<Session>),
    /// There is no such program, or it cannot be executed.
    NotExecutable {
        /// 127 or 126, as in shells.
        exit_code: i32,
        /// The error text of a shell.
        message: String,
    },
}

/// The end of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionEnd {
    /// The program exited, and the client has all of its output.
    Exited(i32),
    /// The box stopped.
    BoxStopped,
    /// The client disconnected, or stopped reading.
    ClientGone,
}

/// A session whose program runs.
#[derive(Debug)]
pub struct Session {
    pid: i32,
    events: RunEvents,
    input: RunInput,
    ticket: Ticket,
}

/// Starts the program of a session in a box that is awake.
pub async fn open_session(runs: &Runs, awake: &Awake, wanted: SessionStart) -> Result<Opened, Refusal> {
    match start(runs, awake, &command_of(wanted, awake.entry.shell())?).await? {
        Started::Running { pid, events, input, ticket } => {
            Ok(Opened::Running(Box::new(Session { pid, events, input, ticket })))
        }
        Started::NotExecutable { exit_code, message, .. } => {
            Ok(Opened::NotExecutable { exit_code, message: message.trim_end().to_owned() })
        }
    }
}

fn command_of(wanted: SessionStart, shell: &str) -> Result<Command, Refusal> {
    let argv = match (wanted.argv.filter(|argv| !argv.is_empty()), wanted.shell) {
        (Some(argv), _) => argv,
        (None, Some(line)) => vec![shell.to_owned(), "-lc".to_owned(), line],
        (None, None) => return Err(Refusal::Invalid("start needs argv or cmd".into())),
    };
    let or = |value: u16, default| if value > 0 { value } else { default };
    let tty =
        wanted.terminal.map(|(rows, cols)| Winsize { rows: or(rows, ROWS_DEFAULT), cols: or(cols, COLS_DEFAULT) });
    let env = environment_of(&wanted.env)?;
    let command = Command::exec(argv, wanted.cwd.as_deref())?;
    Ok(Command { tty, env, interactive: true, owned_by_client: true, ..command })
}

/// The variables of a session. Those that a client may not set are skipped, as the clients' documentation says.
fn environment_of(entries: &[String]) -> Result<Vec<(String, String)>, Refusal> {
    let entries = entries.iter().filter_map(|entry| entry.split_once('='));
    let entries = entries.filter(|(name, _)| !ids::is_blocked_env(name)).take(ids::ENV_VARS_MAX);
    let checked = entries.map(|(name, value)| {
        ids::check_env(name, value).map_err(Refusal::Invalid)?;
        Ok((name.to_owned(), value.to_owned()))
    });
    checked.collect()
}

impl Session {
    /// Process id inside the box.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Public id of the run.
    #[must_use]
    pub fn id(&self) -> &str {
        self.ticket.id()
    }

    /// Relays input and output until the program exits or the client disconnects (`inputs` is closed, or the output is
    /// not accepted). On return all processes of the session are gone and its record is written.
    pub async fn run(self, inputs: mpsc::Receiver<SessionInput>, output: &mut impl SessionOutput) -> SessionEnd {
        let Self { mut events, input, ticket, .. } = self;
        let tree = Tree { handle: ticket.entry().handle(), number: ticket.number() };
        let mut tail = Tail::default();
        let relayed = tokio::select! {
            relayed = relay(&mut events, ticket.entry(), output, &mut tail) => relayed,
            () = obey(inputs, input, &tree) => Err(ClientGone),
        };
        // Also after an exit: background processes of the program belong to the session.
        tree.kill().await;
        let client_is_there = relayed.is_ok();
        let exit = match relayed {
            Ok(exit) => exit,
            // The rest of the output has no reader; the exit must still be recorded.
            Err(ClientGone) => exit_of(&mut events).await,
        };
        let finished = ticket.finish(ended_now(events, exit, tail.bytes())).await;
        match (client_is_there, finished.lost) {
            (false, _) => SessionEnd::ClientGone,
            (true, true) => SessionEnd::BoxStopped,
            (true, false) => SessionEnd::Exited(finished.exit_code),
        }
    }

    /// Ends a session whose client disconnected before it received the start.
    pub async fn abandon(self) {
        let Self { mut events, ticket, .. } = self;
        Tree { handle: ticket.entry().handle(), number: ticket.number() }.kill().await;
        let exit = exit_of(&mut events).await;
        ticket.finish(ended_now(events, exit, Vec::new())).await;
    }
}

/// The exit of a run, or the reason why it is unknown.
type KnownExit = Result<Exit, ShimError>;

/// Delivers output to the client as it comes, up to the exit.
async fn relay(
    events: &mut RunEvents,
    entry: &Entry,
    output: &mut impl SessionOutput,
    tail: &mut Tail,
) -> Result<KnownExit, ClientGone> {
    loop {
        let event = events.next().await;
        if let Ok(Some(event)) = &event {
            entry.pass(event).await;
        }
        match event {
            Ok(Some(RunEvent::Stdout(bytes))) => {
                tail.add(&bytes);
                output.stdout(bytes).await?;
            }
            Ok(Some(RunEvent::Stderr(bytes))) => {
                tail.add(&bytes);
                output.stderr(bytes).await?;
            }
            Ok(Some(RunEvent::Dropped(_))) => {}
            Ok(Some(RunEvent::Exit(exit))) => return Ok(Ok(exit)),
            Ok(None) => return Ok(Err(gone())),
            Err(error) => return Ok(Err(error)),
        }
    }
}

/// Reads a run to its exit and drops its output.
async fn exit_of(events: &mut RunEvents) -> KnownExit {
    loop {
        match events.next().await? {
            Some(RunEvent::Exit(exit)) => return Ok(exit),
            Some(_) => {}
            None => return Err(gone()),
        }
    }
}

fn gone() -> ShimError {
    ShimError::new(ErrorKind::Gone, "read run's output", "")
}

/// Handles the client's input; returns when the client has disconnected.
async fn obey(inputs: mpsc::Receiver<SessionInput>, input: RunInput, tree: &Tree) {
    let (queue, pending_inputs) = mpsc::channel(PENDING_INPUTS_MAX);
    let feeding = async {
        feed(pending_inputs, input).await;
        // The program has closed its input; its output is still wanted.
        pending::<()>().await;
    };
    tokio::select! {
        () = hear(inputs, queue, tree) => {}
        () = feeding => {}
    }
}

async fn hear(mut inputs: mpsc::Receiver<SessionInput>, queue: mpsc::Sender<SessionInput>, tree: &Tree) {
    let mut deadline = pin!(None::<tokio::time::Sleep>);
    let mut terminating = false;
    loop {
        let said = tokio::select! {
            said = inputs.recv() => said,
            () = until(deadline.as_mut()) => {
                deadline.set(None);
                tree.kill().await;
                continue;
            }
        };
        match said {
            None => return,
            Some(SessionInput::Signal(signal)) => tree.signal(signal).await,
            Some(SessionInput::Terminate(grace)) => {
                if !std::mem::replace(&mut terminating, true) {
                    let grace = grace.unwrap_or(GRACE_DEFAULT).min(GRACE_MAX);
                    deadline.set(Some(tokio::time::sleep_until(Instant::now() + grace)));
                    tree.signal(libc::SIGTERM).await;
                }
            }
            Some(input) => {
                // Without a receiver the program has closed its input: the bytes have no reader.
                let _ = queue.send(input).await;
            }
        }
    }
}

async fn until(deadline: std::pin::Pin<&mut Option<tokio::time::Sleep>>) {
    match deadline.as_pin_mut() {
        Some(sleep) => sleep.await,
        None => pending().await,
    }
}

/// Feeds standard input in a loop of its own: a program that does not read must not delay signals.
async fn feed(mut pending_inputs: mpsc::Receiver<SessionInput>, mut input: RunInput) {
    while let Some(said) = pending_inputs.recv().await {
        let done = match said {
            SessionInput::Bytes(bytes) => input.write(&bytes).await,
            SessionInput::End => input.close().await,
            SessionInput::Resize { rows, cols } => input.resize(rows.max(1), cols.max(1)).await,
            SessionInput::Signal(_) | SessionInput::Terminate(_) => Ok(()),
        };
        if done.is_err() {
            return;
        }
    }
}

/// The processes of a session.
#[derive(Debug)]
struct Tree {
    handle: BoxHandle,
    number: u64,
}

impl Tree {
    async fn kill(&self) {
        self.signal(libc::SIGKILL).await;
    }

    /// Signals every process. A session without processes is not an error.
    async fn signal(&self, signal: i32) {
        match self.handle.signal(self.number, signal, Scope::Tree).await {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::warn!(run = self.number, signal, error = error.report(), "cannot signal a session");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn argv_wins_over_the_shell_line_and_blocked_names_are_passed_over() {
        let start = SessionStart {
            argv: Some(vec!["ls".into()]),
            shell: Some("rm".into()),
            env: vec!["A=1=2".into(), "PATH=/evil".into(), "nonsense".into()],
            cwd: Some("/x/./y".into()),
            ..SessionStart::default()
        };
        let command = command_of(start, "bash").expect("a command");
        assert_eq!((command.argv.as_slice(), command.cwd.as_str()), (["ls".to_owned()].as_slice(), "/x/./y"));
        assert_eq!(command.env, [("A".to_owned(), "1=2".to_owned())]);
        assert!(command.owned_by_client && command.tty.is_none());
    }

    #[test]
    fn a_shell_line_runs_in_a_login_shell_and_a_terminal_has_a_size() {
        let start = SessionStart { shell: Some("echo $A".into()), terminal: Some((0, 132)), ..SessionStart::default() };
        let command = command_of(start, "bash").expect("a command");
        assert_eq!(command.argv, ["bash", "-lc", "echo $A"]);
        assert_eq!(command.tty, Some(Winsize { rows: ROWS_DEFAULT, cols: 132 }));
        assert!(command_of(SessionStart::default(), "bash").is_err());
        let odd = SessionStart { shell: Some("true".into()), env: vec!["A B=1".into()], ..SessionStart::default() };
        assert!(command_of(odd, "bash").is_err_and(|refusal| refusal.to_string().contains("'A B'")));
    }
}
