//! Becoming the program: the one place where each field of a [`Process`] takes effect, for create, run and exec alike.
//!
//! The order, and why:
//!
//! | step | reason |
//! |---|---|
//! | working directory, program, arguments, `HOME` | errors of the caller, which `create` reports; the files are the container's |
//! | descriptors | `close_range(2)` must not meet a filter that lacks it; parking needs high numbers, so before the limits |
//! | resource limits, file mode mask | raising a hard limit takes a capability |
//! | groups, ids, capabilities, `no_new_privs` | `create` reports their failure, and a created container waits without rights |
//! | wait for `start` | |
//! | system call filter | last, so that a profile needs to allow nothing of this crate but `execve` (and one `write` of a failure) |
//! | `execve` | |

use std::{
    convert::Infallible,
    ffi::CString,
    io::{self, Read as _},
    os::{
        fd::{AsFd as _, OwnedFd, RawFd},
        unix::{ffi::OsStrExt as _, fs::OpenOptionsExt as _, net::UnixListener},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{Access, CWD, Mode, accessat};

use super::{
    credentials,
    sync::{Sync, Up},
};
use crate::{
    Error, Result, Step,
    error::OnStep as _,
    plan::{Executable, Process, Rlimit},
    sys::process as sys,
};

const UMASK_DEFAULT: u32 = 0o022;
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Descriptors in flight are moved above this number before they are given their final one.
const PARKED_FROM: RawFd = 256;
/// The part of the container's `/etc/passwd` that is read.
const PASSWD_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// What the program gets that is no data of its [`Process`].
pub(crate) struct Entry {
    /// Make a missing working directory: create and run do, exec does not.
    pub(crate) make_cwd: bool,
    /// Descriptors for the program and the numbers they get.
    pub(crate) fds: Vec<(OwnedFd, RawFd)>,
    /// Wait for a connection here before the program runs.
    pub(crate) start_socket: Option<OwnedFd>,
}

/// Becomes the program, or reports why not and ends. The report goes to `sync`, and from `start` on to its caller.
pub(crate) fn become_program(process: &Process, sync: Sync, entry: Entry) -> ! {
    let mut listener = sync;
    let error = match steps(process, &mut listener, entry) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    let _ = listener.send(&Up::Failed(error), None);
    sys::exit_now(1)
}

fn steps(process: &Process, listener: &mut Sync, entry: Entry) -> Result<Infallible> {
    enter_cwd(&process.cwd, entry.make_cwd)?;
    let mut program = Program::find(process)?;
    let start_socket = place_descriptors(&mut program, listener, entry.start_socket, entry.fds)?;
    set_rlimits(&process.rlimits, listener)?;
    set_umask(process);
    drop_rights(process, listener)?;
    if let Some(socket) = start_socket {
        listener.send(&Up::Waiting, None).on(Step::Start, "telling the caller")?;
        *listener = wait_for_start(socket).on(Step::Start, "start socket")?;
    }
    credentials::load_filter(process)?;
    Err(program.execute())
}

fn drop_rights(process: &Process, listener: &Sync) -> Result<()> {
    for capability in credentials::apply(process)? {
        let text = format!("capability {capability} is not available on this host");
        // The reader of warnings may be gone already; a warning is not worth a failure.
        let _ = listener.send(&Up::Warning(text), None);
    }
    Ok(())
}

fn wait_for_start(listener: OwnedFd) -> io::Result<Sync> {
    let listener = UnixListener::from(listener);
    loop {
        match rustix::net::accept_with(listener.as_fd(), rustix::net::SocketFlags::CLOEXEC) {
            Ok(fd) => return Ok(Sync::from(fd)),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Enters the working directory and proves that it lies inside the root: a directory reached through a descriptor of
/// the host has no path there (CVE-2024-21626).
///
/// `make` creates a missing one, which create and run do and exec does not, as with runc: a mistyped `--cwd` must not
/// leave a directory in the container.
fn enter_cwd(cwd: &Path, make: bool) -> Result<()> {
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

/// The program, ready to be executed: everything that can fail for want of memory or of a file is done.
struct Program {
    file: ProgramFile,
    name: String,
    args: Vec<CString>,
    env: Vec<CString>,
}

enum ProgramFile {
    Open(OwnedFd),
    Path(CString),
}

impl Program {
    /// Finds the program before anything irrevocable happens, so that `create` can report a wrong one.
    fn find(process: &Process) -> Result<Self> {
        let nul = |what: &'static str| move |_| Error::invalid(Step::Exec, what, "a string holds a NUL byte");
        let strings = |list: &[String], what: &'static str| -> Result<Vec<CString>> {
            list.iter().map(|s| CString::new(s.as_bytes()).map_err(nul(what))).collect()
        };
        let mut env = strings(&process.env, "process.env")?;
        let file = match &process.executable {
            Executable::File(file) => {
                ProgramFile::Open(rustix::io::fcntl_dupfd_cloexec(file, 0).on(Step::Exec, "executable file")?)
            }
            Executable::Search => {
                if !process.env.iter().any(|entry| entry.starts_with("HOME=")) {
                    env.push(CString::new(format!("HOME={}", home(process.uid))).map_err(nul("HOME"))?);
                }
                let path = search(process)?;
                ProgramFile::Path(CString::new(path.as_os_str().as_bytes()).map_err(nul("process.args"))?)
            }
        };
        let name = process.args.first().cloned().unwrap_or_default();
        Ok(Self { file, name, args: strings(&process.args, "process.args")?, env })
    }

    /// Executes the program. Returns only on failure.
    fn execute(&self) -> Error {
        let source = match &self.file {
            ProgramFile::Open(file) => sys::exec_file(file.as_fd(), &self.args, &self.env),
            ProgramFile::Path(path) => sys::exec_path(path, &self.args, &self.env),
        };
        Error::os(Step::Exec, &self.name, source)
    }
}

/// The home directory of a user, from the container's own `/etc/passwd`; `/` if that does not name one. The file is the
/// container's: it is opened without waiting, only a regular file is read, and only its beginning.
fn home(uid: u32) -> String {
    let open = || -> io::Result<std::fs::File> {
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open("/etc/passwd")?;
        if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
    };
    open()
        .ok()
        .and_then(|file| home_in(io::BufReader::new(file.take(PASSWD_BYTES_MAX)), uid))
        .unwrap_or_else(|| "/".into())
}

/// The sixth field of the first line whose third field is `uid` (passwd(5)).
fn home_in(passwd: impl io::BufRead, uid: u32) -> Option<String> {
    passwd.split(b'\n').map_while(io::Result::ok).find_map(|line| {
        let line = String::from_utf8(line).ok()?;
        let fields: Vec<&str> = line.split(':').collect();
        let same = fields.get(2)?.parse() == Ok(uid);
        fields.get(5).filter(|home| same && !home.is_empty()).map(|home| (*home).to_owned())
    })
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
    // Callers of runc look for these words.
    let (errno, words) = if denied {
        (libc::EACCES, "permission denied")
    } else {
        (libc::ENOENT, "executable file not found in $PATH: no such file or directory")
    };
    let cause = format!("{words} (looked for in {path})");
    Err(Error { cause, ..Error::os(Step::Exec, name, io::Error::from_raw_os_error(errno)) })
}

fn usable(path: &Path) -> io::Result<()> {
    accessat(CWD, path, Access::EXEC_OK, rustix::fs::AtFlags::EACCESS)?;
    if path.is_dir() {
        return Err(rustix::io::Errno::ISDIR.into());
    }
    Ok(())
}

/// Sets the file mode creation mask, by default the usual one.
fn set_umask(process: &Process) {
    rustix::process::umask(Mode::from_raw_mode(process.umask.unwrap_or(UMASK_DEFAULT)));
}

/// Marks every descriptor from 3 on close-on-exec and gives the program's descriptors their numbers. What this process
/// still needs is moved above those numbers first. Returns the start socket.
fn place_descriptors(
    program: &mut Program,
    listener: &mut Sync,
    start_socket: Option<OwnedFd>,
    fds: Vec<(OwnedFd, RawFd)>,
) -> Result<Option<OwnedFd>> {
    sys::cloexec_from(3).on(Step::Exec, "close_range(2)")?;
    let Some(last) = fds.iter().map(|(_, target)| *target).max() else { return Ok(start_socket) };
    let from = PARKED_FROM.max(last.saturating_add(1));
    let park = |fd: &dyn std::os::fd::AsFd, what: &str| {
        rustix::io::fcntl_dupfd_cloexec(fd.as_fd(), from).on(Step::Exec, format!("descriptor of {what}"))
    };
    let parked = fds
        .iter()
        .map(|(fd, target)| Ok((park(fd, &format!("the program, {target}"))?, *target)))
        .collect::<Result<Vec<_>>>()?;
    if let ProgramFile::Open(file) = &mut program.file {
        *file = park(file, "the executable file")?;
    }
    *listener = Sync::from(park(listener, "the caller")?);
    let start_socket = start_socket.map(|socket| park(&socket, "start")).transpose()?;
    drop(fds);
    for (fd, target) in &parked {
        sys::place_fd(fd.as_fd(), *target).on(Step::Exec, format!("descriptor {target}"))?;
    }
    Ok(start_socket)
}

/// Sets the resource limits of this process.
fn set_rlimits(limits: &[Rlimit], listener: &Sync) -> Result<()> {
    for limit in limits {
        let subject = format!("resource limit {}", rlimit_name(limit.resource));
        match sys::set_rlimit(limit.resource, limit.soft, limit.hard) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                // Raising a hard limit takes CAP_SYS_RESOURCE in the initial user namespace, which some hosts keep
                // from root. The soft limit still goes as far as the hard one allows.
                let (_, hard) = sys::get_rlimit(limit.resource).on(Step::Rlimits, &subject)?;
                let soft = limit.soft.min(hard);
                sys::set_rlimit(limit.resource, soft, hard).on(Step::Rlimits, &subject)?;
                let text = format!(
                    "{subject}: {}:{} was asked for; without CAP_SYS_RESOURCE the hard limit stays {hard}, soft is {soft}",
                    limit.soft, limit.hard
                );
                listener.send(&Up::Warning(text), None).on(Step::Rlimits, &subject)?;
            }
            other => other.on(Step::Rlimits, &subject)?,
        }
    }
    Ok(())
}

/// The name of a limit as the OCI specification writes it.
fn rlimit_name(resource: u32) -> String {
    // In the order of the kernel's numbers on x86-64 and arm64.
    const NAMES: [&str; 16] = [
        "CPU",
        "FSIZE",
        "DATA",
        "STACK",
        "CORE",
        "RSS",
        "NPROC",
        "NOFILE",
        "MEMLOCK",
        "AS",
        "LOCKS",
        "SIGPENDING",
        "MSGQUEUE",
        "NICE",
        "RTPRIO",
        "RTTIME",
    ];
    NAMES.get(resource as usize).map_or_else(|| resource.to_string(), |name| format!("RLIMIT_{name}"))
}

#[cfg(test)]
mod tests {
    use super::{home_in, rlimit_name};

    #[test]
    fn home_is_the_first_entry_of_the_user_that_has_one() {
        let passwd =
            b"root:x:0:0::/root:/bin/sh\n\xff\xfe\nbad\napp:x:7:7::/var/empty:\napp2:x:7:7::/other:\nno:x:8:8:::\n";
        assert_eq!(home_in(&passwd[..], 0).as_deref(), Some("/root"));
        assert_eq!(home_in(&passwd[..], 7).as_deref(), Some("/var/empty"));
        assert_eq!(home_in(&passwd[..], 8), None);
        assert_eq!(home_in(&passwd[..], 9), None);
    }

    #[test]
    fn limits_have_their_names() {
        assert_eq!(rlimit_name(libc::RLIMIT_NOFILE), "RLIMIT_NOFILE");
        assert_eq!(rlimit_name(libc::RLIMIT_RTTIME), "RLIMIT_RTTIME");
    }
}
