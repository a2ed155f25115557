//! What was typed, and what it means. Each verb is one arm of [`dispatch`]; the work is in the library.

mod parse;
mod report;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use icebox_runtime::{
    Error, Result, Step,
    container::{self, CreateOptions, ExecOptions, Store},
};

/// Container runtime that follows the OCI runtime specification.
#[derive(Debug, Parser)]
#[command(name = "icerun", version)]
struct Cli {
    /// Directory for the state of containers.
    #[arg(long, default_value = "/run/icerun", global = true)]
    root: PathBuf,
    /// File for errors and warnings instead of standard error.
    #[arg(long, global = true)]
    log: Option<PathBuf>,
    /// Format of the log: text or json.
    #[arg(long, default_value = "text", global = true)]
    log_format: String,
    /// Accepted for compatibility; every failure already names its step, subject and cause.
    #[arg(long, global = true)]
    debug: bool,
    /// Place containers through systemd.
    #[arg(long, global = true)]
    systemd_cgroup: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Set a container up; its program waits for `start`.
    Create(Create),
    /// Let a created container run its program.
    Start {
        /// Name of the container.
        id: String,
    },
    /// Print the state of a container as JSON.
    State {
        /// Name of the container.
        id: String,
    },
    /// Send a signal to the first process of a container.
    Kill {
        /// Every process of the container.
        #[arg(short, long)]
        all: bool,
        /// Name of the container.
        id: String,
        /// Name or number of the signal.
        #[arg(default_value = "TERM")]
        signal: String,
    },
    /// Remove a stopped container.
    Delete {
        /// Kill what runs; no error if there is no such container.
        #[arg(short, long)]
        force: bool,
        /// Name of the container.
        id: String,
    },
    /// Create and start a container, wait for its end, remove it.
    Run {
        /// Return when the program runs.
        #[arg(short, long)]
        detach: bool,
        #[command(flatten)]
        create: Create,
    },
    /// Run another program in a running container.
    Exec(Box<Exec>),
    /// List containers.
    List {
        /// table or json.
        #[arg(short, long, default_value = "table")]
        format: String,
        /// Names only.
        #[arg(short, long)]
        quiet: bool,
    },
    /// Freeze all processes of a container.
    Pause {
        /// Name of the container.
        id: String,
    },
    /// Thaw a paused container.
    Resume {
        /// Name of the container.
        id: String,
    },
    /// List the processes of a container.
    Ps {
        /// table or json.
        #[arg(short, long, default_value = "table")]
        format: String,
        /// Name of the container.
        id: String,
    },
}

#[derive(Debug, Args)]
struct Create {
    /// Directory that holds config.json.
    #[arg(short, long, default_value = ".")]
    bundle: PathBuf,
    /// Unix socket that receives the terminal.
    #[arg(long)]
    console_socket: Option<PathBuf>,
    /// File for the pid of the first process.
    #[arg(long)]
    pid_file: Option<PathBuf>,
    /// Pass this many descriptors from 3 on.
    #[arg(long, default_value_t = 0)]
    preserve_fds: u32,
    /// Go on, with a warning, when a limit cannot be enforced on this host.
    #[arg(long)]
    allow_unenforced_limits: bool,
    /// Accepted for compatibility: a new session keyring is always made.
    #[arg(long)]
    no_new_keyring: bool,
    /// Name of the container.
    id: String,
}

impl Create {
    fn options(&self) -> CreateOptions {
        CreateOptions {
            bundle: self.bundle.clone(),
            console_socket: self.console_socket.clone(),
            pid_file: self.pid_file.clone(),
            preserve_fds: self.preserve_fds,
            allow_unenforced_limits: self.allow_unenforced_limits,
        }
    }
}

#[derive(Debug, Args)]
struct Exec {
    /// Working directory.
    #[arg(long)]
    cwd: Option<PathBuf>,
    /// KEY=value, may be repeated.
    #[arg(short, long)]
    env: Vec<String>,
    /// Allocate a terminal.
    #[arg(short, long)]
    tty: bool,
    /// uid or uid:gid.
    #[arg(short, long)]
    user: Option<String>,
    /// Further group id, may be repeated.
    #[arg(short = 'g', long)]
    additional_gids: Vec<u32>,
    /// Process as JSON instead of arguments.
    #[arg(short, long)]
    process: Option<PathBuf>,
    /// Return when the program runs.
    #[arg(short, long)]
    detach: bool,
    /// File for the pid of the program.
    #[arg(long)]
    pid_file: Option<PathBuf>,
    /// Capability to add, may be repeated.
    #[arg(short, long)]
    cap: Vec<String>,
    /// Set no_new_privs.
    #[arg(long)]
    no_new_privs: bool,
    /// Unix socket that receives the terminal.
    #[arg(long)]
    console_socket: Option<PathBuf>,
    /// Pass this many descriptors from 3 on.
    #[arg(long, default_value_t = 0)]
    preserve_fds: u32,
    /// Name of the container.
    id: String,
    /// Program and arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

impl Exec {
    fn options(self) -> Result<ExecOptions> {
        Ok(ExecOptions {
            process: self.process,
            args: self.args,
            env: self.env,
            cwd: self.cwd,
            user: self.user.as_deref().map(parse::user).transpose()?,
            groups: self.additional_gids,
            tty: self.tty,
            capabilities: self.cap,
            no_new_privs: self.no_new_privs,
            detach: self.detach,
            pid_file: self.pid_file,
            console_socket: self.console_socket,
            preserve_fds: self.preserve_fds,
        })
    }
}

/// Runs the command line. An error is printed here and nowhere else.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let log = report::Log::new(cli.log.clone(), &cli.log_format);
    let exec = matches!(cli.verb, Verb::Exec(_));
    match dispatch(cli, &log) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            log.error(&error);
            // runc's exec reports its own failures with 255, to keep them apart from the program's codes.
            ExitCode::from(if exec { 255 } else { 1 })
        }
    }
}

fn dispatch(cli: Cli, log: &report::Log) -> Result<u8> {
    if cli.systemd_cgroup {
        return Err(Error::unsupported(Step::Cgroup, "--systemd-cgroup", "the systemd driver is not supported yet"));
    }
    if matches!(cli.verb, Verb::Create(_) | Verb::Run { .. } | Verb::Exec(_)) {
        // In these three verbs a process of this program is in the container for a moment.
        icebox_runtime::sealed::ensure()?;
    }
    let store = Store::new(&cli.root);
    match cli.verb {
        Verb::Create(create) => log.warn(&container::create(&store, &create.id, &create.options())?),
        Verb::Start { id } => log.warn(&container::start(&store, &id)?),
        Verb::State { id } => report::json(&container::state(&store, &id)?)?,
        Verb::Kill { all, id, signal } => container::kill(&store, &id, parse::signal(&signal)?, all)?,
        Verb::Delete { force, id } => container::delete(&store, &id, force)?,
        Verb::Run { detach, create } => {
            let result = container::run(&store, &create.id, &create.options(), detach)?;
            log.warn(&result.warnings);
            return Ok(exit_code(result.exit_code));
        }
        Verb::Exec(exec) => {
            let id = exec.id.clone();
            let result = container::exec(&store, &id, exec.options()?)?;
            log.warn(&result.warnings);
            return Ok(exit_code(result.exit_code));
        }
        Verb::List { format, quiet } => report::list(container::list(&store)?, &format, quiet, log)?,
        Verb::Pause { id } => container::pause(&store, &id)?,
        Verb::Resume { id } => container::resume(&store, &id)?,
        Verb::Ps { format, id } => report::processes(&container::processes(&store, &id)?, &format)?,
    }
    Ok(0)
}

fn exit_code(code: i32) -> u8 {
    u8::try_from(code).unwrap_or(u8::MAX)
}
