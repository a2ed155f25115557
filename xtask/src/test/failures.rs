//! Why tests failed, said once more at the very end: whoever keeps only the end of the output still learns it.
//!
//! Of each failed test a few lines: what it panicked with, or the last that it printed. The whole stands further up.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// Of a panic's message, which may hold the output of a whole program: so many lines of its beginning and of its end.
const HEAD_LINES: usize = 4;
const TAIL_LINES: usize = 9;
/// A fork that panics makes its parent panic; what comes after that is noise.
const PANICS_MAX: usize = 2;
/// Of the output of a test that didn't panic.
const LAST_LINES: usize = 15;
const LINE_CHARS_MAX: usize = 300;
/// Beyond that, names only: something common is broken.
const EXPLAINED_MAX: usize = 12;

/// The failed tests of all tiers.
#[derive(Debug, Default)]
pub(super) struct Failures(Mutex<Vec<Failure>>);

#[derive(Debug, PartialEq, Eq)]
struct Failure {
    name: String,
    why: Vec<String>,
}

impl Failures {
    pub(super) fn add(&self, name: impl Into<String>, why: Vec<String>) {
        let failure = Failure { name: name.into(), why };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(failure);
    }

    /// What to print when everything else was printed. Empty if nothing failed.
    pub(super) fn report(&self) -> String {
        let failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        for (number, Failure { name, why }) in failures.iter().enumerate() {
            text += &format!("\nfailed: {name}\n");
            for line in why.iter().filter(|_| number < EXPLAINED_MAX) {
                text += &format!("    {line}\n");
            }
        }
        text
    }
}

/// Keeps of an output, line by line, what says most.
#[derive(Debug, Default)]
pub(super) struct Excerpt {
    panics: Vec<Message>,
    /// The last message goes on.
    is_open: bool,
    last: VecDeque<String>,
}

#[derive(Debug, Default)]
struct Message {
    head: Vec<String>,
    tail: VecDeque<String>,
    left_out: usize,
}

impl Excerpt {
    pub(super) fn see(&mut self, line: &str) {
        let line: String = line.trim_end().chars().take(LINE_CHARS_MAX).collect();
        if is_frame_of_the_harness(&line) {
            return;
        }
        if line.contains(" panicked at ") || line.starts_with("panicked at ") {
            self.is_open = self.panics.len() < PANICS_MAX;
            if self.is_open {
                self.panics.push(Message::default());
            }
        } else if is_after_a_message(&line) {
            self.is_open = false;
        }
        if let Some(message) = self.panics.last_mut().filter(|_| self.is_open) {
            message.see(&line);
        }
        push(&mut self.last, line, LAST_LINES);
    }

    pub(super) fn lines(self) -> Vec<String> {
        if self.panics.is_empty() {
            return self.last.into();
        }
        self.panics.into_iter().flat_map(Message::lines).collect()
    }
}

impl Message {
    fn see(&mut self, line: &str) {
        if self.head.len() < HEAD_LINES {
            self.head.push(line.to_owned());
        } else {
            self.left_out += usize::from(push(&mut self.tail, line.to_owned(), TAIL_LINES));
        }
    }

    fn lines(self) -> Vec<String> {
        let mut lines = self.head;
        if self.left_out > 0 {
            lines.push(format!("[{} lines]", self.left_out));
        }
        lines.extend(self.tail);
        lines
    }
}

/// What libtest and nextest print around every test's own words.
fn is_frame_of_the_harness(line: &str) -> bool {
    let line = line.trim_start();
    line.is_empty()
        || line == "failures:"
        || line.starts_with("running 1 test")
        || line.starts_with("test result: ")
        || line.starts_with("stdout ───")
        || line.starts_with("stderr ───")
}

/// The standard library's words after a panic's message, and those of the tests' helpers.
fn is_after_a_message(line: &str) -> bool {
    let line = line.trim_start();
    ["note: run with `RUST_BACKTRACE", "stack backtrace:", "--- the log of iceboxd"].iter().any(|s| line.starts_with(s))
}

/// Whether something had to go for it.
fn push(lines: &mut VecDeque<String>, line: String, max: usize) -> bool {
    let is_full = lines.len() == max;
    if is_full {
        lines.pop_front();
    }
    lines.push_back(line);
    is_full
}

/// Finds failed tests in what a runner prints: nextest tells that a test failed and then shows its output, libtest shows
/// the outputs of all failed ones at a binary's end.
#[derive(Debug, Default)]
pub(super) struct Reader {
    current: Option<(String, Excerpt)>,
    /// What nextest names after this it names again.
    is_over: bool,
}

impl Reader {
    pub(super) fn see(&mut self, line: &str, failures: &Failures) {
        let is_end = is_end_of_output(line);
        if is_end {
            self.finish(failures);
        }
        self.is_over |= line.trim_start().starts_with("Summary [");
        let name = if self.is_over { None } else { failed_in_nextest(line) };
        if let Some(name) = name.or_else(|| failed_in_libtest(line)) {
            self.finish(failures);
            self.current = Some((name, Excerpt::default()));
        } else if let Some((_, excerpt)) = &mut self.current {
            excerpt.see(line.strip_prefix("    ").unwrap_or(line));
        }
    }

    pub(super) fn finish(&mut self, failures: &Failures) {
        if let Some((name, excerpt)) = self.current.take() {
            failures.add(name, excerpt.lines());
        }
    }
}

/// `FAIL [   0.004s] (1/9) crate::binary test`
fn failed_in_nextest(line: &str) -> Option<String> {
    let (status, rest) = line.trim_start().split_once(" [")?;
    let is_bad = status == "FAIL" || status == "TIMEOUT" || status.starts_with("SIG") || status == "ABORT";
    let (_, name) = rest.split_once("] ")?;
    let name = name.trim_start();
    let name = if name.starts_with('(') { name.split_once(") ")?.1 } else { name };
    is_bad.then(|| name.trim().to_owned())
}

/// `---- test stdout ----`
fn failed_in_libtest(line: &str) -> Option<String> {
    Some(line.strip_prefix("---- ")?.strip_suffix(" stdout ----")?.to_owned())
}

/// The status of nextest's next test, or what a libtest binary closes with.
fn is_end_of_output(line: &str) -> bool {
    let words = line.trim_start();
    let of_nextest = ["PASS [", "SLOW [", "LEAK [", "FAIL [", "TIMEOUT [", "Summary [", "Cancelling"];
    of_nextest.iter().any(|start| words.starts_with(start)) || line == "failures:"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excerpt(text: &str) -> Vec<String> {
        let mut excerpt = Excerpt::default();
        text.lines().for_each(|line| excerpt.see(line));
        excerpt.lines()
    }

    #[test]
    fn a_panic_is_told_without_what_comes_after() {
        let text = "running 1 test\nbefore\nthread 'x' (7) panicked at a.rs:1:2:\nleft: 1\nright: 2\n\
                    note: run with `RUST_BACKTRACE=1` to see\nthe journal\n"
            .to_owned()
            + &"more\n".repeat(40);
        assert_eq!(excerpt(&text), ["thread 'x' (7) panicked at a.rs:1:2:", "left: 1", "right: 2"]);
    }

    #[test]
    fn a_long_message_keeps_both_ends_and_a_fork_its_own() {
        let long: String = (0..50).map(|number| format!("line {number}\n")).collect();
        let lines = excerpt(&format!("panicked at a.rs:1:2:\nthe reason\nthread 'x' panicked at b.rs:\n{long}"));
        assert_eq!(lines[..4], ["panicked at a.rs:1:2:", "the reason", "thread 'x' panicked at b.rs:", "line 0"]);
        assert_eq!(lines[6], "[38 lines]");
        assert_eq!(lines.last().unwrap(), "line 49");
        assert!(lines.len() <= 2 * (HEAD_LINES + TAIL_LINES + 1));
    }

    #[test]
    fn without_a_panic_the_last_lines_are_told() {
        let text: String = (0..50).map(|number| format!("line {number}\n\n")).collect();
        let lines = excerpt(&text);
        assert_eq!((lines.len(), lines[0].as_str()), (LAST_LINES, "line 35"));
    }

    fn read(text: &str) -> String {
        let (mut reader, failures) = (Reader::default(), Failures::default());
        text.lines().for_each(|line| reader.see(line, &failures));
        reader.finish(&failures);
        failures.report()
    }

    #[test]
    fn failed_tests_of_nextest_are_found_once() {
        let text = "        PASS [   0.004s] (1/9) crate a\n        FAIL [   0.004s] (2/9) crate::bin b\n  stdout ───\n\n    \
                    running 1 test\n    thread 'b' (1) panicked at x:\n    why\n        PASS [   0.1s] (3/9) crate c\n    not this\n     \
                    TIMEOUT [ 300.0s] (4/9) crate d\n  stdout ───\n    hung here\n     Summary [ 1s] 2 tests run: 1 passed, 1 \
                    failed\n        FAIL [   0.004s] (2/9) crate::bin b\n";
        let wanted =
            "\nfailed: crate::bin b\n    thread 'b' (1) panicked at x:\n    why\n\nfailed: crate d\n    hung here\n";
        assert_eq!(read(text), wanted);
        assert_eq!(read("        PASS [   0.004s] (1/9) crate a\n"), "");
    }

    #[test]
    fn failed_tests_of_libtest_are_found() {
        let text = "test m::a ... FAILED\n\nfailures:\n\n---- m::a stdout ----\n\nthread 'm::a' (1) panicked at x:\nwhy\n\n\nfailures:\n    \
                    m::a\n\ntest result: FAILED. 0 passed; 1 failed\n";
        assert_eq!(read(text), "\nfailed: m::a\n    thread 'm::a' (1) panicked at x:\n    why\n");
    }
}
