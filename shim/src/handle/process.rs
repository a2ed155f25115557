//! The kernel's truth about a box's init process, from outside.
//!
//! A pid alone proves nothing: the start time guards against reuse, the boot id against a reboot.

use std::fs;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions};
use tokio::io::Ready;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// How often a process is looked at when the kernel gives no pidfd for it.
const FALLBACK_POLL_MS: u64 = 200;

/// This boot's id.
///
/// # Errors
/// /proc is not there.
pub fn boot_id() -> Result<String, crate::Error> {
    fs::read_to_string(BOOT_ID)
        .map(|text| text.trim().to_owned())
        .map_err(|e| crate::Error::io("read boot id", BOOT_ID, e))
}

/// State letter and start time in clock ticks of a process; `None` if there is none.
pub(crate) fn state_and_start(pid: i32) -> Option<(char, u64)> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    parse_stat(&String::from_utf8_lossy(&text))
}

/// The command name in field 2 may hold spaces and parentheses: fields are counted after the last one.
fn parse_stat(text: &str) -> Option<(char, u64)> {
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    // Field 22 of the line; the state was field 3.
    let start = fields.nth(18)?.parse().ok()?;
    Some((state, start))
}

/// The process exists, is that very one, and has not ended.
pub(super) fn alive(pid: i32, start_time_ticks: u64, boot: &str) -> bool {
    boot_id().is_ok_and(|now| now == boot)
        && state_and_start(pid).is_some_and(|(state, start)| start == start_time_ticks && !matches!(state, 'Z' | 'X'))
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

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let line = "42 (a) b) (c)) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1000 1 18446744073709551615";
        assert_eq!(parse_stat(line), Some(('S', 98765)));
        assert_eq!(parse_stat("garbage"), None);
        assert_eq!(parse_stat("1 (x) S 1"), None);
    }

    #[test]
    fn this_process_is_alive_and_another_start_time_is_not() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let (_, start) = state_and_start(pid).unwrap();
        let boot = boot_id().unwrap();
        assert!(alive(pid, start, &boot));
        assert!(!alive(pid, start + 1, &boot));
        assert!(!alive(pid, start, "another boot"));
    }

    #[tokio::test]
    async fn a_dead_child_is_waited_for_and_reaped() {
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
