//! The kernel's truth about a box's init process, from outside.
//!
//! The runtime's `identity` identifies a process; this file holds one by a pidfd, waits and reaps.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use icebox_runtime::identity::{alive, state_and_start};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, WaitId, WaitIdOptions, pidfd_getfd};
use tokio::io::Ready;

/// How often a process is looked at when the kernel gives no pidfd for it.
const FALLBACK_POLL_MS: u64 = 200;

/// This boot's id.
///
/// # Errors
/// /proc is not there.
pub fn boot_id() -> Result<String, crate::Error> {
    icebox_runtime::identity::boot_id().map(str::to_owned).map_err(|e| crate::Error::io("read boot id", "", e))
}

/// The process that was asked about last, held by a pidfd once /proc has shown that it is the right one.
///
/// The question "does it live?" is asked for every request to a box. With a pidfd it is one system call; without one it
/// is three reads of files below /proc.
#[derive(Debug, Default)]
pub(super) struct Held {
    process: Mutex<Option<Process>>,
}

#[derive(Debug)]
struct Process {
    pid: i32,
    start_time_ticks: u64,
    pidfd: OwnedFd,
}

impl Held {
    /// True if the process exists, has this start time and boot id, and has not ended.
    pub(super) fn alive(&self, pid: i32, start_time_ticks: u64, boot: &str) -> bool {
        let mut held = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = held.as_ref()
            && (known.pid, known.start_time_ticks) == (pid, start_time_ticks)
        {
            return !has_ended(&known.pidfd);
        }
        // The pidfd comes first, then the check that it is the right process.
        let pidfd = Pid::from_raw(pid).map(|id| rustix::process::pidfd_open(id, PidfdFlags::empty()));
        let is_alive = alive(pid, start_time_ticks, boot);
        if let (true, Some(Ok(pidfd))) = (is_alive, pidfd) {
            *held = Some(Process { pid, start_time_ticks, pidfd });
        }
        is_alive
    }
}

impl Held {
    /// Returns when the process has ended, and reaps it if it is a child of this process.
    pub(super) async fn wait_dead(&self, pid: i32, start_time_ticks: u64, boot: &str) {
        // With a pidfd of its own: the held one may become another process's.
        let pidfd = self.alive(pid, start_time_ticks, boot).then(|| self.pidfd_of(pid, start_time_ticks));
        wait_dead(pid, start_time_ticks, boot, pidfd.flatten()).await;
    }

    /// A copy of the pidfd, if this process is held.
    fn pidfd_of(&self, pid: i32, start_time_ticks: u64) -> Option<OwnedFd> {
        let held = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        let known = held.as_ref().filter(|known| (known.pid, known.start_time_ticks) == (pid, start_time_ticks))?;
        known.pidfd.try_clone().ok()
    }

    /// Copies descriptors of the process that was found alive last (pidfd_getfd(2)).
    pub(super) fn descriptors<const N: usize>(&self, numbers: [i32; N]) -> Option<rustix::io::Result<Vec<OwnedFd>>> {
        let held = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        let pidfd = &held.as_ref()?.pidfd;
        Some(numbers.iter().map(|number| pidfd_getfd(pidfd, *number, PidfdGetfdFlags::empty())).collect())
    }
}

/// A pidfd is readable once its process has ended, reaped or not.
fn has_ended(pidfd: &OwnedFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    loop {
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&now)) {
            Err(rustix::io::Errno::INTR) => {}
            answer => return answer.is_ok_and(|ready| ready > 0),
        }
    }
}

/// Waits by this pidfd, if there is one and the process is alive.
async fn wait_dead(pid: i32, start_time_ticks: u64, boot: &str, pidfd: Option<OwnedFd>) {
    let Some(id) = Pid::from_raw(pid) else { return };
    match pidfd.map(crate::sys::watch_readable) {
        Some(Ok(watched)) => {
            while let Ok(mut guard) = watched.readable().await {
                // A pidfd is readable once its process has ended, and stays so.
                if has_ended(watched.get_ref()) {
                    break;
                }
                guard.clear_ready_matching(Ready::READABLE);
            }
            reap(WaitId::PidFd(watched.get_ref().as_fd()));
            return;
        }
        // No descriptors left, for example: poll /proc instead; the process can still be waited for.
        _ => {
            while alive(pid, start_time_ticks, boot) {
                tokio::time::sleep(Duration::from_millis(FALLBACK_POLL_MS)).await;
            }
        }
    }
    if state_and_start(pid).is_some_and(|(_, start)| start == start_time_ticks) {
        reap(WaitId::Pid(id));
    }
}

/// Another process's child is reaped by its own parent, so an error is ignored.
fn reap(id: WaitId<'_>) {
    let _ = rustix::process::waitid(id, WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dead_child_is_waited_for_and_reaped() {
        // Reaped by the call under test, not by `wait`.
        #[allow(clippy::zombie_processes)]
        let mut child = std::process::Command::new("/bin/sh")
            .args(["-c", "read line"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let (_, start) = state_and_start(pid).unwrap();
        let boot = boot_id().unwrap();
        let waiting = tokio::spawn(async move { Held::default().wait_dead(pid, start, &boot).await });
        drop(child.stdin.take());
        waiting.await.unwrap();
        assert!(state_and_start(pid).is_none(), "it was reaped");
    }

    #[test]
    fn a_held_process_is_alive_until_it_ends_and_is_never_taken_for_another() {
        let mut child = std::process::Command::new("/bin/sh")
            .args(["-c", "read line"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let (_, start) = state_and_start(pid).unwrap();
        let boot = boot_id().unwrap();
        let held = Held::default();
        assert!(!held.alive(pid, start + 1, &boot), "another process had this pid");
        assert!(held.alive(pid, start, &boot) && held.alive(pid, start, &boot));
        assert!(!held.alive(pid, start + 1, &boot));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(!held.alive(pid, start, &boot), "it has ended");
    }
}
