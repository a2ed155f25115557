//! From a [`Process`] to a program that runs: its working directory and file are looked up, [`crate::process`] does the
//! rest, and the caller is told of warnings and of a failure.
//!
//! The working directory comes first, since names may be relative to it. Both are errors of the caller, which `create`
//! reports. Waiting for `start` lies between the two halves of becoming the program: `create` reports what fails in the
//! first, `start` what fails in the second. The second half is the system call filter and `execve`. The filter cannot be
//! loaded before the wait, as it would judge the calls that wait and report. What the kernel tells of a filter without
//! loading it is asked before the wait.

use std::{
    convert::Infallible,
    ffi::CString,
    io::{self, Read as _},
    mem::ManuallyDrop,
    os::{
        fd::{AsFd, OwnedFd, RawFd},
        unix::{ffi::OsStrExt as _, fs::OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{Access, CWD, accessat};

use super::sync::{Sync, ToParent};
use crate::{
    Error, Result, Step,
    error::OnStep as _,
    plan::{Executable, Process},
    process::{
        Failure, Note, PARKED_FROM, ProcessStep, ProgramFile, Ready, Rights, StringList, User, capabilities_in,
        exit_now, is_inside_root,
    },
    seccomp,
};

const UMASK_DEFAULT: u32 = 0o022;
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
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
    let _ = listener.send(&ToParent::Failed(error), None);
    exit_now(1)
}

fn steps(process: &Process, listener: &mut Sync, entry: Entry) -> Result<Infallible> {
    enter_cwd(&process.cwd, entry.make_cwd)?;
    let mut program = Program::find(process)?;
    // Their numbers are closed or taken over below: the owners must not close them again.
    let fds = ManuallyDrop::new(entry.fds);
    let last = fds.iter().map(|(_, target)| *target).max().unwrap_or_default();
    *listener = Sync::from(park(&*listener, last, "the caller")?);
    let file = program.open.take().map(|file| park(&file, last, "the executable file")).transpose()?;
    let start_socket = entry.start_socket.map(|socket| park(&socket, last, "start")).transpose()?;
    let fds: Vec<_> = fds.iter().map(|(fd, target)| (fd.as_fd(), *target)).collect();
    let kept: Vec<_> = [Some(listener.as_fd()), file.as_ref().map(AsFd::as_fd), start_socket.as_ref().map(AsFd::as_fd)]
        .into_iter()
        .flatten()
        .collect();
    let ready = Ready {
        fds: &fds,
        kept: &kept,
        rlimits: &process.rlimits,
        umask: process.umask.unwrap_or(UMASK_DEFAULT),
        user: User { uid: process.uid, gid: process.gid, groups: &process.groups },
        rights: Rights::Sets { sets: process.capabilities, no_new_privs: process.no_new_privs },
        folder: None,
        filter: process.seccomp.as_ref(),
        file: match &file {
            Some(file) => ProgramFile::Open(file.as_fd()),
            None => ProgramFile::FirstOf(&program.paths),
        },
        args: StringList::new(&program.args),
        env: StringList::new(&program.env),
    };
    let failed = |failure| error_of(process, &program.name, failure);
    ready.prepare(&mut |note| tell(listener, note)).map_err(failed)?;
    let mut starter = None;
    if let Some(socket) = &start_socket {
        if let Some(filter) = &process.seccomp {
            seccomp::check(filter).on(Step::Seccomp, "filter")?;
        }
        listener.send(&ToParent::Waiting, None).on(Step::Start, "telling the caller")?;
        starter = Some(wait_for_start(socket).on(Step::Start, "start socket")?);
    }
    let error = failed(ready.execute());
    if let Some(starter) = starter {
        *listener = starter;
    }
    Err(error)
}

/// Moves a descriptor that this process needs until `execve` above those of the program.
fn park(fd: impl AsFd, last: RawFd, what: &str) -> Result<OwnedFd> {
    let from = PARKED_FROM.max(last.saturating_add(1));
    rustix::io::fcntl_dupfd_cloexec(fd, from).on(Step::Exec, format!("descriptor of {what}"))
}

/// Tells the caller of a warning. It may be gone already; a warning is not worth a failure.
fn tell(listener: &Sync, note: Note) {
    let texts = match note {
        Note::HardLimitKept { wanted, set } => vec![format!(
            "resource limit {}: {}:{} was asked for; without CAP_SYS_RESOURCE the hard limit stays {}, soft is {}",
            rlimit_name(wanted.resource),
            wanted.soft,
            wanted.hard,
            set.hard,
            set.soft
        )],
        Note::CapabilitiesMissing(set) => capabilities_in(set)
            .map(|number| format!("capability {} is not available on this host", capability_name(number)))
            .collect(),
    };
    for text in texts {
        let _ = listener.send(&ToParent::Warning(text), None);
    }
}

/// A failed step in the words of this crate.
fn error_of(process: &Process, name: &str, failure: Failure) -> Error {
    let one = |what: &str| failure.detail.map_or_else(|| what.to_owned(), |number| format!("{what} {number}"));
    let (step, subject) = match failure.step {
        ProcessStep::JoinCgroup => (Step::JoinCgroup, "tasks of a v1 hierarchy".to_owned()),
        ProcessStep::Session => (Step::Identity, "setsid(2)".to_owned()),
        ProcessStep::Terminal => (Step::Terminal, "controlling terminal".to_owned()),
        ProcessStep::Descriptors => (Step::Exec, one("descriptor")),
        ProcessStep::Limits => {
            let name = failure.detail.map(|number| rlimit_name(number as u32)).unwrap_or_default();
            (Step::Rlimits, format!("resource limit {name}"))
        }
        ProcessStep::Groups => (Step::Credentials, "setgroups(2)".to_owned()),
        ProcessStep::Group => (Step::Credentials, format!("gid {}", process.gid)),
        ProcessStep::User => (Step::Credentials, format!("uid {}", process.uid)),
        ProcessStep::Capabilities => (Step::Credentials, one("capability")),
        ProcessStep::NoNewPrivs => (Step::Credentials, "no_new_privs".to_owned()),
        ProcessStep::Verify => {
            let cause = "the kernel shows another identity than was set";
            return Error::invalid(Step::Credentials, "read back", cause);
        }
        ProcessStep::Folder => (Step::Exec, process.cwd.display().to_string()),
        ProcessStep::Signals => (Step::Exec, "signals".to_owned()),
        ProcessStep::Filter => (Step::Seccomp, "filter".to_owned()),
        ProcessStep::Execute => (Step::Exec, name.to_owned()),
    };
    Error::os(step, subject, failure.errno)
}

fn capability_name(number: u32) -> String {
    let known = caps::all().into_iter().find(|cap| u32::from(cap.index()) == number);
    known.map_or_else(|| format!("number {number}"), |cap| cap.to_string())
}

fn wait_for_start(socket: &OwnedFd) -> io::Result<Sync> {
    loop {
        match rustix::net::accept_with(socket, rustix::net::SocketFlags::CLOEXEC) {
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
    if is_inside_root().on(Step::Exec, cwd.display())? {
        return Ok(());
    }
    Err(Error::invalid(Step::Exec, cwd.display(), "the working directory is not inside the container's root"))
}

/// The program: everything that can fail for want of memory or of a file is done.
struct Program {
    /// Its open file, if the plan gives one.
    open: Option<OwnedFd>,
    /// Its path otherwise.
    paths: Vec<CString>,
    name: String,
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Program {
    /// Finds the program before anything irrevocable happens, so that `create` can report a wrong one.
    fn find(process: &Process) -> Result<Self> {
        let nul = |what: &'static str| move |_| Error::invalid(Step::Exec, what, "a string holds a NUL byte");
        let strings = |list: &[String], what: &'static str| -> Result<Vec<CString>> {
            list.iter().map(|s| CString::new(s.as_bytes()).map_err(nul(what))).collect()
        };
        let mut env = strings(&process.env, "process.env")?;
        let (mut open, mut paths) = (None, Vec::new());
        match &process.executable {
            Executable::File(file) => {
                open = Some(rustix::io::fcntl_dupfd_cloexec(file, 0).on(Step::Exec, "executable file")?);
            }
            Executable::Search => {
                if !process.env.iter().any(|entry| entry.starts_with("HOME=")) {
                    env.push(CString::new(format!("HOME={}", home(process.uid))).map_err(nul("HOME"))?);
                }
                let path = search(process)?;
                paths.push(CString::new(path.as_os_str().as_bytes()).map_err(nul("process.args"))?);
            }
        }
        let name = process.args.first().cloned().unwrap_or_default();
        Ok(Self { open, paths, name, args: strings(&process.args, "process.args")?, env })
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
