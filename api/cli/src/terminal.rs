//! The local terminal: raw mode that is always undone, and its size.

use std::os::fd::AsFd;

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

use super::error::Error;

/// Size that is told to the box when there is no terminal to ask.
const FALLBACK: WindowSize = WindowSize { rows: 24, cols: 80 };

/// Rows and columns of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WindowSize {
    pub(crate) rows: u16,
    pub(crate) cols: u16,
}

/// Whether both standard input and standard output are terminals. One alone is not enough: with a terminal in the box,
/// `icebox exec box -- cat file > copy` would get carriage returns into the copy.
pub(crate) fn is_interactive() -> bool {
    isatty(rustix::stdio::stdin()) && isatty(rustix::stdio::stdout())
}

/// The size of the terminal, taken from the first standard stream that has one.
pub(crate) fn size() -> WindowSize {
    [rustix::stdio::stdout(), rustix::stdio::stdin(), rustix::stdio::stderr()]
        .into_iter()
        .filter_map(|stream| tcgetwinsize(stream).ok())
        .find(|size| size.ws_row > 0 && size.ws_col > 0)
        .map_or(FALLBACK, |size| WindowSize { rows: size.ws_row, cols: size.ws_col })
}

/// Raw mode of standard input: every key goes to the box, Ctrl-C too. Dropping it brings the old mode back, also when a
/// panic unwinds.
#[must_use = "raw mode ends when this is dropped"]
pub(crate) struct RawMode {
    before: Termios,
}

impl RawMode {
    /// Enters raw mode; nothing is done, and nothing returned, if standard input is no terminal.
    pub(crate) fn enter() -> Result<Option<Self>, Error> {
        let input = rustix::stdio::stdin();
        if !isatty(input) {
            return Ok(None);
        }
        let before =
            tcgetattr(input).map_err(|cause| Error::io("read the terminal's mode", "standard input", cause.into()))?;
        let mut raw = before.clone();
        raw.make_raw();
        set(input, &raw).map_err(|cause| Error::io("set the terminal's mode", "standard input", cause))?;
        Ok(Some(Self { before }))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that is gone needs no mode.
        let _ = set(rustix::stdio::stdin(), &self.before);
    }
}

fn set(terminal: impl AsFd, mode: &Termios) -> std::io::Result<()> {
    Ok(tcsetattr(terminal, OptionalActions::Drain, mode)?)
}
