//! Staying with a process: its terminal, its signals, its exit code.

use std::{
    io::{self, IoSlice},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::Path,
};

use nix::sys::{
    signal::{SigSet, SigmaskHow, Signal as NixSignal, sigprocmask},
    signalfd::{SfdFlags, SignalFd},
    socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg, socket},
    wait::{WaitStatus, waitpid},
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Signal, pidfd_send_signal},
    termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize},
};

use crate::{Error, Result, Step, error::OnStep as _};

const RELAY_BYTES: usize = 32 * 1024;
const SIGNALLED_BASE: i32 = 128;
const PRESERVED_FROM: i32 = 3;

/// The end of a process in the foreground.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunResult {
    /// Its exit code; 128 + n if signal n ended it.
    pub exit_code: i32,
    /// Warnings about degraded features.
    pub warnings: Vec<String>,
}

/// The caller's descriptors from 3 on that the container gets.
pub(super) fn preserved(count: u32) -> Result<Vec<(OwnedFd, i32)>> {
    (0..count as i32)
        .map(|n| {
            let number = PRESERVED_FROM + n;
            let adopted = crate::sys::fd::adopt(number).map_err(|_| {
                Error::invalid(Step::Exec, "--preserve-fds", format!("descriptor {number} is not open"))
            })?;
            Ok((adopted, number))
        })
        .collect()
}

/// The size of the caller's terminal, zeros without one.
pub(super) fn terminal_size() -> (u16, u16) {
    tcgetwinsize(rustix::stdio::stdin()).map_or((0, 0), |size| (size.ws_row, size.ws_col))
}

/// Sends the host's side of a terminal to a console socket, as runc does: the descriptor beside the name of the file.
pub(super) fn send_terminal(master: &OwnedFd, path: &Path) -> Result<()> {
    let send = || -> io::Result<()> {
        let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
        let fds = [master.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&fds)];
        sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(b"/dev/ptmx")], &rights, MsgFlags::MSG_NOSIGNAL, None)?;
        Ok(())
    };
    send().on(Step::Terminal, format!("console socket {}", path.display()))
}

/// Stays until the process ends, passing signals on and, with a terminal, bytes both ways.
pub(super) fn stay(pid: i32, pidfd: &OwnedFd, terminal: Option<OwnedFd>) -> Result<i32> {
    let signals = forwarded_signals();
    let mut before = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&signals), Some(&mut before)).on(Step::Signal, "signal mask")?;
    let signal_fd = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .on(Step::Signal, "signalfd(2)")?;
    let _raw = terminal.as_ref().map(|_| RawMode::enter());
    let relayed = relay(pidfd, &signal_fd, terminal.as_ref()).on(Step::Terminal, format!("pid {pid}"));
    let status = waitpid(nix::unistd::Pid::from_raw(pid), None).on(Step::Signal, format!("pid {pid}"))?;
    if let Some(master) = &terminal {
        drain(master);
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None).on(Step::Signal, "signal mask")?;
    relayed?;
    Ok(match status {
        WaitStatus::Exited(_, code) => code,
        WaitStatus::Signaled(_, signal, _) => SIGNALLED_BASE + signal as i32,
        _ => SIGNALLED_BASE,
    })
}

fn forwarded_signals() -> SigSet {
    [
        NixSignal::SIGALRM,
        NixSignal::SIGCONT,
        NixSignal::SIGHUP,
        NixSignal::SIGINT,
        NixSignal::SIGQUIT,
        NixSignal::SIGTERM,
        NixSignal::SIGURG,
        NixSignal::SIGUSR1,
        NixSignal::SIGUSR2,
        NixSignal::SIGWINCH,
    ]
    .into_iter()
    .collect()
}

fn relay(pidfd: &OwnedFd, signals: &SignalFd, terminal: Option<&OwnedFd>) -> io::Result<()> {
    let stdin = rustix::stdio::stdin();
    let mut buffer = vec![0_u8; RELAY_BYTES];
    let mut input_open = terminal.is_some();
    loop {
        let mut fds = vec![PollFd::new(pidfd, PollFlags::IN), PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN)];
        if let Some(master) = terminal {
            fds.push(PollFd::new(master, PollFlags::IN));
            if input_open {
                fds.push(PollFd::from_borrowed_fd(stdin, PollFlags::IN));
            }
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready[1] {
            pass_signals(pidfd, signals, terminal)?;
        }
        if let Some(master) = terminal {
            if ready[2] && copy(master, rustix::stdio::stdout(), &mut buffer)? == 0 && !ready[0] {
                // The last holder of the other side closed it; only the end of the process is left to wait for.
                return wait_readable(pidfd);
            }
            if ready.get(3) == Some(&true) && copy(stdin, master, &mut buffer)? == 0 {
                input_open = false;
            }
        }
        if ready[0] {
            return Ok(());
        }
    }
}

fn wait_readable(fd: &OwnedFd) -> io::Result<()> {
    loop {
        match poll(&mut [PollFd::new(fd, PollFlags::IN)], None) {
            Err(rustix::io::Errno::INTR) => {}
            other => return other.map(drop).map_err(Into::into),
        }
    }
}

fn pass_signals(pidfd: &OwnedFd, signals: &SignalFd, terminal: Option<&OwnedFd>) -> io::Result<()> {
    while let Some(info) = signals.read_signal()? {
        let Some(signal) = Signal::from_named_raw(info.ssi_signo as i32) else { continue };
        if signal == Signal::WINCH
            && let Some(master) = terminal
        {
            if let Ok(size) = tcgetwinsize(rustix::stdio::stdin()) {
                tcsetwinsize(master, size)?;
            }
            continue;
        }
        match pidfd_send_signal(pidfd, signal) {
            // It has just ended; the next turn sees that.
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Copies what is there. 0 means end of file; a closed terminal reports EIO.
fn copy(from: impl std::os::fd::AsFd, to: impl std::os::fd::AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    let length = match rustix::io::read(&from, &mut *buffer) {
        Ok(length) => length,
        Err(rustix::io::Errno::IO) => 0,
        Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => return Ok(1),
        Err(error) => return Err(error.into()),
    };
    let mut rest = &buffer[..length];
    while !rest.is_empty() {
        match rustix::io::write(&to, rest) {
            Ok(n) => rest = &rest[n..],
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(length)
}

/// Copies the bytes that the terminal still holds after the process has ended.
fn drain(master: &OwnedFd) {
    let mut buffer = vec![0_u8; RELAY_BYTES];
    loop {
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        let ready = poll(&mut [PollFd::new(master, PollFlags::IN)], Some(&now)).unwrap_or(0);
        if ready == 0 || !matches!(copy(master, rustix::stdio::stdout(), &mut buffer), Ok(1..)) {
            return;
        }
    }
}

/// The caller's terminal in raw mode, and back again when this goes out of scope.
struct RawMode(Option<Termios>);

impl RawMode {
    fn enter() -> Self {
        let stdin = rustix::stdio::stdin();
        if !isatty(stdin) {
            return Self(None);
        }
        let before = tcgetattr(stdin).ok();
        if let Some(mut raw) = before.clone() {
            raw.make_raw();
            let _ = tcsetattr(stdin, OptionalActions::Now, &raw);
        }
        Self(before)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, before);
        }
    }
}
