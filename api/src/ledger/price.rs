//! Conversion of usage to money, in integers.
//!
//! The prices: 0.10 $ for one core used for one hour, 0.10 $ for one GB kept for one month. A GB is 10^9 bytes and a
//! month has 730 hours (a twelfth of a year). Amounts are millionths of a dollar, rounded half up once per amount.

use super::Usage;

/// Dollars for a core-hour.
pub const DOLLARS_PER_CORE_HOUR: f64 = 0.10;
/// Dollars for a GB-month.
pub const DOLLARS_PER_GB_MONTH: f64 = 0.10;
/// Hours of a month.
pub const MONTH_HOURS: u64 = 730;

/// CPU microseconds that cost one millionth of a dollar: 3.6e9 us are 100 000 millionths.
const CPU_USEC_PER_MICRO_DOLLAR: u64 = 36_000;
/// Byte-milliseconds that cost one millionth of a dollar: 1e9 bytes for 730 hours are 100 000 millionths.
const BYTE_MS_PER_MICRO_DOLLAR: u128 = 1_000_000_000 * (MONTH_HOURS as u128 * 3_600_000) / 100_000;

/// The cost of a usage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Millionths of a dollar for CPU.
    pub cpu_micro_dollars: u64,
    /// Millionths of a dollar for storage.
    pub storage_micro_dollars: u64,
}

impl Cost {
    /// Total, in millionths of a dollar.
    #[must_use]
    pub fn total_micro_dollars(self) -> u64 {
        self.cpu_micro_dollars + self.storage_micro_dollars
    }
}

/// The price of CPU time in millionths of a dollar.
#[must_use]
pub fn cpu_micro_dollars(cpu_usec: u64) -> u64 {
    (cpu_usec + CPU_USEC_PER_MICRO_DOLLAR / 2) / CPU_USEC_PER_MICRO_DOLLAR
}

/// The price of a usage.
#[must_use]
pub fn cost(usage: &Usage) -> Cost {
    let storage = (usage.storage_byte_ms + BYTE_MS_PER_MICRO_DOLLAR / 2) / BYTE_MS_PER_MICRO_DOLLAR;
    Cost {
        cpu_micro_dollars: cpu_micro_dollars(usage.cpu_usec),
        storage_micro_dollars: u64::try_from(storage).unwrap_or(u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Generation, Sample, fold};
    use super::*;

    const HOUR_USEC: u64 = 3_600_000_000;

    fn bill_of(cpu_usec: u64) -> u64 {
        let generation = Generation { boot_id: "boot".into(), cgroup_inode: 1 };
        let at = |sequence, cpu_usec| Sample {
            generation: generation.clone(),
            sequence,
            wall_ms: 0,
            boottime_ms: 0,
            cpu_usec,
            storage_bytes: None,
        };
        cost(&fold(&[at(0, 0), at(1, cpu_usec)], None)).cpu_micro_dollars
    }

    #[test]
    fn two_cores_for_an_hour_cost_twenty_cents() {
        assert_eq!(bill_of(2 * HOUR_USEC), 200_000);
    }

    #[test]
    fn a_tenth_of_a_core_for_an_hour_costs_one_cent() {
        assert_eq!(bill_of(HOUR_USEC / 10), 10_000);
    }

    #[test]
    fn a_gigabyte_for_a_month_costs_ten_cents() {
        let month_ms = u128::from(MONTH_HOURS) * 3_600_000;
        let usage = Usage { storage_byte_ms: 1_000_000_000 * month_ms, ..Usage::default() };
        assert_eq!(cost(&usage).storage_micro_dollars, 100_000);
    }

    #[test]
    fn nothing_costs_nothing_and_amounts_round_half_up() {
        assert_eq!(cost(&Usage::default()), Cost::default());
        assert_eq!(cpu_micro_dollars(17_999), 0);
        assert_eq!(cpu_micro_dollars(18_000), 1);
        assert_eq!(cpu_micro_dollars(54_000), 2);
    }
}
