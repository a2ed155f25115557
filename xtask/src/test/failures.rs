//! Why tests failed, printed at the very end of a run: the end of the output is what is kept and read.
//!
//! Of each failed test a few lines: the panic's message, or the last lines of its output. The whole output stands
//! further up.

use std::sync::{Mutex, PoisonError};

/// Of a panic's message, which may hold the output of a whole program: so many lines of its beginning and of its end.
const HEAD_LINES: usize = 4;
const TAIL_LINES: usize = 9;
/// A forked child that panics makes its parent panic too. Later panics are noise.
const PANICS_MAX: usize = 2;
/// Of the output of a test that did not panic.
const LAST_LINES: usize = 15;
const LINE_CHARS_MAX: usize = 300;
/// After so many failures only names are printed: something common is broken.
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

    /// The report. Empty if no test failed.
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

/// The lines of a failed test's output that say most.
pub(super) fn excerpt(output: &str) -> Vec<String> {
    let lines = output.lines().map(|line| line.trim_end().chars().take(LINE_CHARS_MAX).collect::<String>());
    let lines: Vec<String> = lines.filter(|line| !is_frame_of_the_harness(line)).collect();
    let mut panics: Vec<Vec<String>> = Vec::new();
    let mut is_open = false;
    for line in &lines {
        if line.contains(" panicked at ") || line.starts_with("panicked at ") {
            panics.push(Vec::new());
            is_open = panics.len() <= PANICS_MAX;
        } else if is_after_a_message(line) {
            is_open = false;
        }
        if let Some(message) = panics.last_mut().filter(|_| is_open) {
            message.push(line.clone());
        }
    }
    if panics.is_empty() {
        return lines[lines.len().saturating_sub(LAST_LINES)..].to_vec();
    }
    panics.into_iter().flat_map(shortened).collect()
}

/// Beginning and end of a message, and how many lines are left out between them.
fn shortened(mut message: Vec<String>) -> Vec<String> {
    let left_out = message.len().saturating_sub(HEAD_LINES + TAIL_LINES);
    if left_out > 0 {
        message.splice(HEAD_LINES..HEAD_LINES + left_out, [format!("[{left_out} lines]")]);
    }
    message
}

/// What libtest prints around every test's own output.
fn is_frame_of_the_harness(line: &str) -> bool {
    let line = line.trim_start();
    line.is_empty() || line == "failures:" || line.starts_with("running 1 test") || line.starts_with("test result: ")
}

/// What the standard library prints after a panic's message, and the first line of the tests' own appendix.
fn is_after_a_message(line: &str) -> bool {
    let line = line.trim_start();
    ["note: run with `RUST_BACKTRACE", "stack backtrace:", "--- the log of iceboxd"].iter().any(|s| line.starts_with(s))
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
