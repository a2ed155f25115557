//! The launcher process, and what it answers to requests for forks.
//!
//! A request is sent without waiting for its answer: the report of the fork says that it exists. The answer, with the
//! pidfd of the fork, is read by the next request, or when a launch has failed. So a launch that succeeds waits once.
//!
//! Invariant: at most [`REQUESTS_MAX`] requests are without a report, so neither requests nor answers ever fill the socket.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, ErrorKind};

/// Longest wait for the answer to a request.
const FORK_DEADLINE: Duration = Duration::from_secs(10);
/// Most launches at a time; more wait. A socket holds twice as many requests.
const REQUESTS_MAX: usize = 128;

/// The launcher process, started when it is needed.
#[derive(Debug, Clone)]
pub(super) struct Forks {
    process: Arc<Mutex<Option<Process>>>,
    room: Arc<Semaphore>,
}

impl Default for Forks {
    fn default() -> Self {
        Self { process: Arc::default(), room: Arc::new(Semaphore::new(REQUESTS_MAX)) }
    }
}

#[derive(Debug)]
struct Process {
    /// Killed and reaped on drop.
    _child: tokio::process::Child,
    requests: OwnedFd,
    /// Requests whose answers were not read yet, the oldest first.
    open: VecDeque<Arc<Mutex<Answer>>>,
}

/// The answer to a request.
#[derive(Debug)]
enum Answer {
    Awaited,
    Forked(OwnedFd),
    Failed(Errno),
}

/// What has become of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// There is a fork.
    Forked,
    /// The launcher could not fork.
    Failed(Errno),
    /// The launcher has ended, or does not answer.
    Lost,
}

/// The fork that starts one box. It is killed on drop.
#[derive(Debug)]
pub(super) struct Fork {
    of: Forks,
    answer: Arc<Mutex<Answer>>,
    is_left: bool,
    _room: OwnedSemaphorePermit,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Forks {
    /// Asks the launcher for a fork with this socket and standard error. A launcher that has ended is started anew.
    pub(super) async fn request(&self, program: &Path, socket: OwnedFd, stderr: OwnedFd) -> Result<Fork, Error> {
        let closed = |e| Error::new(ErrorKind::Internal, "fork launcher", "").because(e);
        let room = Arc::clone(&self.room).acquire_owned().await.map_err(closed)?;
        let answer = Arc::new(Mutex::new(Answer::Awaited));
        let mut process = lock(&self.process);
        let asked = process.as_mut().is_some_and(|running| running.ask(&socket, &stderr, &answer).is_ok());
        if !asked {
            let mut running = Process::spawn(program)?;
            running.ask(&socket, &stderr, &answer).map_err(|e| Error::io("talk to launcher", "", e))?;
            *process = Some(running);
        }
        drop(process);
        Ok(Fork { of: self.clone(), answer, is_left: false, _room: room })
    }

    /// Reads the answers that have come. Returns a descriptor to wait for others, `None` if there will be none.
    fn read(&self) -> Option<OwnedFd> {
        let mut process = lock(&self.process);
        let running = process.as_mut()?;
        match running.read_answers() {
            Ok(()) => running.requests.try_clone().ok(),
            Err(_) => {
                *process = None;
                None
            }
        }
    }
}

impl Process {
    fn spawn(program: &Path) -> Result<Self, Error> {
        let (requests, theirs) = raw_pair().map_err(|e| Error::io("make launcher's socket", "", e))?;
        // No pre_exec, no uid: std uses posix_spawn, and no code of a multi-threaded process runs after a fork.
        let child = tokio::process::Command::new(program)
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| Error::io("spawn launcher", program.display(), e))?;
        Ok(Self { _child: child, requests, open: VecDeque::new() })
    }

    /// An error means that the process cannot be used any more.
    fn ask(&mut self, socket: &OwnedFd, stderr: &OwnedFd, answer: &Arc<Mutex<Answer>>) -> io::Result<()> {
        self.read_answers()?;
        send(self.requests.as_fd(), &[0], &[socket.as_fd(), stderr.as_fd()])?;
        self.open.push_back(Arc::clone(answer));
        Ok(())
    }

    fn read_answers(&mut self) -> io::Result<()> {
        while !self.open.is_empty() {
            let Some((errno, pidfd)) = receive(&self.requests)? else { break };
            let Some(answer) = self.open.pop_front() else { break };
            *lock(&answer) = pidfd.map_or_else(|| Answer::Failed(Errno::from_raw_os_error(errno)), Answer::Forked);
        }
        Ok(())
    }
}

/// A connected pair of sockets: our end, which does not block, and that of a launcher.
pub(super) fn raw_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((ours, theirs))
}

/// Sends descriptors, and bytes as far as they fit. Returns the number of bytes.
pub(super) fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(fds));
    Ok(rustix::net::sendmsg(socket, &[io::IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}

/// The next answer: an errno, or 0 and a pidfd. `None` if it has not come.
fn receive(requests: &OwnedFd) -> io::Result<Option<(i32, Option<OwnedFd>)>> {
    let mut number = [0; 4];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [io::IoSliceMut::new(&mut number)];
    let got = match rustix::net::recvmsg(requests, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
        Err(Errno::AGAIN) => return Ok(None),
        other => other?,
    };
    let fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let pidfd = fds.flatten().last();
    if got.bytes == number.len() {
        Ok(Some((i32::from_ne_bytes(number), pidfd)))
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

impl Fork {
    /// The fork has reported, and ends by itself.
    pub(super) fn leave(mut self) {
        self.is_left = true;
    }

    /// What has become of the request, for a launch without a report.
    pub(super) async fn outcome(&self) -> Outcome {
        let answered = async {
            loop {
                let more = self.of.read();
                match &*lock(&self.answer) {
                    Answer::Forked(_) => return Outcome::Forked,
                    Answer::Failed(errno) => return Outcome::Failed(*errno),
                    Answer::Awaited => {}
                }
                let Some(Ok(more)) = more.map(crate::sys::watch_readable) else { return Outcome::Lost };
                if more.readable().await.is_err() {
                    return Outcome::Lost;
                }
            }
        };
        tokio::time::timeout(FORK_DEADLINE, answered).await.unwrap_or(Outcome::Lost)
    }
}

impl Drop for Fork {
    fn drop(&mut self) {
        if self.is_left {
            return;
        }
        self.of.read();
        if let Answer::Forked(pidfd) = &*lock(&self.answer) {
            // It may have ended.
            let _ = rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL);
        }
        let mut process = lock(&self.of.process);
        let awaits = |running: &Process| running.open.iter().any(|answer| Arc::ptr_eq(answer, &self.answer));
        if process.as_ref().is_some_and(awaits) {
            // A launcher that has not answered for as long as a launch may take is of no use to others either.
            *process = None;
        }
    }
}
