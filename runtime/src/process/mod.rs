//! Becoming the program: the one place where each property of a process takes effect, for create, run and exec, and for
//! the commands that a resident init starts.
//!
//! [`Ready`] is made before the clone, as far as its maker can. Its two halves run in the child: [`Ready::prepare`], then
//! [`Ready::execute`]. Neither writes to the heap unless a descriptor is in the way of another, and a [`Failure`] is three
//! numbers, so a child can report it through a pipe.
//!
//! The order, and why:
//!
//! | step | reason |
//! |---|---|
//! | descriptors | first of all, so that no step below can reach what the caller has open; placing them takes high numbers, so before the limits |
//! | resource limits, file mode mask | raising a hard limit takes a capability |
//! | groups, ids, capabilities, `no_new_privs` | the rest happens with the rights of the program's user |
//! | folder | entered as the user, so that the kernel checks the user's right |
//! | signals | |
//! | (create) wait for `start` | between the halves: a created container waits with the program's rights |
//! | system call filter | last, so that a profile needs to allow nothing of this crate but `execve` (and one `write` of a failure) |
//! | `execve` | |
//!
//! Leaves out: the cgroup, namespaces, session and terminal, which come before; looking a program up.

mod credentials;
mod descriptors;
mod failure;
mod note;

use std::{
    ffi::{CStr, CString},
    os::fd::{AsFd, BorrowedFd, RawFd},
};

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat2},
    io::Errno,
    process::{fchdir, getcwd},
};

use self::failure::at;
pub(crate) use self::{credentials::numbers as capabilities_in, descriptors::PARKED_FROM};
pub use self::{
    credentials::{Rights, User, become_user},
    descriptors::close_all_but,
    failure::{Failure, ProcessStep},
    note::Note,
};
pub use crate::sys::{
    fd::adopt,
    process::{Cloned, StringList, clone3, exit_now, pidfd_signal, reset_signals},
};
use crate::{plan::Rlimit, seccomp, sys::process as sys};

/// A program and all that it is to become the program with.
#[derive(Debug)]
pub struct Ready<'a> {
    /// Descriptors for the program and the numbers they get. All others are closed.
    pub fds: &'a [(BorrowedFd<'a>, RawFd)],
    /// What this process needs until `execve`, which closes it. No number in `fds` may be one of these.
    pub kept: &'a [BorrowedFd<'a>],
    /// Resource limits.
    pub rlimits: &'a [Rlimit],
    /// File mode creation mask.
    pub umask: u32,
    /// The user.
    pub user: User<'a>,
    /// The capabilities.
    pub rights: Rights,
    /// A folder to enter as that user; else the process stays where it is.
    pub folder: Option<&'a CStr>,
    /// The system call filter.
    pub filter: Option<&'a seccomp::Program>,
    /// What is executed.
    pub file: ProgramFile<'a>,
    /// Argument vector.
    pub args: StringList<'a>,
    /// Environment.
    pub env: StringList<'a>,
}

/// What is executed.
#[derive(Debug, Clone, Copy)]
pub enum ProgramFile<'a> {
    /// An open file.
    Open(BorrowedFd<'a>),
    /// The first of these paths that can be executed.
    FirstOf(&'a [CString]),
}

impl Ready<'_> {
    /// Everything up to the system call filter. Only in a child that ends by `execve` or [`exit_now`]: the owners of other
    /// descriptors must never be dropped.
    ///
    /// # Errors
    /// The failed step.
    pub fn prepare(&self, note: &mut dyn FnMut(Note)) -> Result<(), Failure> {
        descriptors::place(self.fds, self.kept)?;
        for limit in self.rlimits {
            set_rlimit(*limit, note)?;
        }
        rustix::process::umask(Mode::from_raw_mode(self.umask));
        credentials::apply(&self.user, &self.rights, self.filter.is_some(), note)?;
        if let Some(folder) = self.folder {
            enter_folder(folder).map_err(at(ProcessStep::Folder))?;
        }
        reset_signals().map_err(at(ProcessStep::Signals))
    }

    /// Loads the filter and executes the program. Returns only a failure.
    pub fn execute(&self) -> Failure {
        if let Some(filter) = self.filter
            && let Err(failure) = load(filter, &self.rights)
        {
            return failure;
        }
        Failure::new(ProcessStep::Execute, self.execve())
    }

    /// Tries the files in order; returns only the error that tells most.
    fn execve(&self) -> Errno {
        let files = match self.file {
            ProgramFile::Open(file) => return sys::exec_file(file, &self.args, &self.env),
            ProgramFile::FirstOf(files) => files,
        };
        let mut denied = None;
        for file in files {
            match sys::execve(file, &self.args, &self.env) {
                Errno::NOENT | Errno::NOTDIR => {}
                Errno::ACCESS => denied = Some(Errno::ACCESS),
                errno => return errno,
            }
        }
        denied.unwrap_or(Errno::NOENT)
    }
}

fn load(filter: &seccomp::Program, rights: &Rights) -> Result<(), Failure> {
    credentials::allow_loading(rights)?;
    seccomp::load(filter).map(drop).map_err(|error| Failure::new(ProcessStep::Filter, error.errno()))
}

/// Joins v1 hierarchies by their `tasks` files. "0" is the writer itself: for a single-threaded process the kernel then
/// skips the grace period that makes a write to `cgroup.procs` take some 12 ms.
///
/// # Errors
/// Those of write(2).
pub fn join_tasks<T: AsFd>(tasks: &[T]) -> Result<(), Errno> {
    tasks.iter().try_for_each(|fd| rustix::io::write(fd, b"0").map(drop))
}

/// True if the working directory lies inside the root of this process. For one that was reached through a descriptor of
/// the host the kernel gives a path that begins with "(unreachable)" (CVE-2024-21626).
pub(crate) fn is_inside_root() -> Result<bool, Errno> {
    Ok(getcwd(Vec::new())?.as_bytes().first() == Some(&b'/'))
}

/// Enters a folder, never through a magic link, and makes sure that it lies inside the root.
fn enter_folder(path: &CStr) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    fchdir(openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)?)?;
    if is_inside_root()? { Ok(()) } else { Err(Errno::ACCESS) }
}

fn set_rlimit(wanted: Rlimit, note: &mut dyn FnMut(Note)) -> Result<(), Failure> {
    let failed = |error| Failure::of(ProcessStep::Limits, wanted.resource as i32, error);
    match sys::set_rlimit(wanted.resource, wanted.soft, wanted.hard) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            // Some hosts keep CAP_SYS_RESOURCE from root. The soft limit still goes as far as the hard one allows.
            let (_, hard) = sys::get_rlimit(wanted.resource).map_err(failed)?;
            let set = Rlimit { soft: wanted.soft.min(hard), hard, ..wanted };
            sys::set_rlimit(set.resource, set.soft, set.hard).map_err(failed)?;
            note(Note::HardLimitKept { wanted, set });
            Ok(())
        }
        other => other.map_err(failed),
    }
}
