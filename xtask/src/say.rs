//! What a person sees: headings, facts, and a spinner while something takes long.
//!
//! Everything goes to standard error, so that the output of commands shown to the person stays apart; without a terminal
//! a spinner becomes one line.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

const SPINNER_TICK: Duration = Duration::from_millis(100);

/// A heading: a new part of the work begins.
pub(crate) fn heading(text: &str) {
    if stderr().is_terminal() {
        eprintln!("\n\x1b[1m==> {text}\x1b[0m");
    } else {
        eprintln!("\n==> {text}");
    }
}

/// A fact below a heading.
pub(crate) fn fact(text: &str) {
    eprintln!("    {text}");
}

/// A command that is about to run, as a person would type it.
pub(crate) fn command(text: &str) {
    if stderr().is_terminal() {
        eprintln!("\x1b[36m  $ {text}\x1b[0m");
    } else {
        eprintln!("  $ {text}");
    }
}

/// Something that takes a while and has no output of its own.
#[derive(Debug)]
pub(crate) struct Wait {
    text: String,
    started: Instant,
    spinner: Option<ProgressBar>,
}

/// Begins to show that something takes a while.
pub(crate) fn wait(text: impl Into<String>) -> Wait {
    let text = text.into();
    let spinner = stderr().is_terminal().then(|| {
        let style =
            ProgressStyle::with_template("    {spinner} {msg} {elapsed}").unwrap_or(ProgressStyle::default_spinner());
        let bar = ProgressBar::new_spinner().with_style(style).with_message(text.clone());
        bar.enable_steady_tick(SPINNER_TICK);
        bar
    });
    if spinner.is_none() {
        fact(&format!("{text} ..."));
    }
    Wait { text, started: Instant::now(), spinner }
}

impl Wait {
    /// Ends with a line that tells how long it took.
    pub(crate) fn done(mut self, text: &str) {
        if let Some(spinner) = self.spinner.take() {
            spinner.finish_and_clear();
        }
        fact(&format!("{text} ({:.1} s)", self.started.elapsed().as_secs_f64()));
    }

    /// What it waits for has changed.
    pub(crate) fn update(&mut self, text: &str) {
        match &self.spinner {
            Some(spinner) => spinner.set_message(text.to_owned()),
            None if self.text != text => fact(&format!("{text} ...")),
            None => {}
        }
        self.text = text.to_owned();
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        if let Some(spinner) = self.spinner.take() {
            spinner.finish_and_clear();
        }
    }
}
