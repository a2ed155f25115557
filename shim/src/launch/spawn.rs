//! `iceboxd`'s side of a launch: have the launcher fork, hand the new process the spec and a sealed copy of the init, read
//! its report.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType};
use tokio::net::UnixStream;
use tokio::sync::Mutex;

use super::{BoxSpec, Launched, Tools};
use crate::error::{Error, ErrorKind, Reported};
use crate::protocol::{Decoder, Envelope, FrameType, VERSION, WireError, decode, encode, header};

/// Most bytes kept of the standard error of a launcher that failed.
const STDERR_BYTES_MAX: u64 = 4096;
/// Longest wait for the launcher process to fork.
const FORK_DEADLINE: Duration = Duration::from_secs(10);
/// The init is a small program; anything bigger is the wrong file.
const INIT_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Starts boxes, by a launcher process that stays and forks for each of them.
///
/// The process is started with the first box, and anew when it has ended. It ends with this. Spawning a process per box
/// would copy the table of descriptors of this one, of which each box has some: each box would make the next one dearer.
#[derive(Debug)]
pub struct Launcher {
    tools: Tools,
    process: Arc<Mutex<Option<Process>>>,
}

impl Launcher {
    /// With these programs. Starts nothing yet.
    #[must_use]
    pub fn new(tools: Tools) -> Self {
        Self { tools, process: Arc::default() }
    }

    /// Starts a box and returns when its init is ready to be talked to.
    ///
    /// # Errors
    /// The launcher's error with its step, subject and cause; `Timeout` after the deadline, when the process that starts
    /// this box was killed. Objects it has made by then carry the box's names; the caller removes them.
    pub async fn launch(&self, spec: &BoxSpec, deadline: Duration) -> Result<Launched, Error> {
        tokio::time::timeout(deadline, self.launch_unlimited(spec))
            .await
            .map_err(|e| Error::new(ErrorKind::Timeout, "launch box", &spec.id).because(e))?
    }

    async fn launch_unlimited(&self, spec: &BoxSpec) -> Result<Launched, Error> {
        let sealed = sealed_init(&self.tools.init).await?;
        let (stream, theirs) = pair().map_err(|e| Error::io("make launcher's socket", &spec.id, e))?;
        let (said, stderr) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|e| Error::io("make launcher's standard error", &spec.id, e))?;
        let fork = self.fork(theirs, stderr).await?;
        let sent = send_spec(&stream, spec, sealed).await;
        match read_report(&stream).await {
            Ok(report) => {
                // It ends by itself now.
                fork.leave();
                report
            }
            Err(lost) => {
                drop(fork);
                let said = tokio::task::spawn_blocking(move || last_words(said)).await.unwrap_or_default();
                let lost = sent.err().unwrap_or(lost);
                let cause = Reported(format!("it ended without a report: {} ({})", said.trim(), lost.report()));
                Err(Error::new(ErrorKind::Internal, "run launcher", &spec.id).because(cause))
            }
        }
    }

    /// Makes the launcher process fork for one box.
    async fn fork(&self, socket: OwnedFd, stderr: OwnedFd) -> Result<Fork, Error> {
        let (process, program) = (Arc::clone(&self.process), self.tools.launch.clone());
        let lost = |e: io::Error| Error::io("talk to launcher", "", e);
        // Goes on when the caller is cancelled: an answer that was not read would be taken for that to the next request.
        let forked = tokio::spawn(async move {
            let mut process = process.lock().await;
            if let Some(running) = process.take()
                && let Ok(forked) = running.fork(&socket, &stderr).await
            {
                *process = Some(running);
                return forked;
            }
            let running = Process::spawn(&program)?;
            let forked = running.fork(&socket, &stderr).await.map_err(lost)?;
            *process = Some(running);
            forked
        });
        forked.await.map_err(|e| Error::new(ErrorKind::Internal, "fork launcher", "").because(e))?
    }
}

/// The launcher process.
#[derive(Debug)]
struct Process {
    /// Killed and reaped on drop.
    _child: tokio::process::Child,
    requests: UnixStream,
}

impl Process {
    fn spawn(program: &Path) -> Result<Self, Error> {
        let (requests, theirs) = pair().map_err(|e| Error::io("make launcher's socket", "", e))?;
        // No pre_exec, no uid: std uses posix_spawn, and no code of a multi-threaded process runs after a fork.
        let child = tokio::process::Command::new(program)
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| Error::io("spawn launcher", program.display(), e))?;
        Ok(Self { _child: child, requests })
    }

    /// The outer error means that the process cannot be used any more.
    async fn fork(&self, socket: &OwnedFd, stderr: &OwnedFd) -> io::Result<Result<Fork, Error>> {
        let answered = async {
            send(&self.requests, &[0], &[socket.as_fd(), stderr.as_fd()]).await?;
            receive_answer(&self.requests).await
        };
        let (errno, pidfd) = tokio::time::timeout(FORK_DEADLINE, answered).await??;
        Ok(match pidfd {
            Some(pidfd) => Ok(Fork(Some(pidfd))),
            None => Err(Error::io("fork launcher", "", io::Error::from_raw_os_error(errno))),
        })
    }
}

/// The process that starts one box. It is killed on drop.
struct Fork(Option<OwnedFd>);

impl Fork {
    fn leave(mut self) {
        self.0 = None;
    }
}

impl Drop for Fork {
    fn drop(&mut self) {
        if let Some(pidfd) = &self.0 {
            // It may have ended.
            let _ = rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL);
        }
    }
}

/// A connected pair of sockets: our end, and that of a launcher.
fn pair() -> io::Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((UnixStream::from_std(ours.into())?, theirs))
}

/// What a launcher wrote to its standard error. Best effort: without it the error is only less precise.
fn last_words(stderr: OwnedFd) -> String {
    let mut said = Vec::new();
    let _ = File::from(stderr).take(STDERR_BYTES_MAX).read_to_end(&mut said);
    String::from_utf8_lossy(&said).into_owned()
}

/// The launcher's answer to a request: an errno, or 0 and a pidfd.
async fn receive_answer(stream: &UnixStream) -> io::Result<(i32, Option<OwnedFd>)> {
    let mut number = [0; 4];
    let (count, pidfd) = stream
        .async_io(tokio::io::Interest::READABLE, || {
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [io::IoSliceMut::new(&mut number)];
            let got = rustix::net::recvmsg(stream.as_fd(), &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
            let fds = control.drain().filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                _ => None,
            });
            Ok((got.bytes, fds.flatten().last()))
        })
        .await?;
    if count == number.len() {
        Ok((i32::from_ne_bytes(number), pidfd))
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

/// The identity of a version of a file: device, inode, length, modification time.
type Version = (u64, u64, u64, i64, i64);

/// The sealed copy of the init, made once per version of the file and shared by all boxes that this daemon starts.
///
/// Sharing keeps 1.5 MB per box out of memory. A copy per box would keep the pages of one box's init apart from
/// another's against bugs that write to pages of files one can only read (CVE-2022-0847 and its kind); but the pages of
/// the base image are shared in the same way, so it would close a window beside an open door.
async fn sealed_init(path: &Path) -> Result<OwnedFd, Error> {
    static LATEST: Mutex<Option<(PathBuf, Version, OwnedFd)>> = Mutex::const_new(None);
    let failed = |step: &'static str| move |e: io::Error| Error::io(step, path.display(), e);
    let meta = std::fs::metadata(path).map_err(failed("look at init"))?;
    let version = (meta.dev(), meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec());
    let mut latest = LATEST.lock().await;
    if let Some((of, at, copy)) = latest.as_ref()
        && of == path
        && *at == version
    {
        return copy.try_clone().map_err(failed("share init"));
    }
    let of = path.to_owned();
    let copy = tokio::task::spawn_blocking(move || sealed_copy(&of))
        .await
        .map_err(|e| Error::new(ErrorKind::Internal, "copy init", "").because(e))??;
    let shared = copy.try_clone().map_err(failed("share init"))?;
    *latest = Some((path.to_owned(), version, copy));
    Ok(shared)
}

/// A sealed, unchangeable copy of the init: no host file is ever mapped in a box (CVE-2019-5736).
fn sealed_copy(path: &Path) -> Result<OwnedFd, Error> {
    let failed = |step: &'static str| move |e: io::Error| Error::io(step, path.display(), e);
    let source = File::open(path).map_err(failed("open init"))?;
    let length = source.metadata().map_err(failed("look at init"))?.len();
    if length >= INIT_BYTES_MAX {
        return Err(Error::new(ErrorKind::TooLarge, "copy init", path.display()));
    }
    icebox_runtime::sealed::seal(source.take(INIT_BYTES_MAX), "icebox-init").map_err(failed("copy init"))
}

async fn send_spec(stream: &UnixStream, spec: &BoxSpec, init: OwnedFd) -> Result<(), Error> {
    let payload = encode(&Envelope::new(spec))?;
    let mut bytes = header(FrameType::Request, payload.len()).to_vec();
    bytes.extend_from_slice(&payload);
    let failed = |e: io::Error| Error::io("send spec to launcher", &spec.id, e);
    let mut sent = send(stream, &bytes, &[init.as_fd()]).await.map_err(failed)?;
    while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
        stream.writable().await.map_err(failed)?;
        match stream.try_write(rest) {
            Ok(count) => sent += count,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(failed(e)),
        }
    }
    Ok(())
}

/// Sends descriptors, and bytes as far as they fit. Returns the number of bytes.
async fn send(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    stream
        .async_io(tokio::io::Interest::WRITABLE, || {
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            control.push(SendAncillaryMessage::ScmRights(fds));
            let parts = [io::IoSlice::new(bytes)];
            rustix::net::sendmsg(stream.as_fd(), &parts, &mut control, SendFlags::NOSIGNAL).map_err(io::Error::from)
        })
        .await
}

/// The launcher's report. The outer error means that the report is missing or malformed.
async fn read_report(stream: &UnixStream) -> Result<Result<Launched, Error>, Error> {
    let failed = |e: io::Error| Error::io("read launcher's report", "", e);
    let mut decoder = Decoder::default();
    let mut piece = vec![0; 16 * 1024];
    loop {
        let frame = decoder.next_frame();
        let frame = frame.map_err(|e| Error::new(ErrorKind::Internal, "decode launcher's report", "").because(e))?;
        if let Some(frame) = frame {
            let report: Envelope<Result<Launched, WireError>> = decode(&frame.payload)?;
            if report.v != VERSION {
                return Err(Error::new(ErrorKind::Internal, "check launcher's version", report.v));
            }
            return Ok(report.m.map_err(Error::from));
        }
        stream.readable().await.map_err(failed)?;
        match stream.try_read(&mut piece) {
            Ok(0) => return Err(failed(io::ErrorKind::UnexpectedEof.into())),
            Ok(count) => decoder.push(piece.get(..count).unwrap_or_default()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(failed(e)),
        }
    }
}
