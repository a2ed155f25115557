//! The kernel's truth about a box's init process, from outside.
//!
//! What identifies a process is the runtime's `identity`; this file waits and reaps.

use std::time::Duration;

pub(super) use icebox_runtime::identity::alive;
use icebox_runtime::identity::state_and_start;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions};
use tokio::io::Ready;

/// How often a process is looked at when the kernel gives no pidfd for it.
const FALLBACK_POLL_MS: u64 = 200;

/// This boot's id.
///
/// # Errors
/// /proc is not there.
pub fn boot_id() -> Result<String, crate::Error> {
    icebox_runtime::identity::boot_id().map_err(|e| crate::Error::io("read boot id", "", e))
}

/// Returns when the process has ended, and reaps it if it is a child of this process.
pub(super) async fn wait_dead(pid: i32, start_time_ticks: u64, boot: &str) {
    let Some(id) = Pid::from_raw(pid) else { return };
    // Order matters: the pidfd first, then the check that it is the right process.
    let pidfd = rustix::process::pidfd_open(id, PidfdFlags::NONBLOCK);
    if alive(pid, start_time_ticks, boot) {
        match pidfd.map(crate::sys::watch_readable) {
            Ok(Ok(watched)) => {
                while let Ok(mut guard) = watched.readable().await {
                    // A pidfd is readable once its process has ended, and stays so.
                    if !alive(pid, start_time_ticks, boot) {
                        break;
                    }
                    guard.clear_ready_matching(Ready::READABLE);
                }
                reap(WaitId::PidFd(std::os::fd::AsFd::as_fd(watched.get_ref())));
                return;
            }
            // No descriptors left, for example: look from time to time, the process can still be waited for.
            _ => {
                while alive(pid, start_time_ticks, boot) {
                    tokio::time::sleep(Duration::from_millis(FALLBACK_POLL_MS)).await;
                }
            }
        }
    }
    if state_and_start(pid).is_some_and(|(_, start)| start == start_time_ticks) {
        reap(WaitId::Pid(id));
    }
}

/// Somebody else's child is somebody else's to reap, so an error means nothing.
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
        let waiting = tokio::spawn(async move { wait_dead(pid, start, &boot).await });
        drop(child.stdin.take());
        waiting.await.unwrap();
        assert!(state_and_start(pid).is_none(), "it was reaped");
    }
}
