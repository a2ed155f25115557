//! Starting a run.

use std::sync::Arc;

use icebox_shim::handle::{ExecRequest, Exit, ExitStatus, Run, RunEvents, RunInput};
use icebox_shim::{ErrorKind, ExecFailure};

use super::command::Command;
use super::service::Runs;
use super::ticket::{Ended, Finished, Ticket};
use crate::boxes::{Awake, Entry, LiveRun, WorkKind};
use crate::clock;
use crate::events::Fact;
use crate::refusal::{Refusal, without_errno};
use crate::text::one_line;

/// A shell's exit codes for a missing program, and for one that cannot be executed.
const EXIT_NOT_FOUND: i32 = 127;
const EXIT_NOT_EXECUTABLE: i32 = 126;

/// Result of a start.
#[derive(Debug)]
pub enum Started {
    /// The program runs.
    Running {
        /// Process id inside the box.
        pid: i32,
        /// Its output.
        events: RunEvents,
        /// Its input.
        input: RunInput,
        /// Its ticket.
        ticket: Ticket,
    },
    /// There is no such program: for a client of `exec` that is an ordinary result, with a shell's exit code.
    NotExecutable {
        /// 127 or 126.
        exit_code: i32,
        /// The error text of a shell.
        message: String,
        /// Its record is being written.
        finished: Finished,
    },
}

/// Starts a command in a box that is awake.
pub async fn start(runs: &Runs, awake: &Awake, command: &Command) -> Result<Started, Refusal> {
    let entry = &awake.entry;
    if !command.hidden && entry.has_undo() {
        runs.boxes().take_undo_point(entry, &one_line(&command.prompt)).await?;
    }
    let handle = entry.handle();
    let number = entry.runs.next_number();
    let id = uuid::Builder::from_random_bytes(rand::random()).into_uuid().to_string();
    let run = LiveRun::new(number, id, command.prompt.clone(), clock::unix_ms(), command.hidden);
    let run = Arc::new(run.read_by(command.streamed_to));
    let most = runs.per_box_max;
    // Before its cgroup is made: the sweep of empty cgroups leaves alone what is in this table.
    if !entry.runs.enter(Arc::clone(&run), most) {
        return Err(Refusal::Limit(format!("{most} commands are running in this box already")));
    }
    let kind = if command.owned_by_client { WorkKind::Session } else { WorkKind::Run };
    // An init command does not count as work that keeps a box awake: servers are started by it.
    let work = (!command.hidden).then(|| entry.activity.begin(kind));
    let ticket = Ticket { runs: runs.clone(), entry: Arc::clone(entry), run, work };
    match handle.exec(request(number, command, entry, &ticket.run)).await {
        Ok(run) => {
            publish_started(&ticket);
            Ok(running(run, ticket))
        }
        Err(error) => refused(error, ticket, command).await,
    }
}

fn publish_started(ticket: &Ticket) {
    if !ticket.run.hidden {
        let (run_id, command) = (ticket.run.id.clone(), one_line(&ticket.run.prompt));
        ticket.runs.events().publish(ticket.entry.event(Fact::RunStarted { run_id, command }));
    }
}

fn request(number: u64, command: &Command, entry: &Entry, run: &LiveRun) -> ExecRequest {
    ExecRequest {
        run: number,
        argv: command.argv.clone(),
        cwd: command.cwd.clone(),
        env: command.environment(entry),
        user: command.user.clone(),
        stdin: command.stdin.is_some() || command.interactive,
        tty: command.tty,
        kill_on_disconnect: command.owned_by_client,
        timeout_ms: command.timeout_ms,
        label: label_of(run),
    }
}

/// Label that the init keeps in case this daemon dies: the public id, and whether the run is ours.
fn label_of(run: &LiveRun) -> String {
    if run.hidden { format!("hidden:{}", run.id) } else { run.id.clone() }
}

/// The inverse of [`label_of`]: public id and whether it is hidden.
pub(super) fn read_label(label: &str) -> (String, bool) {
    let (id, hidden) = match label.strip_prefix("hidden:") {
        Some(id) => (id, true),
        None => (label, false),
    };
    // The box may control its init: only an id of our form is accepted.
    let id = uuid::Uuid::parse_str(id).unwrap_or_else(|_| uuid::Uuid::new_v4());
    (id.to_string(), hidden)
}

fn running(run: Run, ticket: Ticket) -> Started {
    let pid = run.pid;
    let (events, input) = run.split();
    Started::Running { pid, events, input, ticket }
}

/// The program does not run. A missing program is a result; any other cause is an error of the request.
async fn refused(error: icebox_shim::Error, ticket: Ticket, command: &Command) -> Result<Started, Refusal> {
    let name = command.argv.first().map_or("", String::as_str);
    let (exit_code, message) = match (error.exec_failure(), error.kind()) {
        (Some(ExecFailure::Program), ErrorKind::NotFound) => (EXIT_NOT_FOUND, format!("{name}: command not found\n")),
        (Some(ExecFailure::Program), _) => {
            (EXIT_NOT_EXECUTABLE, format!("{name}: {}\n", without_errno(&error.causes())))
        }
        (Some(ExecFailure::Folder), _) => {
            let text = format!("folder '{}': {}", command.cwd, without_errno(&error.causes()));
            return Err(Refusal::Invalid(text));
        }
        _ => return Err(error.into()),
    };
    publish_started(&ticket);
    let exit = Exit { status: ExitStatus::Code(exit_code), timed_out: false };
    let ended = Ended {
        exit: Ok(exit),
        tail: message.clone().into_bytes(),
        ended_ms: clock::unix_ms(),
        events: None,
        truncated: false,
    };
    let finished = ticket.finish(ended).await;
    Ok(Started::NotExecutable { exit_code, message, finished })
}
