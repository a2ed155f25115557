//! Running the file system tools of the machine.

use std::io;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::error::{At, Cause, Error, Result, Step};

/// Longest output of a tool quoted in an error.
const TOOL_OUTPUT_BYTES_MAX: usize = 4096;
/// An administrator's shell may lack the sbin directories.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";

/// A program of a package, used in one step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tool {
    pub(crate) program: &'static str,
    /// The answer if it is not installed.
    pub(crate) missing: &'static str,
    pub(crate) step: Step,
}

impl Tool {
    /// The command, with nothing of the daemon's environment.
    pub(crate) fn command(self) -> Command {
        let mut command = Command::new(self.program);
        command.env_clear().env("PATH", PATH).stdin(Stdio::null());
        command
    }

    /// Runs the command and returns its output and status. `subject` is named in the error.
    pub(crate) fn output(self, command: &mut Command, subject: &Path) -> Result<Output> {
        match command.output() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(Error::new(self.step, subject.display().to_string(), Cause::Missing(self.missing)))
            }
            other => other.at(self.step, Path::new(self.program)),
        }
    }

    /// As [`Tool::output`]; an unsuccessful status is an error.
    pub(crate) fn run(self, command: &mut Command, subject: &Path) -> Result<Output> {
        let output = self.output(command, subject)?;
        if output.status.success() { Ok(output) } else { Err(self.failed(&output, subject)) }
    }

    /// The error of a run that did not succeed.
    pub(crate) fn failed(self, output: &Output, subject: &Path) -> Error {
        failed(self.step, self.program, output, subject)
    }
}

/// The error of a program that did not succeed.
pub(crate) fn failed(step: Step, program: &str, output: &Output, subject: &Path) -> Error {
    let text = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
    let start = text.len().saturating_sub(TOOL_OUTPUT_BYTES_MAX);
    let output_tail = String::from_utf8_lossy(&text[start..]).into_owned();
    let cause = Cause::Tool { program: program.to_owned(), status: output.status, output_tail };
    Error::new(step, subject.display().to_string(), cause)
}
