//! The client: asks the init, forwards signals, ends as the command ended.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::fs::{Mode as FileMode, OFlags};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use super::args::{self, Asked, Command, Mode, Preserve};
use super::{REQUEST_BYTES_MAX, REQUEST_FDS, SOCKET, SudoRequest};
use crate::error::{Error, ErrorKind, ExecFailure};
use crate::init::LOGIN_PATH;
use crate::protocol::{
    Answer, Decoder, Envelope, Exit, ExitStatus, Frame, FrameType, Scope, SignalMessage, VERSION, WireError, decode,
    encode, header,
};

/// Another socket, for an init that runs outside a box.
const SOCKET_ENV: &str = "ICEBOX_SUDO_SOCKET";
/// Exit code for a failure of sudo itself.
const FAILED: i32 = 1;
/// Variables that are passed on by default.
const USUAL: [&str; 8] = ["TERM", "COLORTERM", "LANG", "LANGUAGE", "TZ", "DISPLAY", "NO_COLOR", "LS_COLORS"];
/// Variables that always have the target user's values.
const NEVER: [&str; 4] = ["PATH", "USER", "LOGNAME", "SUDO_COMMAND"];

const USAGE: &str = "usage: sudo -h | -K | -k | -V
usage: sudo -v [-AknS] [-g group] [-u user]
usage: sudo -l [-AknS] [-g group] [-U user] [-u user] [command [arg ...]]
usage: sudo [-AbEHknPS] [-D directory] [-g group] [-u user] [VAR=value] [-i | -s] [command [arg ...]]
";
const HELP: &str = "sudo - execute a command as another user

usage: sudo -h | -K | -k | -V
usage: sudo -v [-AknS] [-g group] [-u user]
usage: sudo -l [-AknS] [-g group] [-U user] [-u user] [command [arg ...]]
usage: sudo [-AbEHknPS] [-D directory] [-g group] [-u user] [VAR=value] [-i | -s] [command [arg ...]]

Runs a command as root of this box, or as another user of it. There is no password: the box is its user's own.
PID 1 of the box starts the command, since set-user-id programs have no effect in a box.
";

/// The whole program. Returns the exit code.
#[must_use]
pub fn main() -> i32 {
    let arguments: Result<Vec<String>, _> =
        std::env::args_os().skip(1).map(|argument| String::from_utf8(argument.into_vec())).collect();
    let asked =
        arguments.map_err(|_| "arguments must be UTF-8".to_owned()).and_then(|arguments| args::parse(&arguments));
    match asked {
        Ok(Asked::Help) => say(HELP),
        Ok(Asked::Version) => say(concat!("Sudo version ", env!("CARGO_PKG_VERSION"), " (Icebox)\n")),
        Ok(Asked::List(command)) => list(command.as_deref()),
        Ok(Asked::Nothing) => 0,
        Ok(Asked::Run(command)) => match run(command) {
            Ok(exit) => end_as(exit),
            Err(error) => complain(&in_sudos_words(&error)),
        },
        Err(text) => {
            if !text.is_empty() {
                complain(&text);
            }
            // A missing standard error is no reason to end in another way.
            let _ = rustix::io::write(rustix::stdio::stderr(), USAGE.as_bytes());
            FAILED
        }
    }
}

/// The error texts of the original sudo, which scripts expect.
fn in_sudos_words(error: &Error) -> String {
    let subject = error.subject();
    match (error.exec_failure(), error.kind()) {
        (Some(ExecFailure::Program), ErrorKind::NotFound) => format!("{subject}: command not found"),
        (Some(ExecFailure::Program), _) => format!("unable to execute {subject}: {}", kernel_text(error)),
        (Some(ExecFailure::Folder), _) => format!("unable to change directory to {subject}: {}", kernel_text(error)),
        (Some(ExecFailure::User), _) => format!("unknown user {subject}"),
        (Some(ExecFailure::Group), _) => format!("unknown group {subject}"),
        (Some(ExecFailure::Caller), _) => format!("user {subject} may not run sudo in this box"),
        _ => error.report(),
    }
}

/// The errno's text without the number that Rust appends.
fn kernel_text(error: &Error) -> String {
    let text = error.causes();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// `-l`: a caller that may use sudo may run everything. With a command: prints its file, or exits with 1 without one.
fn list(command: Option<&str>) -> i32 {
    match command {
        None => {
            let name = |name: &str| std::env::var(name).unwrap_or_default();
            let uid = rustix::process::getuid();
            let user = if uid.is_root() { "root".to_owned() } else { name("USER") };
            let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
            let text = "may run the following commands on";
            say(&format!("User {user} {text} {host}:\n    (ALL : ALL) NOPASSWD: ALL\n"))
        }
        Some(command) => match find(command) {
            Some(file) => say(&format!("{file}\n")),
            None => FAILED,
        },
    }
}

/// The file of a command, in the PATH that it will have.
fn find(command: &str) -> Option<String> {
    let executable = |file: &str| {
        let is_file = std::fs::metadata(file).is_ok_and(|metadata| metadata.is_file());
        is_file && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok()
    };
    if command.contains('/') {
        return executable(command).then(|| command.to_owned());
    }
    LOGIN_PATH.split(':').map(|folder| format!("{folder}/{command}")).find(|file| executable(file))
}

fn say(text: &str) -> i32 {
    match rustix::io::write(rustix::stdio::stdout(), text.as_bytes()) {
        Ok(_) => 0,
        Err(_) => FAILED,
    }
}

fn complain(text: &str) -> i32 {
    let line = format!("sudo: {text}\n");
    // Standard error is the only channel for this report.
    let _ = rustix::io::write(rustix::stdio::stderr(), line.as_bytes());
    FAILED
}

/// Ends like the command: a shell must see the signal, not a number.
fn end_as(exit: Option<Exit>) -> i32 {
    match exit.map(|exit| exit.status) {
        None => 0,
        Some(ExitStatus::Code(code)) => code,
        Some(ExitStatus::Signal(number)) => {
            if let Ok(signal) = Signal::try_from(number) {
                // Rust ignores SIGPIPE, and the signals below are blocked; undo both so that the signal ends us.
                let _ = icebox_runtime::process::reset_signals();
                let _ = nix::sys::signal::raise(signal);
            }
            128 + number
        }
    }
}

/// `None` for a command in the background.
fn run(command: Command) -> Result<Option<Exit>, Error> {
    // Blocked before the command exists, so that no signal is lost.
    let signals = watch_signals()?;
    let socket = connect()?;
    let background = command.background;
    send(&socket, request(command))?;
    let mut stream = Stream { socket, decoder: Decoder::default() };
    let frame = stream.wait_frame()?;
    let answer: Envelope<Result<Answer, WireError>> = decode(&frame.payload)?;
    if frame.kind != FrameType::Response || answer.v != VERSION {
        return Err(Error::new(ErrorKind::Internal, "read init's answer", ""));
    }
    answer.m.map_err(Error::from)?;
    if background {
        return Ok(None);
    }
    loop {
        let [socket_ready, signal_ready] = stream.wait(&signals)?;
        if signal_ready {
            while let Ok(Some(info)) = signals.read_signal() {
                stream.forward(info.ssi_signo)?;
            }
        }
        if socket_ready
            && let Some(frame) = stream.read_frame()?
            && frame.kind == FrameType::Exit
        {
            return decode(&frame.payload).map(Some);
        }
    }
}

fn watch_signals() -> Result<SignalFd, Error> {
    let failed = |e: nix::errno::Errno| Error::io("watch signals", "", io::Error::from(e));
    let mask: SigSet = [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGTSTP,
        Signal::SIGCONT,
    ]
    .into_iter()
    .collect();
    mask.thread_block().map_err(failed)?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    SignalFd::with_flags(&mask, flags).map_err(failed)
}

fn connect() -> Result<OwnedFd, Error> {
    let path = std::env::var(SOCKET_ENV).unwrap_or_else(|_| SOCKET.to_owned());
    let failed = |e: rustix::io::Errno| Error::io("connect to the box's init", &path, e);
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(failed)?;
    let address = SocketAddrUnix::new(path.as_str()).map_err(failed)?;
    rustix::net::connect(&socket, &address).map_err(failed)?;
    Ok(socket)
}

fn request(command: Command) -> SudoRequest {
    let mut env = Vec::new();
    for (name, value) in std::env::vars_os() {
        // Variables that are not UTF-8 are not passed on, like those that were not asked for.
        if let (Ok(name), Ok(value)) = (name.into_string(), value.into_string())
            && goes_along(&command, &name)
        {
            env.push((name, value));
        }
    }
    for (name, value) in command.assignments {
        env.retain(|(known, _)| *known != name);
        env.push((name, value));
    }
    let mut words = command.argv.clone();
    if let Some(first) = words.first_mut()
        && let Some(file) = find(first)
    {
        *first = file;
    }
    // A relative folder is the caller's.
    let folder = command.folder.map(|folder| match std::env::current_dir() {
        Ok(here) => here.join(&folder).to_string_lossy().into_owned(),
        Err(_) => folder,
    });
    SudoRequest {
        argv: command.argv,
        mode: command.mode,
        user: command.user,
        group: command.group,
        folder,
        command: words.join(" "),
        env,
        shell: std::env::var("SHELL").ok().filter(|s| s.starts_with('/')),
        background: command.background,
    }
}

fn goes_along(command: &Command, name: &str) -> bool {
    if NEVER.contains(&name) || name.is_empty() || name.contains('=') {
        return false;
    }
    let usual = USUAL.contains(&name) || name.starts_with("LC_");
    match &command.preserve {
        Preserve::Usual => usual,
        Preserve::Also(names) => usual || names.iter().any(|known| known == name),
        Preserve::All if name == "HOME" => !command.set_home && command.mode != Mode::Login,
        Preserve::All => true,
    }
}

fn send(socket: &OwnedFd, request: SudoRequest) -> Result<(), Error> {
    let step = "send command to the box's init";
    let payload = encode(&Envelope::new(request))?;
    if payload.len() > REQUEST_BYTES_MAX {
        return Err(Error::new(ErrorKind::TooLarge, step, payload.len()));
    }
    let folder = rustix::fs::open(".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, FileMode::empty())
        .map_err(|e| Error::io("open current folder", ".", e))?;
    let fds = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr(), folder.as_fd()];
    let head = header(FrameType::Request, payload.len());
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(REQUEST_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let failed = |e: rustix::io::Errno| Error::io(step, "", e);
    rustix::net::sendmsg(socket, &[IoSlice::new(&head)], &mut control, SendFlags::NOSIGNAL).map_err(failed)?;
    let mut rest = payload.as_slice();
    while !rest.is_empty() {
        let sent = rustix::net::send(socket, rest, SendFlags::NOSIGNAL).map_err(failed)?;
        rest = rest.get(sent..).unwrap_or_default();
    }
    Ok(())
}

struct Stream {
    socket: OwnedFd,
    decoder: Decoder,
}

impl Stream {
    /// Waits for the socket or a signal.
    fn wait(&self, signals: &SignalFd) -> Result<[bool; 2], Error> {
        let mut fds =
            [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        match nix::poll::poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(Error::io("wait for command", "", io::Error::from(e))),
        }
        Ok(fds.map(|fd| fd.any().unwrap_or(false)))
    }

    fn wait_frame(&mut self) -> Result<Frame, Error> {
        loop {
            if let Some(frame) = self.read_frame()? {
                return Ok(frame);
            }
        }
    }

    /// Reads once; blocks if nothing is there.
    fn read_frame(&mut self) -> Result<Option<Frame>, Error> {
        let failed =
            |e: crate::protocol::FrameError| Error::new(ErrorKind::Internal, "decode frame from init", "").because(e);
        if let Some(frame) = self.decoder.next_frame().map_err(failed)? {
            return Ok(Some(frame));
        }
        let mut bytes = [0; 4096];
        match rustix::io::read(&self.socket, &mut bytes) {
            Ok(0) => Err(Error::new(ErrorKind::Gone, "wait for command", "init closed")),
            Ok(count) => {
                self.decoder.push(bytes.get(..count).unwrap_or_default());
                self.decoder.next_frame().map_err(failed)
            }
            Err(rustix::io::Errno::INTR) => Ok(None),
            Err(e) => Err(Error::io("wait for command", "", e)),
        }
    }

    /// The command is in a session of its own, so the terminal's signals come here and are passed on. There a TSTP
    /// would have no effect (its process group is orphaned), a STOP has; then this process stops as well.
    fn forward(&mut self, number: u32) -> Result<(), Error> {
        let stop = number == libc::SIGTSTP.cast_unsigned();
        let signal = if stop { libc::SIGSTOP } else { number.cast_signed() };
        let scope = Scope::Tree;
        let payload = encode(&SignalMessage { signal, scope })?;
        let mut bytes = header(FrameType::Signal, payload.len()).to_vec();
        bytes.extend_from_slice(&payload);
        rustix::net::send(&self.socket, &bytes, SendFlags::NOSIGNAL)
            .map_err(|e| Error::io("forward signal", number, e))?;
        if stop {
            let _ = nix::sys::signal::raise(Signal::SIGSTOP);
        }
        Ok(())
    }
}
