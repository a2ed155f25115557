//! The process that forks: one request, one new process.
//!
//! A request is one byte with two descriptors, the socket and the standard error of the new process. The answer is an errno,
//! or 0 with a pidfd. The process ends when `iceboxd` has closed the socket of requests.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use icebox_runtime::process::{Cloned, clone3, exit_now};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use rustix::process::{WaitId, WaitIdOptions, waitid};

use crate::error::Error;

/// Forks for each request until there are no more; `work` is what the new processes do.
pub(super) fn serve(requests: BorrowedFd<'_>, work: fn() -> i32) -> Result<(), Error> {
    let failed = |step: &'static str| move |e: io::Error| Error::io(step, "standard input", e);
    let mut running = Vec::new();
    loop {
        if !wait(requests, &mut running).map_err(failed("wait for requests"))? {
            continue;
        }
        let Some((socket, stderr)) = receive(requests).map_err(failed("read request"))? else { return Ok(()) };
        let answered = match clone3(0, None) {
            Ok(Cloned::Child) => exit_now(become_fork(&socket, &stderr).map_or(2, |()| work())),
            Ok(Cloned::Parent(_, pidfd)) => {
                let answered = answer(requests, 0, Some(pidfd.as_fd()));
                running.push(pidfd);
                answered
            }
            Err(error) => answer(requests, error.raw_os_error().unwrap_or(libc::EIO), None),
        };
        answered.map_err(failed("answer request"))?;
    }
}

/// Waits for a request or the end of a fork, and reaps those that have ended. True if there is a request.
fn wait(requests: BorrowedFd<'_>, running: &mut Vec<OwnedFd>) -> io::Result<bool> {
    let mut polled: Vec<PollFd<'_>> = vec![PollFd::from_borrowed_fd(requests, PollFlags::IN)];
    polled.extend(running.iter().map(|pidfd| PollFd::new(pidfd, PollFlags::IN)));
    match poll(&mut polled, None) {
        Ok(_) => {}
        Err(rustix::io::Errno::INTR) => return Ok(false),
        Err(error) => return Err(error.into()),
    }
    let ready: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
    let mut has_ended = ready.iter().skip(1);
    running.retain(|pidfd| {
        let ended = has_ended.next() == Some(&true);
        if ended {
            // The exit code is that of a report that has been sent.
            let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
        }
        !ended
    });
    Ok(ready.first() == Some(&true))
}

/// The two descriptors of a request. `None` at the end of the requests.
fn receive(requests: BorrowedFd<'_>) -> io::Result<Option<(OwnedFd, OwnedFd)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0; 1];
    let got =
        rustix::net::recvmsg(requests, &mut [io::IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let mut fds = fds.by_ref().flatten();
    match (got.bytes, fds.next(), fds.next()) {
        (0, ..) => Ok(None),
        (_, Some(socket), Some(stderr)) => Ok(Some((socket, stderr))),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn answer(requests: BorrowedFd<'_>, errno: i32, pidfd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = pidfd.into_iter().collect();
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    let bytes = errno.to_ne_bytes();
    rustix::net::sendmsg(requests, &[io::IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// In the new process: its socket becomes standard input, in place of the socket of requests.
fn become_fork(socket: &OwnedFd, stderr: &OwnedFd) -> io::Result<()> {
    rustix::stdio::dup2_stdin(socket)?;
    Ok(rustix::stdio::dup2_stderr(stderr)?)
}
