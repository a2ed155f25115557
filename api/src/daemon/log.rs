//! The daemon's own log: to standard error, filtered by `ICEBOX_LOG` (default `info`).
//!
//! When standard error is the journal, lines carry their priority as `<N>` (sd-daemon(3)) and omit what the journal
//! adds: time and program. Fields stay in the text, where `journalctl -u iceboxd` shows them.

use std::io::{self, IsTerminal, Write};

use tracing::{Level, Metadata};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// Priority of an error, as syslog(3) counts.
const PRIORITY_ERROR: u8 = 3;

/// Starts logging. Once per process.
pub(super) fn start(json: bool) {
    let lines = fmt::layer().with_target(false);
    let lines = match (is_journal(), json) {
        (true, true) => lines.with_writer(Journal).with_ansi(false).without_time().json().boxed(),
        (true, false) => lines.with_writer(Journal).with_ansi(false).without_time().with_level(false).boxed(),
        (false, true) => lines.with_writer(io::stderr).json().boxed(),
        // No colours in files.
        (false, false) => lines.with_writer(io::stderr).with_ansi(io::stderr().is_terminal()).boxed(),
    };
    tracing_subscriber::registry().with(lines).with(filter(std::env::var("ICEBOX_LOG").ok().as_deref())).init();
    if is_journal() {
        // Otherwise the first line of a panic would be an error and the rest would have the default priority.
        std::panic::set_hook(Box::new(|panic| {
            let trace = std::backtrace::Backtrace::capture();
            report(&format!("{panic}\n{trace}"));
        }));
    }
}

/// A level, or a list such as `info,icebox_net=debug`; the default for anything else.
fn filter(wished: Option<&str>) -> Targets {
    let wished = wished.filter(|text| !text.is_empty()).and_then(|text| text.parse().ok());
    wished.unwrap_or_else(|| Targets::new().with_default(Level::INFO))
}

/// Reports the error that ends the program, or a thread of it. Works without [`start`].
pub(super) fn report(text: &str) {
    let text = format!("{text}\n");
    let bytes = if is_journal() { marked(PRIORITY_ERROR, text.as_bytes()) } else { text.into_bytes() };
    // A failed write to standard error cannot be reported.
    let _ = io::stderr().lock().write_all(&bytes);
}

/// True if standard error goes to the journal: systemd passes the socket's device and inode, so a program that was
/// started with another standard error is not misled by the inherited variable.
fn is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(stat) = rustix::fs::fstat(io::stderr()) else { return false };
    stream == format!("{}:{}", stat.st_dev, stat.st_ino)
}

/// Makes a writer for each entry, which knows its level.
#[derive(Debug, Clone, Copy)]
struct Journal;

/// An entry being written.
#[derive(Debug)]
struct Entry(u8);

impl<'a> MakeWriter<'a> for Journal {
    type Writer = Entry;

    fn make_writer(&'a self) -> Entry {
        Entry(priority(Level::INFO))
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Entry {
        Entry(priority(*meta.level()))
    }
}

impl Write for Entry {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        // At once, so that entries of two threads don't mix.
        io::stderr().lock().write_all(&marked(self.0, text))?;
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => PRIORITY_ERROR,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

/// The journal takes every line as an entry of its own, so every line is marked.
fn marked(priority: u8, text: &[u8]) -> Vec<u8> {
    let mut marked = Vec::with_capacity(text.len() + 3);
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        marked.extend_from_slice(format!("<{priority}>").as_bytes());
        marked.extend_from_slice(line);
    }
    marked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_for_all_or_by_module() {
        let shows = |wished: Option<&str>, module, level| filter(wished).would_enable(module, &level);
        for unset in [None, Some(""), Some("a=b=c")] {
            assert!(shows(unset, "icebox_api", Level::INFO) && !shows(unset, "icebox_api", Level::DEBUG), "{unset:?}");
        }
        assert!(shows(Some("debug"), "hyper", Level::DEBUG) && !shows(Some("debug"), "hyper", Level::TRACE));
        let list = Some("warn,icebox_net=debug");
        assert!(shows(list, "icebox_net::dns", Level::DEBUG) && !shows(list, "icebox_api", Level::INFO));
    }

    #[test]
    fn every_line_has_its_priority() {
        assert_eq!(marked(priority(Level::WARN), b"a\nb\n"), b"<4>a\n<4>b\n");
        assert_eq!(marked(priority(Level::ERROR), b"a"), b"<3>a");
    }
}
