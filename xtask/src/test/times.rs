//! What the time of a run went into: its parts, and the slowest tests.

use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// So many of the slowest tests are printed.
const SHOWN_TESTS: usize = 20;
/// A quicker test is not worth a line.
const SHOWN_MIN: Duration = Duration::from_millis(100);

/// The times of a run.
#[derive(Debug, Default)]
pub(super) struct Times {
    tests: Mutex<Vec<(Duration, String)>>,
    parts: Mutex<Vec<(Duration, String)>>,
}

impl Times {
    /// A test has ended.
    pub(super) fn add(&self, test: &str, took: Duration) {
        push(&self.tests, test, took);
    }

    /// Measures a part of the run, such as a build or a tier.
    pub(super) fn part<T>(&self, name: &str, work: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let result = work();
        push(&self.parts, name, started.elapsed());
        result
    }

    /// The report: each part in order, then the slowest tests.
    pub(super) fn report(&self) -> String {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::from("\ntime of each part\n");
        for (took, name) in parts.iter() {
            let _ = writeln!(text, "{:>9.1} s  {name}", took.as_secs_f64());
        }
        text + &self.slowest(SHOWN_TESTS)
    }

    /// The slowest tests, the slowest first. Empty if no test ran.
    pub(super) fn slowest(&self, count: usize) -> String {
        let mut tests = self.tests.lock().unwrap_or_else(PoisonError::into_inner).clone();
        tests.sort_by(|a, b| b.cmp(a));
        let total: Duration = tests.iter().map(|(took, _)| *took).sum();
        let mut text = String::new();
        if !tests.is_empty() {
            let total = total.as_secs_f64();
            let _ = writeln!(text, "\nslowest of {} tests, which took {total:.0} s together", tests.len());
        }
        for (took, name) in tests.iter().take(count).filter(|(took, _)| *took >= SHOWN_MIN) {
            let _ = writeln!(text, "{:>9.1} s  {name}", took.as_secs_f64());
        }
        text
    }
}

fn push(list: &Mutex<Vec<(Duration, String)>>, name: &str, took: Duration) {
    list.lock().unwrap_or_else(PoisonError::into_inner).push((took, name.to_owned()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_in_order_and_tests_by_time() {
        let times = Times::default();
        assert_eq!(times.part("build", || 7), 7);
        times.part("tier unit", || ());
        for (test, milliseconds) in [("quick", 1), ("slow", 9000), ("slower", 90_000)] {
            times.add(test, Duration::from_millis(milliseconds));
        }
        let report = times.report();
        assert!(report.find("build").unwrap() < report.find("tier unit").unwrap(), "{report}");
        assert!(times.slowest(3).ends_with("     90.0 s  slower\n      9.0 s  slow\n"), "{report}");
        assert!(report.contains("3 tests, which took 99 s together"), "{report}");
    }
}
