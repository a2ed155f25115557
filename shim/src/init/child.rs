//! Starting a program as a user of the box: the child's side, between fork and exec.
//!
//! Invariants: the child closes all descriptors but its own before it touches a tenant-chosen path (CVE-2024-21626: a
//! leaked directory descriptor as working directory); it gives up root before it enters the folder or looks at the
//! program; it ends by exec or by reporting its failure. It is not dumpable until the exec, like the init itself.

use std::convert::Infallible;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::process::Resource;
use rustix::thread::{Gid, Uid};

use super::program::Program;
use super::spawn::{Folder, Start};
use super::user::Identity;
use crate::sys;

/// Where the child keeps its end of the start pipe.
const START_PIPE_FD: i32 = 3;
/// Size of a failed child's report: step and errno.
pub(crate) const TOLD_BYTES: usize = 5;
/// Exit code of a child whose exec failed; only the init's reaper sees it.
const FAILED: i32 = 127;

macro_rules! child_steps {
    ($($(#[$doc:meta])* $step:ident = $number:literal, $name:literal;)*) => {
        /// The child's steps. The numbers travel through the start pipe.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum ChildStep { $($(#[$doc])* $step = $number,)* }

        impl ChildStep {
            /// The step as errors name it.
            pub(crate) fn name(self) -> &'static str {
                match self { $(Self::$step => $name,)* }
            }

            fn from_u8(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$step),)* _ => None }
            }
        }
    };
}

child_steps! {
    JoinCgroup = 1, "join run's cgroup";
    Session = 2, "start session";
    Terminal = 3, "take terminal";
    Stdio = 4, "set up stdio";
    Descriptors = 5, "close descriptors";
    Groups = 6, "set groups";
    Ids = 7, "set user";
    Capabilities = 8, "drop capabilities";
    Folder = 9, "enter folder";
    Limits = 10, "set limits";
    Signals = 11, "reset signals";
    Filter = 12, "load system call filter";
    Execute = 13, "execute";
}

/// Where a child failed, and the kernel's answer.
pub(crate) type Failure = (ChildStep, Errno);

/// The failure that a child reported through its start pipe.
pub(crate) fn read_failure(told: [u8; TOLD_BYTES]) -> Option<(ChildStep, i32)> {
    let [step, errno @ ..] = told;
    Some((ChildStep::from_u8(step)?, i32::from_le_bytes(errno)))
}

/// Executes the program, or reports the failure and exits.
pub(crate) fn run(start: &Start<'_>, start_pipe: BorrowedFd<'_>) -> ! {
    let mut moved = false;
    let (step, errno) = match become_program(start, start_pipe, &mut moved) {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    let [a, b, c, d] = errno.raw_os_error().to_le_bytes();
    let told = [step as u8, a, b, c, d];
    // A failed report cannot be reported.
    if moved {
        let _ = sys::adopt_fd(START_PIPE_FD).map(|pipe| rustix::io::write(&pipe, &told));
    } else {
        let _ = rustix::io::write(start_pipe, &told);
    }
    sys::exit_now(FAILED)
}

fn at(step: ChildStep) -> impl FnOnce(Errno) -> Failure {
    move |errno| (step, errno)
}

fn at_io(step: ChildStep) -> impl FnOnce(io::Error) -> Failure {
    move |e| (step, Errno::from_io_error(&e).unwrap_or(Errno::IO))
}

fn become_program(start: &Start<'_>, start_pipe: BorrowedFd<'_>, moved: &mut bool) -> Result<Infallible, Failure> {
    join_cgroups(start).map_err(at(ChildStep::JoinCgroup))?;
    rustix::process::setsid().map_err(at(ChildStep::Session))?;
    if start.terminal {
        rustix::process::ioctl_tiocsctty(start.stdio[0]).map_err(at(ChildStep::Terminal))?;
    }
    for (number, fd) in (0..).zip(start.stdio) {
        sys::place_fd(fd, number, false).map_err(at_io(ChildStep::Stdio))?;
    }
    if let Folder::Open(fd) = start.folder {
        // Done now, since its descriptor is closed with all others. Its sender had the right to enter it.
        rustix::process::fchdir(fd).map_err(at(ChildStep::Folder))?;
    }
    sys::place_fd(start_pipe, START_PIPE_FD, true).map_err(at_io(ChildStep::Descriptors))?;
    *moved = true;
    sys::close_from(START_PIPE_FD + 1).map_err(at_io(ChildStep::Descriptors))?;
    become_user(start.identity)?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    if let Folder::Path(path) = start.folder {
        enter(path).map_err(at(ChildStep::Folder))?;
    }
    rustix::process::setrlimit(Resource::Nofile, start.open_files).map_err(at(ChildStep::Limits))?;
    sys::reset_signals().map_err(at_io(ChildStep::Signals))?;
    start.filter.load().map_err(at(ChildStep::Filter))?;
    Err((ChildStep::Execute, execute(start.program)))
}

/// Joins the v1 hierarchies: "0" in a `tasks` file means the writer. In v2 the child starts in its cgroup.
fn join_cgroups(start: &Start<'_>) -> Result<(), Errno> {
    for tasks in start.leaf.iter().flat_map(|leaf| &leaf.tasks) {
        rustix::io::write(tasks, b"0")?;
    }
    Ok(())
}

/// Groups, group, user, in this order; for anyone but root, no capability is left.
pub(crate) fn become_user(identity: &Identity) -> Result<(), Failure> {
    let groups: Vec<Gid> = identity.groups.iter().copied().map(Gid::from_raw).collect();
    rustix::thread::set_thread_groups(&groups).map_err(at(ChildStep::Groups))?;
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(at(ChildStep::Ids))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(at(ChildStep::Ids))?;
    if identity.uid != 0 {
        // The kernel drops them with the last root id, unless securebits say otherwise, so they are read back.
        let left = rustix::thread::capabilities(None).map_err(at(ChildStep::Capabilities))?;
        if !(left.effective.is_empty() && left.permitted.is_empty() && left.inheritable.is_empty()) {
            return Err((ChildStep::Capabilities, Errno::PERM));
        }
    }
    Ok(())
}

/// Enters a folder as the user, never through a magic link, and makes sure that it lies in the box: for a directory
/// outside the root the kernel gives a path that begins with "(unreachable)".
fn enter(path: &CStr) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_MAGICLINKS;
    let folder = rustix::fs::openat2(rustix::fs::CWD, path, flags, Mode::empty(), resolve)?;
    rustix::process::fchdir(folder.as_fd())?;
    let inside = rustix::process::getcwd(Vec::new())?;
    if inside.as_bytes().first() == Some(&b'/') { Ok(()) } else { Err(Errno::ACCESS) }
}

/// Tries the program's files in order; returns only the most informative error.
fn execute(program: &Program) -> Errno {
    let mut denied = None;
    for file in &program.files {
        let errno = match nix::unistd::execve(file, &program.argv, &program.env) {
            Ok(never) => match never {},
            Err(errno) => Errno::from_raw_os_error(errno as i32),
        };
        match errno {
            Errno::NOENT | Errno::NOTDIR => {}
            Errno::ACCESS => denied = Some(errno),
            _ => return errno,
        }
    }
    denied.unwrap_or(Errno::NOENT)
}
