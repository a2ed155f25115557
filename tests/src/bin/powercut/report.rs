//! The lines that the host reads. Each is written whole: a cut leaves at most one broken line, the last.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::model::Op;

static VIOLATIONS: AtomicUsize = AtomicUsize::new(0);

fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    // Without the host, a report has no reader.
    let _ = out.write_all(format!("{}\n", text.replace('\n', " | ")).as_bytes()).and_then(|()| out.flush());
}

fn op(word: &str, op: &Op) {
    line(&format!("@{word} {}", serde_json::to_string(op).expect("an operation is JSON")));
}

/// An operation begins: from now on it may have happened.
pub(crate) fn begun(what: &Op) {
    op("try", what);
}

/// An operation has been answered: from now on it must have happened.
pub(crate) fn done(what: &Op) {
    op("ack", what);
}

/// Something that must not be.
pub(crate) fn violation(text: &str) {
    VIOLATIONS.fetch_add(1, Ordering::SeqCst);
    line(&format!("@violation {text}"));
}

/// How many there were.
pub(crate) fn violations() -> usize {
    VIOLATIONS.load(Ordering::SeqCst)
}

/// The look back is over.
pub(crate) fn checked(facts: usize) {
    line(&format!("@checked {facts}"));
}

/// The new work has begun.
pub(crate) fn working() {
    line("@working");
}
