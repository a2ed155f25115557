//! Running programs: in front of the person, or quietly with the output kept for an error.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::error::{Cause, Error, Result, While};

/// How much of a quiet program's output an error quotes.
const QUOTED_BYTES_MAX: usize = 4000;

/// Runs a program whose output is the person's to see.
pub(crate) fn shown(command: &mut Command) -> Result<()> {
    let name = describe(command);
    let status = command.stdin(Stdio::null()).status().or_fail("run", &name)?;
    if status.success() {
        Ok(())
    } else {
        Err(Error::new("run", name, Cause::Program { status, output: String::new() }))
    }
}

/// Runs a program and returns what it printed on standard output; both outputs are in the error if it fails.
pub(crate) fn quiet(command: &mut Command) -> Result<String> {
    let name = describe(command);
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().or_fail("run", &name)?;
    let stdout = String::from_utf8_lossy(&stdout).into_owned();
    if status.success() {
        return Ok(stdout);
    }
    let mut output = tail(&stdout).to_owned();
    let _ = write!(output, "\n{}", tail(&String::from_utf8_lossy(&stderr)));
    Err(Error::new("run", name, Cause::Program { status, output }))
}

/// The same command, run when nothing else needs the processor (nice(1)).
pub(crate) fn beside(command: &Command) -> Command {
    let mut nice = Command::new("nice");
    nice.args(["-n", "10"]).arg(command.get_program()).args(command.get_args());
    if let Some(dir) = command.get_current_dir() {
        nice.current_dir(dir);
    }
    nice
}

/// The command as a person would type it.
pub(crate) fn describe(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        let argument = argument.to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@,+%".contains(c);
        if !argument.is_empty() && argument.chars().all(plain) {
            let _ = write!(text, " {argument}");
        } else {
            let _ = write!(text, " '{}'", argument.replace('\'', r"'\''"));
        }
    }
    text
}

/// Where a program is, looking at `PATH` and the directories of administration that a person's shell may lack.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(extra).map(|dir| dir.join(name)).find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// Fails unless this process is root's.
pub(crate) fn require_root(task: &str) -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(Error::refused(
        "run",
        format!("cargo xtask {task}"),
        "boxes need namespaces, mounts and cgroups: run it as root",
    ))
}

/// The last part of a text, cut at a line where possible.
fn tail(text: &str) -> &str {
    let mut start = text.len().saturating_sub(QUOTED_BYTES_MAX);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    let cut = &text[start..];
    if start == 0 { cut } else { cut.split_once('\n').map_or(cut, |(_, rest)| rest) }
}

/// A file's content, or `None` if there is no such file.
pub(crate) fn read_if_there(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).or_fail("read", path.display().to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_shown_as_typed() {
        let mut command = Command::new("icebox");
        command.args(["exec", "hello", "--", "echo", "it's"]);
        assert_eq!(describe(&command), r"icebox exec hello -- echo 'it'\''s'");
    }

    #[test]
    fn work_beside_is_nicer_than_its_caller() {
        // Without arguments nice(1) tells its niceness; 19 is the highest.
        let told = |command: &mut Command| quiet(command).unwrap().trim().parse::<i32>().unwrap();
        let own = told(&mut Command::new("nice"));
        assert_eq!(told(&mut beside(&Command::new("nice"))), (own + 10).min(19));
    }

    #[test]
    fn a_failed_program_is_quoted() {
        let error = quiet(Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"])).unwrap_err();
        let text = std::error::Error::source(&error).unwrap().to_string();
        assert!(text.contains("exit status: 3") && text.contains("out") && text.contains("err"), "{text}");
    }

    #[test]
    fn a_tail_is_short_and_begins_with_a_whole_line() {
        let text = "line with ä\n".repeat(2000);
        let end = tail(&text);
        assert!(end.len() <= QUOTED_BYTES_MAX && end.starts_with("line"));
        assert_eq!(tail("short"), "short");
    }
}
