//! Standard output: results for people or for programs, written at once and without panicking when the reader is gone.

use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;

use serde_json::Value;

use super::error::{Error, STDOUT};
use super::table::Table;

/// A standard stream for the event loop: reads and writes wait in a thread, so a full pipe or an idle terminal holds up
/// nothing else.
pub(crate) fn stream(fd: impl AsFd, name: &'static str) -> Result<tokio::fs::File, Error> {
    let own = fd.as_fd().try_clone_to_owned().map_err(|cause| Error::io("use", name, cause))?;
    Ok(tokio::fs::File::from_std(own.into()))
}

/// Where results go, and in which form.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    /// For programs if `json`, else for people.
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether a program reads this.
    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// Writes text as it is.
    pub(crate) fn text(self, text: &str) -> Result<(), Error> {
        let mut stdout = std::io::stdout().lock();
        stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.flush())
            .map_err(|cause| Error::io("write", STDOUT, cause))
    }

    /// Writes a line.
    pub(crate) fn line(self, text: &str) -> Result<(), Error> {
        self.text(&format!("{text}\n"))
    }

    /// Writes a JSON document, indented.
    pub(crate) fn json(self, value: &Value) -> Result<(), Error> {
        self.line(&format!("{value:#}"))
    }

    /// Writes a JSON document on one line, for streams of documents.
    pub(crate) fn json_line(self, value: &Value) -> Result<(), Error> {
        self.line(&value.to_string())
    }

    /// Writes a table.
    pub(crate) fn table(self, table: &Table) -> Result<(), Error> {
        self.text(&table.render())
    }

    /// A remark for the person at the terminal; programs and pipes do not get it.
    pub(crate) fn remark(self, text: &str) {
        if !self.json && std::io::stderr().is_terminal() {
            eprintln!("{text}");
        }
    }
}
