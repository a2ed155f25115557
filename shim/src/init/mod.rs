//! The resident init: PID 1 of a box.
//!
//! Owns: every process of the box (it starts them, is the parent of all orphans, reaps), runs with their streams and
//! exits, file operations, sudo. It is one thread without a runtime, started from a sealed memfd with the listening
//! control socket as an inherited descriptor, and does not depend on a connected client.
//!
//! Invariants: it never blocks on a process or a file of the box; everything it keeps is bounded; it is not dumpable,
//! so no process of the box can look into it; it writes nothing but `/run/icebox`. It must not panic: the box dies
//! with it.
//!
//! Leaves out: namespaces, mounts, limits and its own capabilities and filter (the launcher's).

mod conn;
mod deny;
mod exec;
mod files;
mod input;
mod keep;
mod leaf;
mod ops;
mod output;
mod program;
mod pty;
mod reactor;
mod run;
mod server;
mod spawn;
mod sudo_clients;
mod sudo_server;
mod tail;
mod tree;
mod user;

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use icebox_runtime::plan::Rlimit;
use icebox_runtime::process::adopt;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::process::{DumpableBehavior, Resource};

use crate::error::{Error, ErrorKind};
use crate::sys;
use deny::Filter;
use keep::KeepFile;
use server::{Launchpad, Server};
use sudo_clients::SudoServer;

pub(crate) use program::LOGIN_PATH;

/// Freed blocks of this size go back to the kernel at once: a box may sleep for months after a busy minute.
const RETURNED_BLOCK_BYTES: i32 = 32 * 1024;

/// The options of the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Options {
    control_fd: i32,
    /// For tests: run as any process.
    any_pid: bool,
    sudo_socket: PathBuf,
}

/// The whole program. Returns the exit code, and only after a failure.
#[must_use]
pub fn main() -> i32 {
    let arguments: Vec<String> =
        std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned()).collect();
    let error = match parse(&arguments).and_then(|options| start(&options)) {
        Ok(mut server) => server.serve(),
        Err(error) => error,
    };
    let line = format!("icebox-init: {}\n", error.report());
    // Standard error is the only channel for this report.
    let _ = rustix::io::write(rustix::stdio::stderr(), line.as_bytes());
    1
}

fn parse(arguments: &[String]) -> Result<Options, Error> {
    let bad = |what: &str| Error::new(ErrorKind::InvalidInput, "read arguments", what);
    let mut control_fd = None;
    let mut any_pid = false;
    let mut sudo_socket = PathBuf::from(crate::sudo::SOCKET);
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--ctl-fd" => {
                let number = rest.next().and_then(|text| text.parse::<i32>().ok());
                control_fd = number.filter(|number| *number > 2);
            }
            "--test-not-pid1" => any_pid = true,
            "--test-sudo-socket" => {
                sudo_socket = rest.next().map(PathBuf::from).ok_or_else(|| bad(argument))?;
            }
            other => return Err(bad(other)),
        }
    }
    Ok(Options { control_fd: control_fd.ok_or_else(|| bad("--ctl-fd"))?, any_pid, sudo_socket })
}

/// Everything before the loop. No tenant code runs yet, so paths of the box can still be trusted.
fn start(options: &Options) -> Result<Server, Error> {
    if std::process::id() != 1 && !options.any_pid {
        let pid = std::process::id();
        return Err(Error::new(ErrorKind::InvalidInput, "be PID 1", pid));
    }
    let failed = |step: &'static str| move |e: rustix::io::Errno| Error::io(step, "", e);
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(failed("become non-dumpable"))?;
    rustix::thread::set_no_new_privs(true).map_err(failed("set no_new_privs"))?;
    if options.any_pid {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid())).map_err(failed("become subreaper"))?;
    }
    sys::return_large_blocks(RETURNED_BLOCK_BYTES);
    let control = adopt(options.control_fd).map_err(|e| Error::io("take control socket", options.control_fd, e))?;
    let launchpad = Launchpad { filter: Filter::prepare(), null: open_null()?, open_files: raise_open_files()? };
    let sudo = SudoServer::listen(&options.sudo_socket)?;
    let keep = options.sudo_socket.parent().map(KeepFile::make).transpose()?;
    Server::new(control, launchpad, Some(sudo), keep)
}

fn open_null() -> Result<OwnedFd, Error> {
    let path = "/dev/null";
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let failed = |e: rustix::io::Errno| Error::io("open null device", path, e);
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(failed)?;
    let stat = rustix::fs::fstat(&fd).map_err(failed)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind != FileType::CharacterDevice || stat.st_rdev != rustix::fs::makedev(1, 3) {
        return Err(Error::new(ErrorKind::InvalidInput, "check null device", path));
    }
    Ok(fd)
}

/// The init holds descriptors for many runs; programs get the limit back that it was started with.
fn raise_open_files() -> Result<Rlimit, Error> {
    let before = rustix::process::getrlimit(Resource::Nofile);
    let raised = rustix::process::Rlimit { current: before.maximum, maximum: before.maximum };
    rustix::process::setrlimit(Resource::Nofile, raised).map_err(|e| Error::io("raise limit of open files", "", e))?;
    let number = |limit: Option<u64>| limit.unwrap_or(libc::RLIM64_INFINITY);
    Ok(Rlimit { resource: libc::RLIMIT_NOFILE, soft: number(before.current), hard: number(before.maximum) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments() {
        let parsed = |line: &str| {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            parse(&words)
        };
        let options = parsed("--ctl-fd 3").unwrap();
        assert_eq!((options.control_fd, options.any_pid), (3, false));
        for bad in ["", "--ctl-fd", "--ctl-fd 1", "--ctl-fd x", "--ctl-fd 3 --more"] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn it_refuses_to_be_anything_but_pid_1() {
        let options = Options { control_fd: 3, any_pid: false, sudo_socket: PathBuf::new() };
        assert_eq!(start(&options).unwrap_err().step(), "be PID 1");
    }
}
