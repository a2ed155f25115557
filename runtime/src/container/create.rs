//! `create` and `run`.

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};

use super::{
    delete::tear_down,
    facts::{CgroupFacts, Facts},
    foreground::{self, RunResult},
    signal::start,
    store::{Store, check_id, replace},
};
use crate::{
    Error, Result, Step,
    bundle::Bundle,
    error::OnStep as _,
    identity::boot_id,
    launch::{self, Child, Inherit},
    plan::Plan,
};

/// Options of `create` and `run`.
#[derive(Debug, Clone, Default)]
pub struct CreateOptions {
    /// The bundle's directory.
    pub bundle: PathBuf,
    /// A socket to which the terminal is sent (runc's `--console-socket`).
    pub console_socket: Option<PathBuf>,
    /// Where to write the pid of the first process.
    pub pid_file: Option<PathBuf>,
    /// How many descriptors from 3 on the container gets (runc's `--preserve-fds`).
    pub preserve_fds: u32,
    /// Go on when a limit cannot be enforced, with a warning.
    pub allow_unenforced_limits: bool,
}

/// Creates a container. Returns warnings.
///
/// # Errors
/// The failed step; nothing of the container is left.
pub fn create(store: &Store, id: &str, options: &CreateOptions) -> Result<Vec<String>> {
    let bundle = Bundle::read(&options.bundle)?;
    let plan = plan(&bundle, id, options)?;
    create_planned(store, id, options, &bundle, &plan)
}

fn create_planned(
    store: &Store,
    id: &str,
    options: &CreateOptions,
    bundle: &Bundle,
    plan: &Plan,
) -> Result<Vec<String>> {
    match (&plan.process.terminal, &options.console_socket) {
        (Some(_), None) => {
            let cause = "the process wants a terminal: give --console-socket, or use `run`";
            return Err(Error::invalid(Step::Terminal, "process.terminal", cause));
        }
        (None, Some(socket)) => {
            let cause = "given, but process.terminal is false";
            return Err(Error::invalid(Step::Terminal, format!("--console-socket {}", socket.display()), cause));
        }
        _ => {}
    }
    let (child, mut warnings) = make(store, id, options, bundle, plan)?;
    hand_over_terminal(store, id, options, &child)?;
    warnings.extend(child.warnings);
    Ok(warnings)
}

/// Creates and starts a container and, unless `detach`, stays with it until its first process ends and removes it.
///
/// # Errors
/// The failed step; nothing of the container is left.
pub fn run(store: &Store, id: &str, options: &CreateOptions, detach: bool) -> Result<RunResult> {
    let bundle = Bundle::read(&options.bundle)?;
    let mut plan = plan(&bundle, id, options)?;
    let relay = plan.process.terminal.is_some() && options.console_socket.is_none();
    if relay && detach {
        let cause = "a detached process with a terminal needs --console-socket";
        return Err(Error::invalid(Step::Terminal, "process.terminal", cause));
    }
    if detach {
        let warnings = create_planned(store, id, options, &bundle, &plan)?;
        start(store, id).inspect_err(|_| drop(tear_down(store, id)))?;
        return Ok(RunResult { exit_code: 0, warnings });
    }
    // In the foreground no other process can call `start`, so the program runs at once.
    plan.wait_for_start = false;
    if relay {
        plan.process.terminal = Some(foreground::terminal_size());
    }
    let (mut child, mut warnings) = make(store, id, options, &bundle, &plan)?;
    hand_over_terminal(store, id, options, &child)?;
    warnings.append(&mut child.warnings);
    let ended = foreground::stay(child.pid, &child.pidfd, child.terminal.take().filter(|_| relay));
    tear_down(store, id)?;
    Ok(RunResult { exit_code: ended?, warnings })
}

/// Sends the terminal to the console socket, if the caller wants that; takes the container back if it can't.
fn hand_over_terminal(store: &Store, id: &str, options: &CreateOptions, child: &Child) -> Result<()> {
    if let (Some(master), Some(path)) = (&child.terminal, &options.console_socket)
        && let Err(error) = foreground::send_terminal(master, path)
    {
        tear_down(store, id)?;
        return Err(error);
    }
    Ok(())
}

fn plan(bundle: &Bundle, id: &str, options: &CreateOptions) -> Result<Plan> {
    check_id(id)?;
    let mut plan = bundle.plan(id)?;
    if options.allow_unenforced_limits
        && let Some(cgroup) = &mut plan.cgroup
    {
        cgroup.unenforced = crate::cgroup::Unenforced::Allow;
    }
    Ok(plan)
}

/// Claims the name, makes the container, writes the facts.
fn make(
    store: &Store,
    id: &str,
    options: &CreateOptions,
    bundle: &Bundle,
    plan: &Plan,
) -> Result<(Child, Vec<String>)> {
    let fds = foreground::preserved(options.preserve_fds)?;
    store.claim(id)?;
    let attempt = || -> Result<Child> {
        let config = store.config(id);
        replace(&config, &bundle.bytes).on(Step::State, config.display())?;
        let start_socket = if plan.wait_for_start { Some(listen_at(&store.start_socket(id))?) } else { None };
        let child = launch::launch(plan, Inherit { fds, start_socket })?;
        let written = write_down(store, id, options, bundle, plan, &child);
        if let Err(error) = written {
            kill_child(&child);
            return Err(error);
        }
        Ok(child)
    };
    match attempt() {
        Ok(child) => Ok((child, bundle.warnings.clone())),
        Err(error) => {
            store.forget(id)?;
            Err(error)
        }
    }
}

fn kill_child(child: &Child) {
    if let Some(cgroup) = &child.cgroup {
        let _ = cgroup.kill();
        let _ = cgroup.remove(super::delete::CGROUP_REMOVE_DEADLINE);
    }
    let _ = rustix::process::pidfd_send_signal(&child.pidfd, rustix::process::Signal::KILL);
}

fn write_down(
    store: &Store,
    id: &str,
    options: &CreateOptions,
    bundle: &Bundle,
    plan: &Plan,
    child: &Child,
) -> Result<()> {
    let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let cgroup = plan.cgroup.as_ref().map(|c| CgroupFacts { manager: c.manager, path: c.path.clone() });
    let controllers = plan.cgroup.as_ref().map(|c| c.limits.controllers()).unwrap_or_default();
    store.save(&Facts {
        id: id.to_owned(),
        bundle: bundle.dir.clone(),
        rootfs: bundle.rootfs()?,
        pid: child.pid,
        start_time: child.start_time,
        boot_id: boot_id().on(Step::State, "boot id")?.to_owned(),
        created,
        cgroup,
        controllers: controllers.iter().map(ToString::to_string).collect(),
        annotations: bundle.annotations().into_iter().collect::<BTreeMap<_, _>>(),
    })?;
    if let Some(path) = &options.pid_file {
        replace(path, child.pid.to_string().as_bytes()).on(Step::State, path.display())?;
    }
    Ok(())
}

/// A listening packet socket at a path of the state directory.
fn listen_at(path: &Path) -> Result<OwnedFd> {
    let make = || -> std::io::Result<OwnedFd> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        bind(&socket, &SocketAddrUnix::new(path)?)?;
        listen(&socket, 1)?;
        Ok(socket)
    };
    make().on(Step::State, path.display())
}
