//! Code that a box runs.

/// A language of code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    /// JavaScript, by node.
    Js,
    /// TypeScript, by the first runner that the box has.
    Ts,
    /// Python 3.
    Python,
}

/// Code to run.
#[derive(Debug, Clone, PartialEq)]
pub struct Code {
    /// The program text.
    pub text: String,
    /// Its language.
    pub language: Language,
    /// Milliseconds after which the program is killed, as the client sent them.
    pub timeout_ms: Option<f64>,
    /// Working directory.
    pub folder: Option<String>,
}
