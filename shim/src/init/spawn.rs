//! Starting a program as a user of the box: the parent's side.
//!
//! Invariants: all decisions and allocations that can be are made before the fork. The child reports a failure by step
//! and errno through a pipe that a successful exec closes. Leaves out: waiting. The caller watches the pipe and reaps
//! on SIGCHLD; it never blocks on a child, since box users may stop or trace processes with their own ids.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::Rlimit;

use super::child::{self, ChildStep};
use super::deny::Filter;
use super::leaf::Leaf;
use super::program::Program;
use super::user::Identity;
use crate::error::{Error, ErrorKind, Reported};
use crate::sys::{self, Fork};

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
    let forked = sys::fork_into(cgroup).map_err(|e| match e.raw_os_error() {
        Some(libc::EAGAIN) => out_of_processes(),
        _ => failed("fork")(e),
    });
    match forked? {
        Fork::Child => child::run(start, writer.as_fd()),
        Fork::Parent { pid, pidfd } => {
            let text = |c: &CString| c.to_string_lossy().into_owned();
            Ok(Spawned {
                pid,
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

fn out_of_processes() -> Error {
    let cause = "the box has as many processes and threads as it may have: end some, or cancel the run that makes them";
    Error::new(ErrorKind::Limit, "start process", "").because(Reported(cause.to_owned()))
}

impl StartPipe {
    /// The result of the start; `None` while the child has not yet executed the program.
    pub(crate) fn outcome(&self) -> Option<Result<(), Error>> {
        let mut told = [0_u8; child::TOLD_BYTES];
        match rustix::io::read(&self.fd, &mut told) {
            Ok(0) => Some(Ok(())),
            Ok(_) => Some(Err(self.error(told))),
            Err(Errno::AGAIN | Errno::INTR) => None,
            Err(e) => Some(Err(Error::io("read start pipe", "", e))),
        }
    }

    fn error(&self, told: [u8; child::TOLD_BYTES]) -> Error {
        let Some((step, errno)) = child::read_failure(told) else {
            return Error::new(ErrorKind::Internal, "read start pipe", told[0]);
        };
        let subject = match step {
            ChildStep::Execute => &self.program,
            ChildStep::Folder => &self.folder,
            ChildStep::Groups | ChildStep::Ids | ChildStep::Capabilities => &self.user,
            _ => "",
        };
        let cause = io::Error::from_raw_os_error(errno);
        match step {
            ChildStep::Execute | ChildStep::Folder => Error::io(step.name(), subject, cause),
            _ => Error::own(step.name(), subject, cause),
        }
    }
}

impl AsFd for StartPipe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
