//! What the caller hears of the processes that it makes.

use std::os::fd::OwnedFd;

use nix::sys::wait::waitpid;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::sync::{Sync, ToParent};
use crate::{Error, Result, Step, error::OnStep as _};

/// The process that a helper has made with `CLONE_PARENT` and named by its pid on `answer`, and a pidfd of it; reaps the
/// helper. The socket is the helper's alone: what the process itself has to say may come before the helper's answer.
pub(crate) fn child_of(answer: &Sync, helper: Pid, step: Step, name: &str) -> Result<(Pid, OwnedFd)> {
    let reply = answer.receive::<std::result::Result<i32, Error>>().on(step, name)?;
    waitpid(nix::unistd::Pid::from_raw(helper.as_raw_pid()), None).on(step, name)?;
    let pid = match reply {
        Some((Ok(pid), _)) => pid,
        Some((Err(error), _)) => return Err(error),
        None => return Err(Error::invalid(step, name, "it ended without an answer")),
    };
    let pid = Pid::from_raw(pid).ok_or_else(|| Error::invalid(step, name, "bad pid"))?;
    // The process is our child and not reaped yet, so the number cannot have been reused.
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).on(step, "pidfd_open(2)")?;
    Ok((pid, pidfd))
}

/// Listens to the first process: until it waits for `start`, or until `execve` has closed its end.
pub(crate) fn listen(sync: &Sync, wait_for_start: bool, warnings: &mut Vec<String>) -> Result<Option<OwnedFd>> {
    let mut terminal = None;
    loop {
        match sync.receive::<ToParent>().on(Step::Exec, "the first process")? {
            Some((ToParent::Failed(error), _)) => return Err(error),
            Some((ToParent::Warning(text), _)) => warnings.push(text),
            Some((ToParent::Terminal, fd)) => terminal = fd,
            Some((ToParent::Waiting, _)) if wait_for_start => return Ok(terminal),
            Some((ToParent::Waiting, _)) => {}
            None if wait_for_start => {
                return Err(Error::invalid(Step::Start, "first process", "it ended before it was ready to start"));
            }
            None => return Ok(terminal),
        }
    }
}

/// The failure of the first process, if it has failed by itself while the caller was busy: that one is to be told.
pub(super) fn earlier_failure(sync: &Sync) -> Option<Error> {
    let mut poll = [rustix::event::PollFd::new(sync, rustix::event::PollFlags::IN)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    if rustix::event::poll(&mut poll, Some(&now)).ok()? == 0 {
        return None;
    }
    match sync.receive::<ToParent>() {
        Ok(Some((ToParent::Failed(error), _))) => Some(error),
        _ => None,
    }
}
