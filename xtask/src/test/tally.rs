//! Counting tests.

use std::fmt;
use std::ops::{Add, AddAssign};

/// How many tests went which way.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) passed: u64,
    pub(super) failed: u64,
    pub(super) skipped: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl Add for Tally {
    type Output = Tally;

    fn add(mut self, other: Tally) -> Tally {
        self += other;
        self
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

impl Tally {
    /// `test result: FAILED. 5 passed; 1 failed; 2 ignored; 0 measured; 9 filtered out; finished in 0.1s`
    pub(super) fn of_libtest_line(line: &str) -> Option<Tally> {
        let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let mut tally = Tally::default();
        for part in counts.split(';') {
            let Some((number, what)) = part.trim().split_once(' ') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match what {
                "passed" => tally.passed += number,
                "failed" => tally.failed += number,
                "ignored" => tally.skipped += number,
                _ => {}
            }
        }
        Some(tally)
    }
}

/// Names of the tests in `cargo nextest list --message-format json` that would be left out because they are ignored.
pub(super) fn ignored_in_list(list: &str) -> Option<Vec<String>> {
    let list: serde_json::Value = serde_json::from_str(list).ok()?;
    let mut names = Vec::new();
    for (binary, suite) in list["rust-suites"].as_object()? {
        let Some(cases) = suite["testcases"].as_object() else { continue };
        for (name, case) in cases {
            let mismatch = &case["filter-match"];
            if mismatch["status"] == "mismatch" && mismatch["reason"] == "ignored" {
                names.push(format!("{binary} {name}"));
            }
        }
    }
    Some(names)
}

/// The name in `test NAME ... FAILED`.
pub(super) fn failed_in_libtest_line(line: &str) -> Option<&str> {
    line.strip_prefix("test ")?.strip_suffix(" ... FAILED")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtest_lines_are_counted() {
        let line = "test result: FAILED. 5 passed; 1 failed; 2 ignored; 0 measured; 9 filtered out; finished in 0.10s";
        assert_eq!(Tally::of_libtest_line(line), Some(Tally { passed: 5, failed: 1, skipped: 2 }));
        assert_eq!(Tally::of_libtest_line("test x ... ok"), None);
        assert_eq!(failed_in_libtest_line("test m::a ... FAILED"), Some("m::a"));
        assert_eq!(failed_in_libtest_line("test m::a ... ok"), None);
    }

    #[test]
    fn ignored_tests_are_named() {
        let list = r#"{"rust-suites":{"a::b":{"testcases":{
            "runs":{"ignored":false,"filter-match":{"status":"matches"}},
            "other":{"ignored":true,"filter-match":{"status":"mismatch","reason":"expression"}},
            "skipped":{"ignored":true,"filter-match":{"status":"mismatch","reason":"ignored"}}}}}}"#;
        assert_eq!(ignored_in_list(list).unwrap(), ["a::b skipped"]);
        assert_eq!(ignored_in_list("no json"), None);
    }

    #[test]
    fn the_closing_line_has_the_form_that_machines_read() {
        let mut total = Tally { passed: 1, failed: 0, skipped: 0 };
        total += Tally { passed: 2, failed: 1, skipped: 1 };
        assert_eq!(total.to_string(), "3 passed, 1 failed, 1 skipped");
    }
}
