//! Time: the wall clock for display, the boot clock for bills.
//!
//! Billed durations never come from the wall clock alone, which an operator or NTP may set: they are differences of
//! `CLOCK_BOOTTIME` within one boot (identified by the boot id), and of the wall clock only across a reboot.

use std::sync::LazyLock;

use jiff::Timestamp;
use rustix::time::{ClockId, clock_gettime};

/// The year 0000, the first that RFC 3339 can write.
const FIRST_S: i64 = -62_167_219_200;

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

/// `seconds` and `nanos` since 1970 as RFC 3339 in UTC, with nine digits of a fraction if there is one. A box sets the
/// times of its files: one before the year 0000, or after `Timestamp::MAX` in the last days of 9999, is shown as that
/// moment.
#[must_use]
pub fn rfc3339(seconds: i64, nanos: u32) -> String {
    let first = Timestamp::from_second(FIRST_S).unwrap_or(Timestamp::MIN);
    let nanos = i32::try_from(nanos).unwrap_or(0);
    let time = match Timestamp::new(seconds, nanos) {
        Ok(time) => time.max(first),
        Err(_) if seconds < 0 => first,
        Err(_) => Timestamp::MAX,
    };
    let format = if time.subsec_nanosecond() == 0 { "%Y-%m-%dT%H:%M:%SZ" } else { "%Y-%m-%dT%H:%M:%S.%9fZ" };
    time.strftime(format).to_string()
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
        assert_eq!(rfc3339(1, 120_000_000), "1970-01-01T00:00:01.120000000Z");
    }

    #[test]
    fn a_time_that_no_calendar_has_is_its_first_or_last() {
        for beyond in [FIRST_S - 1, i64::MIN] {
            assert_eq!(rfc3339(beyond, 999_999_999), "0000-01-01T00:00:00Z");
        }
        assert_eq!(rfc3339(i64::MAX, 0), "9999-12-30T22:00:00.999999999Z");
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
