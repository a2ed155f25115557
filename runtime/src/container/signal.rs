//! Verbs on a container that exists: start, kill, pause, resume, ps.

use std::{fs, os::fd::AsFd as _, time::Duration};

use rustix::{
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with},
    process::{Pid, PidfdFlags, pidfd_open},
};

use super::{
    state::{Container, Status},
    store::Store,
};
use crate::{
    Error, Kind, Result, Step,
    error::OnStep as _,
    launch::sync::{Sync, ToParent},
    sys::process as sys,
};

const FREEZE_DEADLINE: Duration = Duration::from_secs(10);

/// Lets a created container run its program. Returns warnings.
///
/// # Errors
/// If it is not in the state `created`, or the program cannot be executed; the container is then stopped.
pub fn start(store: &Store, id: &str) -> Result<Vec<String>> {
    let _lock = store.lock(id)?;
    let container = Container::open(store, id)?;
    let status = container.status();
    if status != Status::Created {
        let cause = format!("the container is {status}, not created");
        return Err(Error::of(Kind::WrongState, Step::Start, id, cause));
    }
    let path = store.start_socket(id);
    let knock = || -> std::io::Result<Sync> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        connect(&socket, &SocketAddrUnix::new(&path)?)?;
        Ok(Sync::from(socket))
    };
    let sync = knock().on(Step::Start, path.display())?;
    let mut warnings = Vec::new();
    // execve closes the other end: end of file says that the program runs.
    while let Some((message, _)) = sync.receive::<ToParent>().on(Step::Start, id)? {
        match message {
            ToParent::Failed(error) => return Err(error),
            ToParent::Warning(text) => warnings.push(text),
            ToParent::Terminal | ToParent::Waiting => {}
        }
    }
    fs::remove_file(&path).on(Step::Start, path.display())?;
    Ok(warnings)
}

/// Sends a signal (0 only asks whether there is a process) to the first process, or with `all` to every process of the container.
///
/// # Errors
/// If the container has ended.
pub fn kill(store: &Store, id: &str, signal: i32, all: bool) -> Result<()> {
    let container = Container::open(store, id)?;
    if all && let Some(cgroup) = container.cgroup()? {
        return cgroup.signal_all(signal).on(Step::Signal, id);
    }
    let pidfd = pidfd(&container)?;
    sys::pidfd_signal(pidfd.as_fd(), signal).on(Step::Signal, id)
}

/// A pidfd of the first process, proven to be that process: opened first, then compared by start time.
pub(super) fn pidfd(container: &Container) -> Result<std::os::fd::OwnedFd> {
    let id = &container.facts.id;
    let gone = || Error::of(Kind::WrongState, Step::Signal, id, "container not running: its first process has ended");
    let pid = Pid::from_raw(container.facts.pid).ok_or_else(gone)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|_| gone())?;
    if container.alive() { Ok(pidfd) } else { Err(gone()) }
}

/// Freezes all processes of a container.
///
/// # Errors
/// If it is not running, or does not freeze within 10 s; it then runs on.
pub fn pause(store: &Store, id: &str) -> Result<()> {
    freeze(store, id, &[Status::Running, Status::Created], true)
}

/// Thaws a paused container.
///
/// # Errors
/// If it is not paused.
pub fn resume(store: &Store, id: &str) -> Result<()> {
    freeze(store, id, &[Status::Paused], false)
}

fn freeze(store: &Store, id: &str, from: &[Status], on: bool) -> Result<()> {
    let _lock = store.lock(id)?;
    let container = Container::open(store, id)?;
    let status = container.status();
    if !from.contains(&status) {
        let cause = format!("the container is {status}");
        return Err(Error::of(Kind::WrongState, Step::Freeze, id, cause));
    }
    let cgroup =
        container.cgroup()?.ok_or_else(|| Error::of(Kind::WrongState, Step::Freeze, id, "its cgroup is gone"))?;
    let done = if on { cgroup.freeze(FREEZE_DEADLINE) } else { cgroup.thaw(FREEZE_DEADLINE) };
    done.on(Step::Freeze, id)
}

/// The pids of a container's processes, as the host numbers them.
///
/// # Errors
/// If there is no such container.
pub fn processes(store: &Store, id: &str) -> Result<Vec<i32>> {
    let container = Container::open(store, id)?;
    match container.cgroup()? {
        Some(cgroup) => cgroup.procs().on(Step::State, id),
        None => Ok(Vec::new()),
    }
}
