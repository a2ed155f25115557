//! Starting a program as a user of the box.
//!
//! Invariants: all decisions and allocations that can be are made before the fork. The child closes all descriptors but
//! its own before it touches a tenant-chosen path (CVE-2024-21626: a leaked directory descriptor as working directory);
//! it gives up root before it enters the folder or looks at the program, and is not dumpable until the exec, like the
//! init itself. What comes after the session is the runtime's one way of becoming the program. The child reports a
//! failure by step and errno through a pipe that a successful exec closes.
//!
//! Leaves out: waiting. The caller watches the pipe and reaps on SIGCHLD; it never blocks on a child, since box users may
//! stop or trace processes with their own ids.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use icebox_runtime::plan::Rlimit;
use icebox_runtime::process::{
    Cloned, Failure, ProcessStep, ProgramFile, Ready, Rights, StringList, clone3, exit_now, join_tasks,
};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use super::deny::Filter;
use super::leaf::Leaf;
use super::program::Program;
use super::user::Identity;
use crate::error::{Error, ErrorKind, ExecFailure, Reported};

/// Exit code of a child whose exec failed; only the init's reaper sees it.
const FAILED: i32 = 127;
/// File mode creation mask of programs.
const UMASK: u32 = 0o022;

/// The folder a program starts in.
#[derive(Debug)]
pub(crate) enum Folder {
    /// An absolute path.
    Path(CString),
    /// An open directory.
    Open(OwnedFd),
}

impl Folder {
    /// A folder by path, which must be absolute. Bytes that are no UTF-8 come as [`names`](crate::names) says.
    pub(crate) fn at(path: &str) -> Result<Self, Error> {
        let bad = || Error::new(ErrorKind::InvalidInput, "read folder", path);
        if !path.starts_with('/') {
            return Err(bad());
        }
        CString::new(crate::names::to_bytes(path)).map(Self::Path).map_err(|_| bad())
    }
}

/// A program to start and its context.
#[derive(Debug)]
pub(crate) struct Start<'a> {
    pub(crate) program: &'a Program,
    pub(crate) identity: &'a Identity,
    pub(crate) folder: &'a Folder,
    pub(crate) stdio: [BorrowedFd<'a>; 3],
    /// Standard input becomes the controlling terminal.
    pub(crate) terminal: bool,
    pub(crate) leaf: Option<&'a Leaf>,
    pub(crate) filter: &'a Filter,
    /// The limit of open files to go back to, since the init raised its own.
    pub(crate) open_files: Rlimit,
}

/// A child between fork and exec, or after.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) start: StartPipe,
}

/// The reading end of a child's start pipe, with the subjects of its errors.
#[derive(Debug)]
pub(crate) struct StartPipe {
    fd: OwnedFd,
    program: String,
    folder: String,
    user: String,
}

/// Forks; the child goes on to execute the program.
pub(crate) fn spawn(start: &Start<'_>) -> Result<Spawned, Error> {
    let failed = |step: &'static str| move |e: io::Error| Error::own(step, "", e);
    if !start.leaf.is_none_or(Leaf::has_room) {
        return Err(out_of_processes());
    }
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
        .map_err(|e| failed("make start pipe")(e.into()))?;
    let cgroup = start.leaf.map(|leaf| leaf.unified.as_fd());
    let [stdin, stdout, stderr] = start.stdio;
    let ready = Ready {
        fds: &[(stdin, 0), (stdout, 1), (stderr, 2)],
        kept: &[writer.as_fd()],
        rlimits: &[start.open_files],
        umask: UMASK,
        user: start.identity.user(),
        rights: Rights::OfUser,
        folder: match start.folder {
            Folder::Path(path) => Some(path),
            Folder::Open(_) => None,
        },
        filter: Some(start.filter.program()),
        file: ProgramFile::FirstOf(&start.program.files),
        args: StringList::new(&start.program.argv),
        env: StringList::new(&start.program.env),
    };
    let forked = clone3(0, cgroup).map_err(|e| match e.raw_os_error() {
        Some(libc::EAGAIN) => out_of_processes(),
        _ => failed("fork")(e),
    });
    match forked? {
        Cloned::Child => run_child(start, &ready, writer.as_fd()),
        Cloned::Parent(pid, pidfd) => {
            let text = |c: &CString| c.to_string_lossy().into_owned();
            Ok(Spawned {
                pid: pid.as_raw_pid(),
                pidfd,
                start: StartPipe {
                    fd: reader,
                    program: start.program.argv.first().map(text).unwrap_or_default(),
                    folder: match start.folder {
                        Folder::Path(path) => text(path),
                        Folder::Open(_) => String::new(),
                    },
                    user: start.identity.name.clone(),
                },
            })
        }
    }
}

/// Executes the program, or reports the failure and exits.
fn run_child(start: &Start<'_>, ready: &Ready<'_>, start_pipe: BorrowedFd<'_>) -> ! {
    let prepared = enter(start).and_then(|()| ready.prepare(&mut |_| {}));
    let failure = prepared.err().unwrap_or_else(|| ready.execute());
    // A failed report cannot be reported.
    let _ = rustix::io::write(start_pipe, &failure.to_bytes());
    exit_now(FAILED)
}

fn enter(start: &Start<'_>) -> Result<(), Failure> {
    let at = |step| move |errno| Failure::new(step, errno);
    // Of a v1 hierarchy. In v2 the child starts in its cgroup.
    join_tasks(start.leaf.map_or(&[], |leaf| leaf.tasks.as_slice())).map_err(at(ProcessStep::JoinCgroup))?;
    rustix::process::setsid().map_err(at(ProcessStep::Session))?;
    if start.terminal {
        rustix::process::ioctl_tiocsctty(start.stdio[0]).map_err(at(ProcessStep::Terminal))?;
    }
    if let Folder::Open(fd) = start.folder {
        // Done now, since its descriptor is closed with all others. Its sender had the right to enter it.
        rustix::process::fchdir(fd).map_err(at(ProcessStep::Folder))?;
    }
    Ok(())
}

fn out_of_processes() -> Error {
    let cause = "the box has as many processes and threads as it may have: end some, or cancel the run that makes them";
    Error::new(ErrorKind::Limit, "start process", "").because(Reported(cause.to_owned()))
}

impl StartPipe {
    /// The result of the start; `None` while the child has not yet executed the program.
    pub(crate) fn outcome(&self) -> Option<Result<(), Error>> {
        let mut told = [0_u8; Failure::BYTES];
        match rustix::io::read(&self.fd, &mut told) {
            Ok(0) => Some(Ok(())),
            Ok(_) => Some(Err(self.error(told))),
            Err(Errno::AGAIN | Errno::INTR) => None,
            Err(e) => Some(Err(Error::io("read start pipe", "", e))),
        }
    }

    fn error(&self, told: [u8; Failure::BYTES]) -> Error {
        let Some(Failure { step, errno, .. }) = Failure::from_bytes(told) else {
            return Error::new(ErrorKind::Internal, "read start pipe", told[0]);
        };
        let subject = match step {
            ProcessStep::Execute => &self.program,
            ProcessStep::Folder => &self.folder,
            ProcessStep::Groups | ProcessStep::Group | ProcessStep::User | ProcessStep::Verify => &self.user,
            _ => "",
        };
        match step {
            ProcessStep::Execute => Error::io(step.name(), subject, errno).in_exec(ExecFailure::Program),
            ProcessStep::Folder => Error::io(step.name(), subject, errno).in_exec(ExecFailure::Folder),
            _ => Error::own(step.name(), subject, errno),
        }
    }
}

impl AsFd for StartPipe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
