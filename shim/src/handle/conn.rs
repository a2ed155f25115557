//! One connection to a box's init: one operation.
//!
//! Invariants: receiving is cancel-safe (what was read stays in the decoder); sending is too, in the sense that a frame
//! begun is finished by the next send or flush. Nothing is trusted: lengths are limited by the decoder, and a frame of
//! an unexpected type is an error. Leaves out: what the operations mean.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use tokio::io::unix::AsyncFd;

use crate::control_path::ControlPath;
use crate::error::{Error, ErrorKind};
use crate::protocol::{
    Answer, CONTROL_SOCKET, Decoder, Envelope, Frame, FrameType, Operation, REQUEST_FDS_MAX, VERSION, WireError,
    decode, encode, header,
};

/// The init answers a request within this time; it forks and never waits, so only a stopped or frozen one does not.
pub(super) const RESPONSE_MS_MAX: u64 = 30_000;
/// One read of the socket.
const READ_BYTES: usize = 64 * 1024;
/// The same until a read has filled the buffer.
const FIRST_READ_BYTES: usize = 4096;

/// The shared socket and the bytes read from it.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) sender: Sender,
    decoder: Decoder,
    scratch: Vec<u8>,
    /// Bytes of the last read.
    filled: usize,
}

/// The sending side of a connection.
#[derive(Debug, Clone)]
pub(super) struct Sender {
    /// Registered for reading alone: the kernel tells of a socket that can be written each time the init has read.
    stream: Arc<AsyncFd<OwnedFd>>,
    /// Bytes of a frame whose sending was cancelled half way.
    unsent: Arc<Mutex<Vec<u8>>>,
}

fn gone(step: &'static str) -> Error {
    Error::new(ErrorKind::Gone, step, "connection closed by the init")
}

/// Connects a blocking socket: a path socket connects at once or fails, it never waits for the listener's accept
/// unless its backlog is full, and non-blocking mode turns that into EAGAIN.
fn connect_now(run_dir: &Path) -> Result<OwnedFd, Error> {
    let path = run_dir.join(CONTROL_SOCKET);
    let failed = |e: io::Error| {
        let missing = e.kind() == io::ErrorKind::NotFound;
        let error = Error::io("connect to init", path.display(), e);
        if missing { error.with_kind(ErrorKind::Unreachable) } else { error }
    };
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::STREAM,
        rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK,
        None,
    )
    .map_err(|e| failed(e.into()))?;
    let control = ControlPath::of(run_dir).map_err(failed)?;
    let address = rustix::net::SocketAddrUnix::new(control.as_path()).map_err(|e| failed(e.into()))?;
    rustix::net::connect(&socket, &address).map_err(|e| failed(e.into()))?;
    Ok(socket)
}

impl Connection {
    /// Connects, sends the request with its fds and waits for the answer.
    pub(super) async fn request(
        run_dir: &Path,
        operation: Operation,
        fds: &[BorrowedFd<'_>],
        deadline: Duration,
    ) -> Result<(Self, Answer), Error> {
        let work = async {
            let mut connection = Self::open(run_dir, operation, fds)?;
            connection.sender.send_bytes(&[]).await?;
            let answer = connection.answer().await?;
            Ok((connection, answer))
        };
        tokio::time::timeout(deadline, work)
            .await
            .map_err(|e| Error::new(ErrorKind::Timeout, "wait for init", run_dir.display()).because(e))?
    }

    /// Connects and sends the request with its fds. The socket is new and its buffer empty, so this is done before the
    /// reactor knows the socket and without waiting for it. What does not fit is queued.
    fn open(run_dir: &Path, operation: Operation, fds: &[BorrowedFd<'_>]) -> Result<Self, Error> {
        let payload = encode(&Envelope::new(operation))?;
        let mut bytes = header(FrameType::Request, payload.len()).to_vec();
        bytes.extend_from_slice(&payload);
        if fds.len() > REQUEST_FDS_MAX {
            return Err(Error::new(ErrorKind::InvalidInput, "send request", "too many descriptors"));
        }
        let stream = connect_now(run_dir)?;
        let sent = send_with_fds(&stream, &bytes, fds)?;
        bytes.drain(..sent);
        let stream =
            crate::sys::watch_readable(stream).map_err(|e| Error::io("register connection", run_dir.display(), e))?;
        let sender = Sender { stream: Arc::new(stream), unsent: Arc::new(Mutex::new(bytes)) };
        Ok(Self { sender, decoder: Decoder::default(), scratch: Vec::new(), filled: 0 })
    }

    /// Waits for the next `Response` frame.
    pub(super) async fn answer(&mut self) -> Result<Answer, Error> {
        let Some(frame) = self.next_frame().await? else {
            return Err(gone("wait for answer"));
        };
        if frame.kind != FrameType::Response {
            return Err(unexpected(&frame));
        }
        let envelope: Envelope<Result<Answer, WireError>> = decode(&frame.payload)?;
        if envelope.v != VERSION {
            return Err(Error::new(ErrorKind::Internal, "check init's protocol version", envelope.v));
        }
        envelope.m.map_err(Error::from)
    }

    /// The next frame; `None` when the init closed the connection between two frames. Cancel-safe.
    pub(super) async fn next_frame(&mut self) -> Result<Option<Frame>, Error> {
        loop {
            match self.decoder.next_frame() {
                Ok(Some(frame)) => return Ok(Some(frame)),
                Ok(None) => {}
                Err(e) => {
                    return Err(Error::new(ErrorKind::Internal, "decode frame from init", "").because(e));
                }
            }
            match self.read().await? {
                0 if self.decoder.pending() == 0 => return Ok(None),
                0 => return Err(gone("read frame from init")),
                count => self.decoder.push(self.scratch.get(..count).unwrap_or_default()),
            }
        }
    }

    /// Sends a last frame without payload, and never waits: `Timeout` if the socket is full, `Gone` if the init closed it.
    /// The reactor forgets the socket before that: the init closes its end then, an event that nothing waits for.
    pub(super) fn end_with(self, kind: FrameType) -> Result<(), Error> {
        let Sender { stream, unsent } = self.sender;
        let mut queue = unsent.lock().unwrap_or_else(PoisonError::into_inner);
        match Arc::try_unwrap(stream) {
            Ok(stream) => send_last(&stream.into_inner(), &mut queue, kind),
            // The input of the run is still held.
            Err(shared) => send_last(shared.get_ref(), &mut queue, kind),
        }
    }

    /// Reads once into the scratch buffer; 0 at the end of the stream.
    async fn read(&mut self) -> Result<usize, Error> {
        if self.scratch.len() < READ_BYTES {
            // Most runs write little: the buffer grows with the first large piece.
            let full = self.filled == self.scratch.len();
            self.scratch.resize(if full && self.filled > 0 { READ_BYTES } else { FIRST_READ_BYTES }, 0);
        }
        let Self { sender, scratch, .. } = self;
        loop {
            let mut ready = sender.stream.readable().await.map_err(|e| Error::io("wait for init", "", e))?;
            match rustix::io::read(ready.get_inner(), &mut **scratch) {
                Ok(count) => {
                    // A short read has emptied the socket. Telling so here saves the read that would find it empty.
                    if count > 0 && count < scratch.len() {
                        ready.clear_ready();
                    }
                    self.filled = count;
                    return Ok(count);
                }
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(e) => return Err(Error::io("read from init", "", e).with_kind(ErrorKind::Gone)),
            }
        }
    }
}

/// Sends the first bytes on a new connection, with descriptors. Returns how many were sent.
fn send_with_fds(stream: &OwnedFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize, Error> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(REQUEST_FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    rustix::net::sendmsg(stream, &[io::IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
        .map_err(|e| Error::io("send request to init", "", e).with_kind(ErrorKind::Gone))
}

/// Sends what is queued and a frame without payload. If that fails, the connection is shut down.
fn send_last(socket: &OwnedFd, queue: &mut Vec<u8>, kind: FrameType) -> Result<(), Error> {
    queue.extend_from_slice(&header(kind, 0));
    let error = match rustix::net::send(socket, queue, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
        Ok(count) if count == queue.len() => {
            queue.clear();
            return Ok(());
        }
        Ok(_) | Err(Errno::AGAIN) => Error::new(ErrorKind::Timeout, "send to init", "full socket"),
        Err(e) => Error::io("send to init", "", e).with_kind(ErrorKind::Gone),
    };
    shut_down(socket);
    Err(error)
}

/// Shuts a connection down in both directions, also for other holders of the socket.
fn shut_down(socket: &OwnedFd) {
    // A socket that is no longer connected is fine.
    let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
}

/// The error for a frame of an unexpected type.
pub(super) fn unexpected(frame: &Frame) -> Error {
    let what = format!("{:?}", frame.kind);
    Error::new(ErrorKind::Internal, "unexpected frame from init", what)
}

impl Sender {
    /// Sends a frame; `Gone` if the init closed the connection.
    pub(super) async fn send(&self, kind: FrameType, payload: &[u8]) -> Result<(), Error> {
        let mut bytes = Vec::with_capacity(payload.len() + crate::protocol::HEADER_BYTES);
        bytes.extend_from_slice(&header(kind, payload.len()));
        bytes.extend_from_slice(payload);
        self.send_bytes(&bytes).await
    }

    async fn send_bytes(&self, bytes: &[u8]) -> Result<(), Error> {
        self.queue().extend_from_slice(bytes);
        loop {
            {
                // The lock is held for one non-blocking write, never across an await.
                let mut queue = self.queue();
                if queue.is_empty() {
                    return Ok(());
                }
                match rustix::net::send(self.stream.get_ref(), &queue, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                    Ok(count) => {
                        queue.drain(..count);
                        continue;
                    }
                    Err(Errno::INTR) => continue,
                    Err(Errno::AGAIN) => {}
                    Err(e) => {
                        return Err(Error::io("send to init", "", e).with_kind(ErrorKind::Gone));
                    }
                }
            }
            self.writable().await.map_err(|e| Error::io("wait for init", "", e))?;
        }
    }

    /// Waits until the socket takes more. Rare, so a second descriptor is registered for it then.
    async fn writable(&self) -> io::Result<()> {
        let second = self.stream.get_ref().try_clone()?;
        crate::sys::watch_writable(second)?.writable().await.map(drop)
    }

    /// Shuts the connection down in both directions, also for other holders of the socket.
    pub(super) fn shutdown(&self) {
        shut_down(self.stream.get_ref());
    }

    fn queue(&self) -> MutexGuard<'_, Vec<u8>> {
        self.unsent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
