//! Netlink sockets that receive notifications, and the thread that reads them.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, sockopt};

use super::socket::{Heard, RECEIVE_BYTES, Socket, messages};
use crate::error::Error;

/// Receive buffer for unread notifications.
const QUEUE_BYTES: usize = 4 << 20;

/// A received notification.
#[derive(Debug)]
pub(crate) enum Heed<'a> {
    /// A message.
    Message(Heard<'a>),
    /// The buffer overflowed: some notifications are lost.
    Lost,
}

/// A socket bound to its multicast groups, and its callback.
pub(crate) struct Listener {
    fd: OwnedFd,
    take: Box<dyn FnMut(Heed<'_>) + Send>,
}

impl Listener {
    /// The socket may be made in one namespace and read from any other.
    pub(crate) fn new(socket: Socket, take: impl FnMut(Heed<'_>) + Send + 'static) -> Result<Self, Error> {
        let failed = |e: Errno| Error::new("listen to", "netlink", e);
        let fd = socket.into_fd();
        sockopt::set_socket_recv_buffer_size_force(&fd, QUEUE_BYTES).map_err(failed)?;
        rustix::io::ioctl_fionbio(&fd, true).map_err(failed)?;
        Ok(Self { fd, take: Box::new(take) })
    }

    fn hear(&mut self, buffer: &mut [u8]) -> Result<(), Errno> {
        match rustix::net::recv(&self.fd, &mut *buffer, RecvFlags::TRUNC) {
            Ok((_, length)) => match buffer.get(..length) {
                Some(bytes) => messages(bytes).for_each(|heard| (self.take)(Heed::Message(heard))),
                None => (self.take)(Heed::Lost),
            },
            Err(Errno::NOBUFS) => (self.take)(Heed::Lost),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }
}

/// A thread that reads several sockets. Drop waits until it has ended and the sockets are closed.
#[derive(Debug)]
pub(crate) struct Ears {
    /// Closing it ends the thread.
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Ears {
    /// Starts the thread.
    pub(crate) fn start(name: &'static str, listeners: Vec<Listener>) -> Result<Self, Error> {
        let failed = |e: io::Error| Error::new("start thread", name, e);
        let (stopped, stop) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
        let run = move || {
            if let Err(e) = listen(listeners, &stopped) {
                tracing::error!("the events of the firewall are no longer read: {e}");
            }
        };
        let thread = thread::Builder::new().name(name.into()).spawn(run).map_err(failed)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Ears {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic there was already printed; there is nothing left to do.
            let _ = thread.join();
        }
    }
}

fn listen(mut listeners: Vec<Listener>, stopped: &OwnedFd) -> Result<(), Errno> {
    let mut buffer = vec![0; RECEIVE_BYTES];
    loop {
        let ready: Vec<bool> = {
            let all = listeners.iter().map(|l| l.fd.as_fd()).chain([stopped.as_fd()]);
            let mut fds: Vec<PollFd<'_>> = all.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
            fds.iter().map(|fd| !fd.revents().is_empty()).collect()
        };
        let (is_stopped, ready) = ready.split_last().expect("the last one is ours");
        if *is_stopped {
            return Ok(());
        }
        for (listener, _) in listeners.iter_mut().zip(ready).filter(|(_, ready)| **ready) {
            listener.hear(&mut buffer)?;
        }
    }
}
