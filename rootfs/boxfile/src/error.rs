//! Errors of a Boxfile: file, line, what is wrong, and what to write instead.

use std::fmt;

/// What is wrong with a Boxfile or with one of its steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// The name of the Boxfile, as the client gave it.
    pub file: String,
    /// The first line of the instruction, counted from 1; none for what concerns the whole file.
    pub line: Option<usize>,
    /// What is wrong.
    pub what: String,
    /// What to write instead.
    pub instead: Option<String>,
}

/// A fault in an instruction whose line the caller knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) what: String,
    pub(crate) instead: Option<String>,
}

impl Fault {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), instead: None }
    }

    pub(crate) fn instead(what: impl Into<String>, instead: impl Into<String>) -> Self {
        Self { what: what.into(), instead: Some(instead.into()) }
    }

    pub(crate) fn at(self, file: &str, line: usize) -> Error {
        Error { file: file.to_owned(), line: Some(line), what: self.what, instead: self.instead }
    }
}

impl From<String> for Fault {
    fn from(what: String) -> Self {
        Self::new(what)
    }
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        Self::new(error.to_string())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", self.what)?;
        if let Some(instead) = &self.instead {
            write!(f, "; {instead}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}
