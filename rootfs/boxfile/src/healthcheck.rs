//! HEALTHCHECK: it is noted in the configuration of the image; boxes do not run it.

use serde::{Deserialize, Serialize};

use crate::error::Fault;
use crate::flags::Flags;
use crate::words;

/// A check, as Docker writes it into the configuration of an image. Times are in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    /// `NONE`; or `CMD` and a program with its arguments; or `CMD-SHELL` and a command.
    pub test: Vec<String>,
    /// Time between two checks.
    #[serde(skip_serializing_if = "is_zero")]
    pub interval: u64,
    /// Time after which a check has failed.
    #[serde(skip_serializing_if = "is_zero")]
    pub timeout: u64,
    /// Time in which failures do not count.
    #[serde(skip_serializing_if = "is_zero")]
    pub start_period: u64,
    /// Time between two checks in that time.
    #[serde(skip_serializing_if = "is_zero")]
    pub start_interval: u64,
    /// Failures in a row after which it is unhealthy.
    #[serde(skip_serializing_if = "is_zero")]
    pub retries: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

pub(crate) fn read(rest: &str, flags: &mut Flags) -> Result<Healthcheck, Fault> {
    let (kind, command) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let mut check = Healthcheck::default();
    let help = "write HEALTHCHECK CMD COMMAND or HEALTHCHECK NONE";
    match (kind.to_ascii_uppercase().as_str(), command.trim()) {
        ("NONE", "") => {
            check.test = vec!["NONE".to_owned()];
            return Ok(check);
        }
        ("CMD", command) if !command.is_empty() => {
            check.test = match words::list(command)? {
                Some(list) if list.is_empty() => return Err(Fault::instead("HEALTHCHECK has no command", help)),
                Some(list) => std::iter::once("CMD".to_owned()).chain(list).collect(),
                None => vec!["CMD-SHELL".to_owned(), command.to_owned()],
            };
        }
        _ => return Err(Fault::instead(format!("'HEALTHCHECK {rest}' is not understood"), help)),
    }
    for (name, field) in [
        ("interval", &mut check.interval),
        ("timeout", &mut check.timeout),
        ("start-period", &mut check.start_period),
        ("start-interval", &mut check.start_interval),
    ] {
        if let Some(text) = flags.take(name)? {
            let wrong = || Fault::instead(format!("--{name}={text} is not a time"), "write 30s, 5m or 1h30m");
            *field = nanoseconds(&text).ok_or_else(wrong)?;
            if (1..1_000_000).contains(field) {
                return Err(Fault::new(format!("--{name}={text} is less than a millisecond")));
            }
        }
    }
    if let Some(text) = flags.take("retries")? {
        let wrong = |_| Fault::instead(format!("--retries={text} is not a number"), "write --retries=3");
        check.retries = text.parse::<u32>().map_err(wrong)?.into();
    }
    Ok(check)
}

/// A duration as Go writes it, such as `1h2m3.5s`.
fn nanoseconds(text: &str) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    let (mut total, mut rest) = (0_f64, text);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let after = &rest[digits..];
        let unit = &after[..after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len())];
        total += number
            * match unit {
                "ns" => 1e0,
                "us" | "µs" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 60e9,
                "h" => 3600e9,
                _ => return None,
            };
        rest = &after[unit.len()..];
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is bounded and not negative")]
    (!text.is_empty() && total < 1e18).then_some(total as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_in_go() {
        for (text, wanted) in [
            ("30s", Some(30_000_000_000)),
            ("1m30s", Some(90_000_000_000)),
            ("1.5h", Some(5_400_000_000_000)),
            ("100ms", Some(100_000_000)),
            ("0", Some(0)),
            ("", None),
            ("5", None),
            ("s", None),
            ("1x", None),
            ("-1s", None),
        ] {
            assert_eq!(nanoseconds(text), wanted, "{text}");
        }
    }
}
