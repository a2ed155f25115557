//! What the guest says: kept line by line, and handed to the guest of the next round.
//!
//! These lines are the record of what was acknowledged: a line that has left the guest stays, even if the guest's disk
//! loses data. What the words mean is known to the guest's program only.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use super::recording::Recording;
use crate::error::{Cause, Error, Result};

/// So much of what else the guest has said is kept for a failure.
const OTHER_LINES_MAX: usize = 400;
/// A longer line is no line of the guest's program.
const LINE_BYTES_MAX: usize = 1 << 20;
/// Of a failed round, at the end of a report: so many violations, or so many last lines of what else there is.
const SUMMARY_VIOLATIONS: usize = 15;
const SUMMARY_OTHER_LINES: usize = 8;
const SUMMARY_LINE_CHARS: usize = 300;

/// A word of the guest's program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Word {
    /// An operation begins or has been answered: the line, and which of the two.
    Operation { line: String, answered: bool },
    /// The look back is over, so many facts were compared.
    Checked(u64),
    /// Work has begun.
    Working,
    /// Something is not as it must be.
    Violation(String),
    /// Anything else that it printed.
    Other(String),
}

impl Word {
    fn of(line: &str) -> Word {
        match line.split_once(' ').unwrap_or((line, "")) {
            ("@try", _) => Word::Operation { line: line.to_owned(), answered: false },
            ("@ack", _) => Word::Operation { line: line.to_owned(), answered: true },
            ("@checked", facts) => Word::Checked(facts.parse().unwrap_or(0)),
            ("@working", _) => Word::Working,
            ("@violation", text) => Word::Violation(text.to_owned()),
            _ => Word::Other(line.to_owned()),
        }
    }
}

/// The writing end: takes the guest's output apart. A line that a cut has left unfinished was not said.
#[derive(Debug)]
pub(super) struct Ear {
    unfinished: Vec<u8>,
    words: Sender<Word>,
    recording: Option<Recording>,
}

impl Write for Ear {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.unfinished.extend_from_slice(bytes);
        while let Some(end) = self.unfinished.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.unfinished.drain(..=end).collect();
            let word = Word::of(String::from_utf8_lossy(&line).trim_end());
            if let (Some(recording), Word::Operation { line, .. }) = (&self.recording, &word) {
                recording.said(line)?;
            }
            // The receiver may have failed already.
            let _ = self.words.send(word);
        }
        if self.unfinished.len() > LINE_BYTES_MAX {
            self.unfinished.clear();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Everything that was said in all rounds, and the ear's other end.
#[derive(Debug)]
pub(super) struct Heard {
    words: Receiver<Word>,
    /// Operations, as they came.
    pub(super) operations: Vec<String>,
    /// Of the round that goes on.
    pub(super) round: Round,
}

/// What was said in one round.
#[derive(Debug, Default)]
pub(super) struct Round {
    pub(super) acknowledged: u64,
    pub(super) working: bool,
    pub(super) checked: Option<u64>,
    pub(super) violations: Vec<String>,
    /// The last lines that were no words.
    pub(super) other: Vec<String>,
}

impl Round {
    /// What was wrong, in at most twenty-odd short lines: the violations, and the last of what else was said. Without a
    /// violation, the end of the guest's console too.
    pub(super) fn summary(&self, console: &[String]) -> Vec<String> {
        let mut lines = Vec::new();
        let shown = self.violations.iter().take(SUMMARY_VIOLATIONS);
        lines.extend(shown.map(|text| format!("violation: {text}")));
        let left_out = self.violations.len().saturating_sub(SUMMARY_VIOLATIONS);
        if left_out > 0 {
            lines.push(format!("and {left_out} more violations"));
        }
        let end = |of: &[String]| of[of.len().saturating_sub(SUMMARY_OTHER_LINES)..].to_vec();
        if self.violations.is_empty() {
            lines.extend(end(console).into_iter().map(|line| format!("console: {line}")));
        }
        lines.extend(end(&self.other).into_iter().map(|line| format!("guest: {line}")));
        lines.into_iter().map(|line| line.chars().take(SUMMARY_LINE_CHARS).collect()).collect()
    }
}

impl Heard {
    pub(super) fn new() -> Heard {
        Heard { words: channel().1, operations: Vec::new(), round: Round::default() }
    }

    /// An ear for the next guest. What the last one has said is kept but for its lines that were no words. Operations are
    /// put into the recording, too.
    pub(super) fn ear(&mut self, recording: Option<Recording>) -> Ear {
        let (words, heard) = channel();
        self.words = heard;
        self.round = Round::default();
        Ear { unfinished: Vec::new(), words, recording }
    }

    /// Listens until `enough`, or until the guest has ended, or it has said nothing for `patience`: a guest on a busy
    /// machine is slow, one that is stuck is silent. Says whether it was enough.
    pub(super) fn until(
        &mut self,
        what: &'static str,
        patience: Duration,
        mut enough: impl FnMut(&Round) -> bool,
    ) -> Result<bool> {
        loop {
            if enough(&self.round) {
                return Ok(true);
            }
            match self.words.recv_timeout(patience) {
                Ok(word) => self.take(word),
                Err(RecvTimeoutError::Disconnected) => return Ok(false),
                Err(RecvTimeoutError::Timeout) => {
                    return Err(Error::new("wait for", what, Cause::Late { seconds: patience.as_secs() }));
                }
            }
        }
    }

    /// Listens for `time`. Says whether the guest is still there then.
    pub(super) fn through(&mut self, time: Duration) -> bool {
        let end = Instant::now() + time;
        loop {
            match self.words.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(word) => self.take(word),
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
    }

    /// Hears what is left of a guest that has ended.
    pub(super) fn rest(&mut self) {
        while let Ok(word) = self.words.recv() {
            self.take(word);
        }
    }

    fn take(&mut self, word: Word) {
        let round = &mut self.round;
        match word {
            Word::Operation { line, answered } => {
                // The look back settles what was open; only what was answered since is the round's own.
                round.acknowledged += u64::from(answered && round.working);
                self.operations.push(line);
            }
            Word::Checked(facts) => round.checked = Some(facts),
            Word::Working => round.working = true,
            Word::Violation(text) => round.violations.push(text),
            Word::Other(line) => {
                if round.other.len() >= OTHER_LINES_MAX {
                    round.other.remove(0);
                }
                round.other.push(line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_apart_and_the_unfinished_one_was_not_said() {
        let mut heard = Heard::new();
        let mut ear = heard.ear(None);
        ear.write_all(b"boot\n@checked 12\n@working\n@ack {1}\n@tr").unwrap();
        ear.write_all(b"y {2}\n@violation lost it\n@ack {3").unwrap();
        drop(ear);
        heard.rest();
        assert_eq!(heard.operations, ["@ack {1}", "@try {2}"]);
        let round = &heard.round;
        assert_eq!((round.acknowledged, round.checked, round.working), (1, Some(12), true));
        assert_eq!(
            (round.violations.as_slice(), round.other.as_slice()),
            (&["lost it".into()][..], &["boot".into()][..])
        );
    }

    #[test]
    fn a_summary_is_short_and_has_the_violations() {
        let numbered = |word: &str| (0..40).map(|number| format!("{word} {number}")).collect::<Vec<_>>();
        let silent = Round { other: numbered("line"), ..Round::default() };
        let lines = silent.summary(&numbered("panic"));
        assert_eq!((lines.len(), lines[0].as_str()), (2 * SUMMARY_OTHER_LINES, "console: panic 32"));
        assert_eq!(lines.last().unwrap(), "guest: line 39");
        let failed = Round { violations: vec!["x".repeat(1000); 20], ..silent };
        let lines = failed.summary(&numbered("panic"));
        assert_eq!(lines.len(), SUMMARY_VIOLATIONS + 1 + SUMMARY_OTHER_LINES);
        assert_eq!(lines[0].len(), SUMMARY_LINE_CHARS);
        assert!(lines[0].starts_with("violation: xxx") && lines[SUMMARY_VIOLATIONS] == "and 5 more violations");
    }

    #[test]
    fn waiting_ends_with_the_guest_and_with_the_deadline() {
        let mut heard = Heard::new();
        let ear = heard.ear(None);
        let late = heard.until("nothing", Duration::from_millis(1), |_| false);
        assert!(late.is_err() && heard.through(Duration::from_millis(1)));
        drop(ear);
        assert!(!heard.until("nothing", Duration::from_secs(9), |_| false).unwrap());
        assert!(!heard.through(Duration::from_secs(9)));
    }
}
