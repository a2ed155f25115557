//! The operator's program that hands out block devices: `create NAME BYTES`, `delete NAME`, `grow NAME BYTES`, `list`.
//!
//! It runs with a PATH and nothing else of the daemon's environment, and is ended after [`TIMEOUT`]. docs/storage.md has what
//! its exit codes and its output mean.

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::error::{At, Cause, Error, Result, Step};
use crate::tool;

/// How long one call may take.
const TIMEOUT: Duration = Duration::from_secs(120);
/// The state of a process is asked this often.
const POLL: Duration = Duration::from_millis(5);
/// Output that is read at most; `list` has a line for each box.
const OUTPUT_BYTES_MAX: u64 = 4 << 20;
/// The exit code that says: there is no space for it.
const NO_SPACE: i32 = 3;

/// Program and first arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Program(pub(super) Vec<String>);

impl Program {
    /// Makes a device. Returns its path.
    pub(super) fn create(&self, name: &str, bytes: u64) -> Result<PathBuf> {
        let output = self.call(&["create", name, &bytes.to_string()])?;
        let path = PathBuf::from(output.trim_end_matches('\n'));
        if !path.is_absolute() || output.trim_end_matches('\n').contains('\n') {
            return Err(self.wrong(format!("`create` must print the path of the device, and printed {output:?}")));
        }
        Ok(path)
    }

    pub(super) fn delete(&self, name: &str) -> Result<()> {
        self.call(&["delete", name]).map(drop)
    }

    pub(super) fn grow(&self, name: &str, bytes: u64) -> Result<()> {
        self.call(&["grow", name, &bytes.to_string()]).map(drop)
    }

    /// Names and paths of all devices that it has made and not deleted.
    pub(super) fn list(&self) -> Result<Vec<(String, PathBuf)>> {
        let output = self.call(&["list"])?;
        let lines = output.lines().filter(|line| !line.trim().is_empty());
        lines
            .map(|line| match line.trim().split_once([' ', '\t']) {
                Some((name, path)) if path.trim().starts_with('/') => Ok((name.to_owned(), path.trim().into())),
                _ => Err(self.wrong(format!("`list` must print lines of a name and a path, and printed {line:?}"))),
            })
            .collect()
    }

    fn path(&self) -> &Path {
        Path::new(self.0.first().map_or("", String::as_str))
    }

    fn wrong(&self, what: String) -> Error {
        Error::new(Step::CallProgram, self.path().display().to_string(), Cause::Refused(what))
    }

    fn call(&self, arguments: &[&str]) -> Result<String> {
        let subject = format!("{} {}", self.path().display(), arguments.join(" "));
        let mut command = Command::new(self.path());
        command.args(self.0.get(1..).unwrap_or_default()).args(arguments);
        command.env_clear().env("PATH", tool::PATH).stdin(Stdio::null()).process_group(0);
        let output = run(command).at(Step::CallProgram, Path::new(&subject))?;
        let Some(output) = output else {
            let why = format!("it did not end within {} seconds", TIMEOUT.as_secs());
            return Err(Error::new(Step::CallProgram, subject, Cause::Refused(why)));
        };
        match output.status.code() {
            Some(0) => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            Some(NO_SPACE) => Err(Error::new(Step::CallProgram, subject, Cause::NoDevice { gib: None })),
            _ => Err(tool::failed(Step::CallProgram, &self.path().display().to_string(), &output, Path::new(&subject))),
        }
    }
}

/// Runs it to its end; `None` if it took too long and was killed, with what it has started.
fn run(mut command: Command) -> io::Result<Option<Output>> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (stdout, stderr) = (reader(child.stdout.take()), reader(child.stderr.take()));
    let status = wait(&mut child)?;
    // What it has left behind could keep the output open for ever.
    let _ = Pid::from_raw(child.id().cast_signed()).map(|group| kill_process_group(group, Signal::KILL));
    if status.is_none() {
        child.wait()?;
    }
    let read = |reading: thread::JoinHandle<Vec<u8>>| reading.join().unwrap_or_default();
    let (stdout, stderr) = (read(stdout), read(stderr));
    Ok(status.map(|status| Output { status, stdout, stderr }))
}

fn wait(child: &mut Child) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        thread::sleep(POLL);
    }
}

fn reader(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // Cut short, it is what came until then.
        let _ = pipe.map(|pipe| pipe.take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes));
        bytes
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn shell(script: &str) -> Program {
        Program(["/bin/sh", "-c", script, "program"].map(str::to_owned).to_vec())
    }

    #[test]
    fn arguments_go_in_and_a_path_comes_out_without_the_environment() {
        let script = "[ $# = 3 ] && [ \"$1 $2 $3\" = 'create a-1 4096' ] && [ -z \"$HOME$CARGO\" ] && echo /dev/x";
        assert_eq!(shell(script).create("a-1", 4096).unwrap(), Path::new("/dev/x"));
        assert_eq!(shell("printf 'a /dev/a\\nb\\t/dev/b\\n'").list().unwrap().len(), 2);
        shell("[ \"$1\" = delete ]").delete("a-1").unwrap();
    }

    #[test]
    fn exit_codes_and_bad_output_are_told_apart() {
        assert_eq!(shell("exit 3").create("a", 1).unwrap_err().kind(), ErrorKind::NoDevice);
        let failed = shell("echo broken >&2; exit 1").grow("a", 1).unwrap_err();
        assert!(failed.cause().to_string().contains("broken"), "{}", failed.cause());
        for output in ["echo", "echo relative", "printf '/dev/a\\n/dev/b\\n'"] {
            assert_eq!(shell(output).create("a", 1).unwrap_err().kind(), ErrorKind::InvalidInput, "{output}");
        }
        assert_eq!(shell("echo word").list().unwrap_err().kind(), ErrorKind::InvalidInput);
        let missing = Program(vec!["/no/such/program".to_owned()]).list().unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
    }

    #[test]
    fn what_it_leaves_behind_does_not_hold_the_call() {
        assert_eq!(shell("sleep 1000 & echo /dev/x").create("a", 1).unwrap(), Path::new("/dev/x"));
    }
}
