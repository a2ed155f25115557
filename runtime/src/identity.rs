//! The identity of a process. A pid alone does not suffice: the start time guards against reuse, the boot id against
//! a reboot.

use std::sync::OnceLock;
use std::{fs, io};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The kernel's name for this boot (random(4)). It is read once in the life of the process.
///
/// # Errors
/// If /proc is not there.
pub fn boot_id() -> io::Result<&'static str> {
    static READ: OnceLock<String> = OnceLock::new();
    if let Some(id) = READ.get() {
        return Ok(id);
    }
    let id = fs::read_to_string(BOOT_ID)?.trim().to_owned();
    Ok(READ.get_or_init(|| id))
}

/// State letter and start time in clock ticks since boot of a process (proc_pid_stat(5), fields 3 and 22); `None` if
/// there is none.
#[must_use]
pub fn state_and_start(pid: i32) -> Option<(char, u64)> {
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

/// True if the process exists, has this start time and boot id, and has not ended.
#[must_use]
pub fn alive(pid: i32, start_time: u64, boot: &str) -> bool {
    boot_id().is_ok_and(|now| now == boot)
        && state_and_start(pid).is_some_and(|(state, start)| start == start_time && !matches!(state, 'Z' | 'X'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let line = "42 (a) b) (c)) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1000 1 18446744073709551615";
        assert_eq!(parse_stat(line), Some(('S', 98765)));
        let stat = "7 (a) 1 (b) S 1 7 7 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 1 0 98765 1000 100 18446744073709551615";
        assert_eq!(parse_stat(stat), Some(('S', 98765)));
        for bad in ["garbage", "1 (x) S 1", "7 (x"] {
            assert_eq!(parse_stat(bad), None, "{bad}");
        }
    }

    #[test]
    fn this_process_is_alive_and_another_start_time_is_not() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let (_, start) = state_and_start(pid).unwrap();
        let boot = boot_id().unwrap();
        assert!(alive(pid, start, boot));
        assert!(!alive(pid, start + 1, boot));
        assert!(!alive(pid, start, "another boot"));
    }
}
