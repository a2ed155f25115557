//! Arguments that need more than clap.

use std::path::Path;

use icebox_runtime::{Result, container::ExecOptions};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::bad_argument;

const SIGNAL_MAX: i32 = 64;

/// A signal by name, with or without `SIG`, or by number.
pub(super) fn signal(text: &str) -> Result<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=SIGNAL_MAX).contains(&number) {
            Ok(number)
        } else {
            Err(bad_argument(text, format!("signal numbers go from 1 to {SIGNAL_MAX}")))
        };
    }
    let upper = text.to_ascii_uppercase();
    let full = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    full.parse::<Signal>().map(|s| s as i32).map_err(|_| bad_argument(text, "no such signal"))
}

/// `uid` or `uid:gid`, each from 0 to 2^32 - 2. Names would need the container's own user database.
pub(super) fn user(text: &str) -> Result<(u32, u32)> {
    let number = |part: &str| -> Result<u32> {
        // No sign, no blanks: `-1` must never become an id (CVE-2024-40635 and its kind).
        let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        match part.parse::<u32>() {
            Ok(n) if digits && n != u32::MAX => Ok(n),
            _ => Err(bad_argument(&format!("--user {text}"), "expected uid or uid:gid, numbers below 4294967295")),
        }
    };
    match text.split_once(':') {
        Some((uid, gid)) => Ok((number(uid)?, number(gid)?)),
        None => Ok((number(text)?, 0)),
    }
}

/// The process object of `exec --process`.
pub(super) fn process_file(path: &Path) -> Result<ExecOptions> {
    let subject = path.display().to_string();
    let bytes = std::fs::read(path).map_err(|error| bad_argument(&subject, error))?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|error| bad_argument(&subject, error))?;
    let strings = |pointer: &str| -> Vec<String> {
        value
            .pointer(pointer)
            .and_then(Value::as_array)
            .map_or_else(Vec::new, |list| list.iter().filter_map(Value::as_str).map(str::to_owned).collect())
    };
    let number = |pointer: &str| -> Result<u32> {
        match value.pointer(pointer).map(Value::as_u64) {
            None => Ok(0),
            Some(Some(n)) if n < u64::from(u32::MAX) => Ok(n as u32),
            Some(_) => Err(bad_argument(&subject, format!("{pointer} is not an id"))),
        }
    };
    Ok(ExecOptions {
        args: strings("/args"),
        env: strings("/env"),
        cwd: value.pointer("/cwd").and_then(Value::as_str).map(Into::into),
        user: Some((number("/user/uid")?, number("/user/gid")?)),
        tty: value.pointer("/terminal").and_then(Value::as_bool).unwrap_or(false),
        no_new_privs: value.pointer("/noNewPrivileges").and_then(Value::as_bool).unwrap_or(false),
        ..ExecOptions::default()
    })
}

#[cfg(test)]
mod tests {
    use super::{signal, user};

    #[test]
    fn signals() {
        assert_eq!(signal("KILL").unwrap(), 9);
        assert_eq!(signal("sigterm").unwrap(), 15);
        assert_eq!(signal("10").unwrap(), 10);
        for bad in ["0", "65", "-9", "NOPE", ""] {
            assert!(signal(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn users_are_checked_numbers() {
        assert_eq!(user("1").unwrap(), (1, 0));
        assert_eq!(user("1000:5").unwrap(), (1000, 5));
        for bad in ["", "-1", "1:", ":1", "4294967295", "4294967296", "1:-1", "+1", " 1", "root"] {
            assert!(user(bad).is_err(), "{bad}");
        }
    }
}
