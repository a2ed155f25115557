//! Arguments that need more than clap.

use icebox_runtime::{Error, Kind, Result, Step};
use nix::sys::signal::Signal;

const SIGNAL_MAX: i32 = 64;
/// The first real-time signal that programs may use.
const RTMIN: i32 = 34;

/// An argument that cannot be read.
pub(super) fn bad_argument(what: &str, cause: impl std::fmt::Display) -> Error {
    Error::of(Kind::Invalid, Step::Bundle, what, cause)
}

/// A signal by name, with or without `SIG`, or by number.
pub(super) fn signal(text: &str) -> Result<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return if (0..=SIGNAL_MAX).contains(&number) {
            Ok(number)
        } else {
            Err(bad_argument(text, format!("signal numbers go from 0 to {SIGNAL_MAX}")))
        };
    }
    let upper = text.to_ascii_uppercase();
    if let Some(number) = real_time(upper.strip_prefix("SIG").unwrap_or(&upper)) {
        return Ok(number);
    }
    let full = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    full.parse::<Signal>().map(|s| s as i32).map_err(|_| bad_argument(text, "no such signal"))
}

/// `RTMIN`, `RTMIN+n`, `RTMAX` or `RTMAX-n`, counted as signal(7) counts: 34 to 64, since the C library keeps 32 and 33.
fn real_time(name: &str) -> Option<i32> {
    let offset = |text: &str, sign: char| match text.strip_prefix(sign) {
        None => text.is_empty().then_some(0),
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse::<i32>().ok(),
        Some(_) => None,
    };
    let number = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => RTMIN.checked_add(offset(rest, '+')?)?,
        (_, Some(rest)) => SIGNAL_MAX.checked_sub(offset(rest, '-')?)?,
        _ => return None,
    };
    (RTMIN..=SIGNAL_MAX).contains(&number).then_some(number)
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

#[cfg(test)]
mod tests {
    use super::{signal, user};

    #[test]
    fn signals() {
        assert_eq!(signal("KILL").unwrap(), 9);
        assert_eq!(signal("sigterm").unwrap(), 15);
        assert_eq!(signal("10").unwrap(), 10);
        for (text, number) in
            [("0", 0), ("64", 64), ("SIGRTMIN+3", 37), ("rtmin+3", 37), ("RTMIN", 34), ("RTMAX-1", 63)]
        {
            assert_eq!(signal(text).unwrap(), number, "{text}");
        }
        for bad in ["RTMIN+31", "RTMIN-1", "RTMAX+1", "SIGRTMIN+", "RTMIN++3", "65", "-9", "NOPE", ""] {
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
