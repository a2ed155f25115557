//! Time: the wall clock for display, the boot clock for bills.
//!
//! Billed durations never come from the wall clock alone, which an operator or NTP may set: they are differences of
//! `CLOCK_BOOTTIME` within one boot (identified by the boot id), and of the wall clock only across a reboot.

use std::sync::LazyLock;

use rustix::time::{ClockId, clock_gettime};

/// A point in time on all relevant clocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// Identity of this boot of the kernel.
    pub boot_id: String,
    /// Milliseconds since boot, including suspend.
    pub boottime_ms: u64,
    /// Unix milliseconds.
    pub wall_ms: i64,
}

static BOOT_ID: LazyLock<String> = LazyLock::new(|| {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|text| text.trim().to_owned())
        // Without a boot id every start of the daemon counts as a boot: the bill stays right, with a coarser clock.
        .unwrap_or_else(|_| uuid::Uuid::new_v4().to_string())
});

impl Moment {
    /// Now.
    #[must_use]
    pub fn now() -> Self {
        let boottime = clock_gettime(ClockId::Boottime);
        let boottime_ms = u64::try_from(boottime.tv_sec).unwrap_or(0) * 1000
            + u64::try_from(boottime.tv_nsec / 1_000_000).unwrap_or(0);
        Self { boot_id: boot_id().to_owned(), boottime_ms, wall_ms: unix_ms() }
    }
}

/// Identity of this boot of the kernel.
#[must_use]
pub fn boot_id() -> &'static str {
    &BOOT_ID
}

/// Unix milliseconds.
#[must_use]
pub fn unix_ms() -> i64 {
    let now = clock_gettime(ClockId::Realtime);
    now.tv_sec * 1000 + now.tv_nsec / 1_000_000
}

/// `seconds` and `nanos` since 1970 as RFC 3339 in UTC, with the fraction only if there is one.
#[must_use]
pub fn rfc3339(seconds: i64, nanos: u32) -> String {
    let days = seconds.div_euclid(86_400);
    let of_day = seconds.rem_euclid(86_400);
    let (year, month, day) = civil_from_days(days);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    let fraction = if nanos == 0 { String::new() } else { format!(".{nanos:09}") };
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z")
}

/// Howard Hinnant's `civil_from_days`: days since 1970-01-01 to year, month, day of the Gregorian calendar.
pub(crate) fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(rfc3339(0, 0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_400, 0), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_763_856_000, 5), "2025-11-23T00:00:00.000000005Z");
        assert_eq!(rfc3339(-1, 0), "1969-12-31T23:59:59Z");
        assert_eq!(rfc3339(4_102_444_800, 0), "2100-01-01T00:00:00Z");
    }

    #[test]
    fn the_boot_clock_goes_forward() {
        let first = Moment::now();
        let second = Moment::now();
        assert_eq!(first.boot_id, second.boot_id);
        assert!(second.boottime_ms >= first.boottime_ms);
        assert!(first.wall_ms > 1_700_000_000_000);
    }
}
