//! Numbers and times as people read and write them.
//!
//! Sizes are in powers of 1024 and say so (KiB, MiB). Nothing here does I/O.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Longest duration that is accepted: ten years. Beyond it a typing error is more likely than a wish.
const DURATION_SECONDS_MAX: u64 = 10 * 365 * 86_400;

/// Parses `90`, `90s`, `30m`, `1h`, `2d` and sums such as `1h30m` into seconds.
pub(crate) fn parse_duration(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no duration; write 90, 90s, 30m, 1h, 2d or 1h30m");
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return bounded(text.parse().map_err(|_| wrong())?);
    }
    let mut total: u64 = 0;
    let mut digits = String::new();
    for character in text.chars() {
        if character.is_ascii_digit() {
            digits.push(character);
            continue;
        }
        let unit = match character {
            's' => 1,
            'm' => 60,
            'h' => 3_600,
            'd' => 86_400,
            _ => return Err(wrong()),
        };
        let count: u64 = digits.parse().map_err(|_| wrong())?;
        digits.clear();
        total = count.checked_mul(unit).and_then(|part| total.checked_add(part)).ok_or_else(wrong)?;
    }
    if text.is_empty() || !digits.is_empty() {
        return Err(wrong());
    }
    bounded(total)
}

fn bounded(seconds: u64) -> Result<u64, String> {
    if seconds > DURATION_SECONDS_MAX {
        return Err("longer than ten years".to_owned());
    }
    Ok(seconds)
}

/// A span in at most two units: `45s`, `3m 5s`, `2h 10m`, `9d 4h`.
pub(crate) fn span(seconds: u64) -> String {
    let (days, hours, minutes, rest) = (seconds / 86_400, seconds % 86_400 / 3_600, seconds % 3_600 / 60, seconds % 60);
    match (days, hours, minutes, rest) {
        (0, 0, 0, s) => format!("{s}s"),
        (0, 0, m, 0) => format!("{m}m"),
        (0, 0, m, s) => format!("{m}m {s}s"),
        (0, h, 0, _) => format!("{h}h"),
        (0, h, m, _) => format!("{h}h {m}m"),
        (d, 0, _, _) => format!("{d}d"),
        (d, h, _, _) => format!("{d}d {h}h"),
    }
}

/// How long ago a moment in unix seconds was; `-` for the time before 1970 and for none.
pub(crate) fn age(unix_seconds: Option<i64>) -> String {
    age_at(unix_seconds, now_unix_seconds())
}

fn age_at(then: Option<i64>, now: i64) -> String {
    match then {
        Some(then) if then > 0 => span(u64::try_from(now - then).unwrap_or(0)),
        _ => "-".to_owned(),
    }
}

/// Seconds since 1970.
pub(crate) fn now_unix_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Bytes with a binary unit and about three digits: `512 B`, `1.5 KiB`, `20 GiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = count as f64;
    let mut unit = 0;
    // 1023.95 would print as 1024.0 of the smaller unit.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{} {}", short(value), UNITS[unit]) }
}

/// A CPU time in microseconds: `0`, `850 us`, `12.3 ms`, `4.56 s`, `2h 10m`.
pub(crate) fn cpu(microseconds: u64) -> String {
    match microseconds {
        0 => "0".to_owned(),
        1..1_000 => format!("{microseconds} us"),
        1_000..1_000_000 => format!("{} ms", short(microseconds as f64 / 1e3)),
        1_000_000..60_000_000 => format!("{:.2} s", microseconds as f64 / 1e6),
        _ => span(microseconds / 1_000_000),
    }
}

/// Milliseconds of wall time: `7 ms`, `1.25 s`, `3m 5s`.
pub(crate) fn wall(milliseconds: f64) -> String {
    let milliseconds = if milliseconds.is_finite() { milliseconds.max(0.0) } else { 0.0 };
    if milliseconds < 1_000.0 {
        format!("{milliseconds:.0} ms")
    } else if milliseconds < 60_000.0 {
        format!("{:.2} s", milliseconds / 1e3)
    } else {
        span((milliseconds / 1e3) as u64)
    }
}

/// A quantity with at least three significant digits, as bills need.
pub(crate) fn quantity(value: f64) -> String {
    if value == 0.0 {
        "0".to_owned()
    } else if value.abs() < 0.001 {
        format!("{value:.6}")
    } else if value.abs() < 1_000.0 {
        format!("{value:.3}")
    } else {
        format!("{value:.0}")
    }
}

/// US dollars down to a millionth, because a box at rest costs so little.
pub(crate) fn dollars(value: f64) -> String {
    if value.abs() < 100.0 { format!("${value:.6}") } else { format!("${value:.2}") }
}

fn short(value: f64) -> String {
    let text = if value < 9.995 { format!("{value:.2}") } else { format!("{value:.1}") };
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The text with control characters made visible. What a box says (names, log lines, error texts) must not be able to
/// drive the terminal of the person who reads it.
pub(crate) fn plain(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '\t' => clean.push(character),
            control if control.is_control() => clean.extend(control.escape_default()),
            other => clean.push(other),
        }
    }
    clean
}

/// One line of at most `width` characters; what is left out is shown by `…`.
pub(crate) fn one_line(text: &str, width: usize) -> String {
    let flat: String = plain(text).chars().map(|c| if c == '\n' || c == '\t' { ' ' } else { c }).collect();
    if flat.chars().count() <= width {
        return flat;
    }
    let mut cut: String = flat.chars().take(width.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

/// Unix seconds as `2026-01-31 12:34:56Z`; a number that is no date is shown as it is.
pub(crate) fn moment(unix_seconds: i64) -> String {
    let time = jiff::Timestamp::from_second(unix_seconds);
    time.map_or_else(|_| unix_seconds.to_string(), |time| time.strftime("%Y-%m-%d %H:%M:%SZ").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_in_every_unit() {
        for (text, seconds) in
            [("0", 0), ("90", 90), ("90s", 90), ("30m", 1_800), ("1h", 3_600), ("1h30m", 5_400), ("2d", 172_800)]
        {
            assert_eq!(parse_duration(text), Ok(seconds), "{text}");
        }
    }

    #[test]
    fn durations_that_make_no_sense_are_refused() {
        for text in
            ["", "h", "1x", "1h30", "-5", "1.5h", "5 m", "99999999999999999999", "9999999999999999999d", "4000d"]
        {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn spans_use_two_units_at_most() {
        for (seconds, text) in
            [(0, "0s"), (59, "59s"), (60, "1m"), (185, "3m 5s"), (3_600, "1h"), (7_800, "2h 10m"), (788_400, "9d 3h")]
        {
            assert_eq!(span(seconds), text);
        }
    }

    #[test]
    fn an_age_is_never_negative() {
        assert_eq!(age_at(Some(1_000), 1_090), "1m 30s");
        assert_eq!(age_at(Some(1_000), 900), "0s");
        assert_eq!(age_at(None, 900), "-");
        assert_eq!(age_at(Some(0), 900), "-");
    }

    #[test]
    fn sizes_round_to_the_next_unit_and_not_to_1024() {
        for (count, text) in [
            (0, "0 B"),
            (1_023, "1023 B"),
            (1_024, "1 KiB"),
            (1_536, "1.5 KiB"),
            (1_048_575, "1 MiB"),
            (4_294_967_296, "4 GiB"),
            (u64::MAX, "16384 PiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn cpu_and_wall_times() {
        assert_eq!(cpu(0), "0");
        assert_eq!(cpu(850), "850 us");
        assert_eq!(cpu(12_345), "12.3 ms");
        assert_eq!(cpu(4_560_000), "4.56 s");
        assert_eq!(cpu(7_800_000_000), "2h 10m");
        assert_eq!(wall(7.4), "7 ms");
        assert_eq!(wall(1_250.0), "1.25 s");
        assert_eq!(wall(f64::NAN), "0 ms");
    }

    #[test]
    fn bills_keep_small_amounts_visible() {
        assert_eq!(dollars(0.000_012), "$0.000012");
        assert_eq!(dollars(123.456), "$123.46");
        assert_eq!(quantity(0.0), "0");
        assert_eq!(quantity(0.000_5), "0.000500");
        assert_eq!(quantity(7_200.4), "7200");
    }

    #[test]
    fn a_box_can_not_drive_the_terminal() {
        assert_eq!(plain("a\x1b[2Jb"), "a\\u{1b}[2Jb");
        assert_eq!(plain("\u{9b}31m"), "\\u{9b}31m");
        assert_eq!(one_line("a\nb\tc", 10), "a b c");
        assert_eq!(one_line("abcdef", 4), "abc…");
    }

    #[test]
    fn moments_follow_the_calendar() {
        assert_eq!(moment(0), "1970-01-01 00:00:00Z");
        assert_eq!(moment(951_782_400), "2000-02-29 00:00:00Z");
        assert_eq!(moment(1_767_225_599), "2025-12-31 23:59:59Z");
    }
}
