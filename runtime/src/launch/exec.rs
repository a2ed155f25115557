//! The last step: working directory, descriptors, `execve`.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
};

use rustix::fs::{Access, CWD, Mode, accessat};

use crate::{
    Error, Result, Step,
    error::OnStep as _,
    plan::{Executable, Process},
    sys::process as sys,
};

const UMASK_DEFAULT: u32 = 0o022;
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Descriptors in flight are moved above this number before they are given their final one.
const PARKED_FROM: RawFd = 256;

/// Enters the working directory and proves that it lies inside the root: a directory reached through a descriptor of
/// the host has no path there (CVE-2024-21626).
///
/// `make` creates a missing one, which create and run do and exec does not, as with runc: a mistyped `--cwd` must not
/// leave a directory in the container.
pub(crate) fn enter_cwd(cwd: &Path, make: bool) -> Result<()> {
    match rustix::process::chdir(cwd) {
        Err(rustix::io::Errno::NOENT) if make => {
            std::fs::create_dir_all(cwd).on(Step::Exec, cwd.display())?;
            rustix::process::chdir(cwd).on(Step::Exec, cwd.display())?;
        }
        other => other.on(Step::Exec, cwd.display())?,
    }
    let here = rustix::process::getcwd(Vec::new()).on(Step::Exec, cwd.display())?;
    if here.as_bytes().starts_with(b"/") {
        return Ok(());
    }
    Err(Error::invalid(Step::Exec, cwd.display(), "the working directory is not inside the container's root"))
}

/// Finds the program before anything irrevocable happens, so that `create` can report a wrong one.
pub(crate) fn find(process: &Process) -> Result<Option<PathBuf>> {
    match &process.executable {
        Executable::File(_) => Ok(None),
        Executable::Search => search(process).map(Some),
    }
}

fn search(process: &Process) -> Result<PathBuf> {
    let name = process.args.first().map(String::as_str).unwrap_or_default();
    if name.is_empty() {
        return Err(Error::invalid(Step::Exec, "process.args", "the argument vector is empty"));
    }
    if name.contains('/') {
        return usable(Path::new(name)).map(|()| name.into()).on(Step::Exec, name);
    }
    let path = process.env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    let mut denied = false;
    for dir in path.split(':') {
        let candidate = Path::new(if dir.is_empty() { "." } else { dir }).join(name);
        match usable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => denied = true,
            Err(_) => {}
        }
    }
    let errno = if denied { rustix::io::Errno::ACCESS } else { rustix::io::Errno::NOENT };
    Err(Error::os(Step::Exec, format!("{name} (looked for in {path})"), errno))
}

fn usable(path: &Path) -> io::Result<()> {
    accessat(CWD, path, Access::EXEC_OK, rustix::fs::AtFlags::EACCESS)?;
    if path.is_dir() {
        return Err(rustix::io::Errno::ISDIR.into());
    }
    Ok(())
}

/// Sets the file mode creation mask, by default the usual one.
pub(crate) fn set_umask(process: &Process) {
    rustix::process::umask(Mode::from_raw_mode(process.umask.unwrap_or(UMASK_DEFAULT)));
}

/// Moves descriptors out of the way of the numbers they will be given.
pub(crate) fn park(fds: Vec<(OwnedFd, RawFd)>) -> Result<Vec<(OwnedFd, RawFd)>> {
    fds.into_iter()
        .map(|(fd, target)| {
            let parked =
                rustix::io::fcntl_dupfd_cloexec(&fd, PARKED_FROM).on(Step::Exec, format!("descriptor {target}"))?;
            Ok((parked, target))
        })
        .collect()
}

/// Executes the program. Returns only on failure.
pub(crate) fn exec(process: &Process, path: Option<&Path>, fds: &[(OwnedFd, RawFd)]) -> Error {
    // The file to execute must not stand where a descriptor of the program is about to be placed.
    let file = match &process.executable {
        Executable::File(file) => match rustix::io::fcntl_dupfd_cloexec(file, PARKED_FROM) {
            Ok(parked) => Some(parked),
            Err(error) => return Error::os(Step::Exec, "executable file", error),
        },
        Executable::Search => None,
    };
    match prepare(process, fds) {
        Ok((args, env)) => {
            let subject = process.args.first().cloned().unwrap_or_default();
            let source = match (file, path) {
                (Some(file), _) => sys::exec_file(file.as_fd(), &args, &env),
                (None, Some(path)) => match CString::new(path.as_os_str().as_bytes()) {
                    Ok(path) => sys::exec_path(&path, &args, &env),
                    Err(error) => error.into(),
                },
                (None, None) => io::ErrorKind::NotFound.into(),
            };
            Error::os(Step::Exec, subject, source)
        }
        Err(error) => error,
    }
}

fn prepare(process: &Process, fds: &[(OwnedFd, RawFd)]) -> Result<(Vec<CString>, Vec<CString>)> {
    let strings = |list: &[String], what: &str| -> Result<Vec<CString>> {
        list.iter()
            .map(|s| {
                CString::new(s.as_bytes()).map_err(|_| Error::invalid(Step::Exec, what, "a string holds a NUL byte"))
            })
            .collect()
    };
    let args = strings(&process.args, "process.args")?;
    let env = strings(&process.env, "process.env")?;
    sys::cloexec_from(3).on(Step::Exec, "close_range(2)")?;
    for (fd, target) in fds {
        sys::place_fd(fd.as_fd(), *target).on(Step::Exec, format!("descriptor {target}"))?;
    }
    Ok((args, env))
}
