//! `exec`: another process in a running container.
//!
//! The caller is a sealed copy of this program (see [`crate::sealed`]), so nothing inside can reach the file on the
//! host's disk through it (CVE-2019-5736). Two processes are made: the first joins the cgroup and the namespaces, the
//! second, its child, is then in the pid namespace. `CLONE_PARENT` makes it the caller's child.

use std::{
    fs,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
};

use nix::sched::{CloneFlags, setns};
use rustix::process::{Pid, setsid};

use super::{
    foreground::{self, RunResult},
    signal::pidfd,
    state::{Container, Status},
    store::{Store, replace},
};
use crate::{
    Error, Kind, Result, Step,
    bundle::{ExecOverrides, ForExec, for_exec},
    error::OnStep as _,
    launch::{
        child_of, listen,
        process::{Entry, become_program},
        session, set_oom_score,
        sync::{Sync, ToParent},
        terminal,
    },
    plan::Process,
    process::{Cloned, clone3, exit_now, join_tasks},
    stdio::give_pipe_to_user,
};

/// Options of `exec`.
#[derive(Debug, Clone, Default)]
pub struct ExecOptions {
    /// A file with an OCI process object, in place of the container's own process. The fields below change it.
    pub process: Option<PathBuf>,
    /// Argument vector.
    pub args: Vec<String>,
    /// `KEY=value` entries that replace or join the container's.
    pub env: Vec<String>,
    /// Working directory instead of the container's.
    pub cwd: Option<PathBuf>,
    /// User and group id instead of the container's.
    pub user: Option<(u32, u32)>,
    /// Further groups.
    pub groups: Vec<u32>,
    /// Allocate a terminal.
    pub tty: bool,
    /// Capabilities to add, which the container's bounding set must hold in the kernel's eyes.
    pub capabilities: Vec<String>,
    /// Set `no_new_privs` even if the container does not.
    pub no_new_privs: bool,
    /// Return when the program runs.
    pub detach: bool,
    /// Where to write its pid.
    pub pid_file: Option<PathBuf>,
    /// A socket to which the terminal is sent.
    pub console_socket: Option<PathBuf>,
    /// Descriptors from 3 on to pass.
    pub preserve_fds: u32,
}

/// Runs a program in a running container.
///
/// # Errors
/// If the container is not running, or a step of joining it fails; the container itself is not changed.
pub fn exec(store: &Store, id: &str, options: ExecOptions) -> Result<RunResult> {
    let container = Container::open(store, id)?;
    let status = container.status();
    if !matches!(status, Status::Running | Status::Created) {
        let hint = if status == Status::Paused { "; resume it first" } else { "" };
        let cause = format!("the container is {status}{hint}");
        return Err(Error::of(Kind::WrongState, Step::Join, id, cause));
    }
    let bundle = container.bundle()?;
    let overrides = ExecOverrides {
        file: options.process,
        args: options.args,
        env: options.env,
        cwd: options.cwd,
        user: options.user,
        groups: options.groups,
        terminal: options.tty,
        capabilities: options.capabilities,
        no_new_privs: options.no_new_privs,
    };
    let ForExec { mut process, oom_score_adj, warnings: mut passed_over } = for_exec(&bundle.spec, overrides)?;
    let relay = process.terminal.is_some() && options.console_socket.is_none();
    if relay && options.detach {
        return Err(Error::invalid(
            Step::Terminal,
            "--tty",
            "a detached process with a terminal needs --console-socket",
        ));
    }
    if relay {
        process.terminal = Some(foreground::terminal_size());
    }
    let fds = foreground::preserved(options.preserve_fds)?;
    give_streams(&container, &process)?;
    let (pid, pidfd, terminal, mut warnings) = join(&container, &process, oom_score_adj, fds)?;
    warnings.append(&mut passed_over);
    if let (Some(master), Some(path)) = (&terminal, &options.console_socket) {
        foreground::send_terminal(master, path)?;
    }
    if let Some(path) = &options.pid_file {
        replace(path, pid.as_raw_pid().to_string().as_bytes()).on(Step::State, path.display())?;
    }
    if options.detach {
        return Ok(RunResult { exit_code: 0, warnings });
    }
    let exit_code = foreground::stay(pid.as_raw_pid(), &pidfd, terminal.filter(|_| relay))?;
    Ok(RunResult { exit_code, warnings })
}

type Joined = (Pid, OwnedFd, Option<OwnedFd>, Vec<String>);

fn join(
    container: &Container,
    process: &Process,
    oom_score_adj: Option<i32>,
    fds: Vec<(OwnedFd, i32)>,
) -> Result<Joined> {
    let target = pidfd(container)?;
    let flags = different_namespaces(container.facts.pid)?;
    let cgroup = container.cgroup()?;
    let tasks = cgroup.as_ref().map(|c| c.v1_tasks_fds().on(Step::JoinCgroup, c.path().as_str())).transpose()?;
    let tasks = tasks.unwrap_or_default();
    let (mine, theirs) = Sync::pair().on(Step::Clone, "socket pair")?;
    let (answered, answer) = Sync::pair().on(Step::Clone, "socket pair")?;
    let place = cgroup.as_ref().and_then(crate::cgroup::Cgroup::unified_fd);
    match clone3(0, place).on(Step::Clone, "clone3(2)")? {
        Cloned::Child => {
            drop((mine, answered));
            let sockets = Sockets { sync: theirs, answer };
            enter(process, oom_score_adj, sockets, fds, &tasks, &target, flags)
        }
        Cloned::Parent(helper, _) => {
            drop((theirs, answer, fds));
            let (pid, pidfd) = child_of(&answered, helper, Step::Join, "joining process")?;
            let mut warnings = Vec::new();
            let terminal = listen(&mine, false, &mut warnings)?;
            Ok((pid, pidfd, terminal, warnings))
        }
    }
}

/// The namespaces of the container's first process that are not the caller's own.
fn different_namespaces(pid: i32) -> Result<CloneFlags> {
    let mut flags = CloneFlags::empty();
    for (name, flag) in [
        ("user", CloneFlags::CLONE_NEWUSER),
        ("mnt", CloneFlags::CLONE_NEWNS),
        ("pid", CloneFlags::CLONE_NEWPID),
        ("net", CloneFlags::CLONE_NEWNET),
        ("ipc", CloneFlags::CLONE_NEWIPC),
        ("uts", CloneFlags::CLONE_NEWUTS),
        ("cgroup", CloneFlags::CLONE_NEWCGROUP),
    ] {
        let theirs = format!("/proc/{pid}/ns/{name}");
        let own = fs::read_link(format!("/proc/self/ns/{name}")).on(Step::Join, name)?;
        if fs::read_link(&theirs).on(Step::Join, theirs)? != own {
            flags |= flag;
        }
    }
    Ok(flags)
}

/// What the two processes tell the caller by.
struct Sockets {
    /// The second's.
    sync: Sync,
    /// The first's, for the pid of the second.
    answer: Sync,
}

/// The first of the two processes: joins, and makes the second. The second inherits the OOM score, so that the program
/// has it from its first instruction.
fn enter(
    process: &Process,
    oom_score_adj: Option<i32>,
    Sockets { sync, answer }: Sockets,
    fds: Vec<(OwnedFd, i32)>,
    tasks: &[OwnedFd],
    target: &OwnedFd,
    flags: CloneFlags,
) -> ! {
    let mut warnings = Vec::new();
    let mut join = || -> Result<Cloned> {
        if let Some(score) = oom_score_adj {
            set_oom_score(rustix::process::getpid(), score, &mut warnings)?;
        }
        session::hide(Step::Join)?;
        join_tasks(tasks).on(Step::JoinCgroup, "tasks of a v1 hierarchy")?;
        setns(target.as_fd(), flags).on(Step::Join, format!("{flags:?}"))?;
        clone3(libc::CLONE_PARENT as u64, None).on(Step::Clone, "clone3(2)")
    };
    let reply: std::result::Result<i32, Error> = match join() {
        Ok(Cloned::Child) => {
            drop(answer);
            for text in warnings {
                // The reader may be gone already; a warning is not worth a failure.
                let _ = sync.send(&ToParent::Warning(text), None);
            }
            become_process(process, sync, fds, flags.contains(CloneFlags::CLONE_NEWUSER))
        }
        // setns(2) of a pid namespace moves only children, so this process still numbers as its caller does.
        Ok(Cloned::Parent(pid, _)) => Ok(pid.as_raw_pid()),
        Err(error) => Err(error),
    };
    exit_now(i32::from(answer.send(&reply, None).is_err()))
}

/// The second: the program, once it has the container's identity.
fn become_process(process: &Process, sync: Sync, fds: Vec<(OwnedFd, i32)>, in_user_namespace: bool) -> ! {
    let enter = || -> Result<()> {
        if in_user_namespace {
            session::become_root_inside()?;
        }
        setsid().on(Step::Identity, "setsid(2)")?;
        terminal::hand_over_here(process, &sync)
    };
    match enter() {
        Ok(()) => become_program(process, sync, Entry { make_cwd: false, fds, start_socket: None }),
        Err(error) => {
            let _ = sync.send(&ToParent::Failed(error), None);
            exit_now(1)
        }
    }
}

/// Gives the pipes that the program gets to its user, in the ids of the container's user namespace.
fn give_streams(container: &Container, process: &Process) -> Result<()> {
    if process.terminal.is_some() {
        return Ok(());
    }
    let path = format!("/proc/{}/uid_map", container.facts.pid);
    let map = fs::read_to_string(&path).on(Step::Credentials, &path)?;
    let outside = map.lines().find_map(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        let (inside, outside, count) = (numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?);
        let offset = process.uid.checked_sub(inside).filter(|offset| *offset < count)?;
        outside.checked_add(offset)
    });
    // An id that is not mapped is refused later, by setresuid(2).
    let Some(uid) = outside else { return Ok(()) };
    for stream in [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()] {
        give_pipe_to_user(stream, uid).on(Step::Credentials, "owner of a standard stream")?;
    }
    Ok(())
}
