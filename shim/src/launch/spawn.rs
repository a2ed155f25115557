//! `iceboxd`'s side of a launch: have the launcher fork, hand the new process the spec and a sealed copy of the init, read
//! its report.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::Mutex;

use super::forks::{Forks, Outcome, raw_pair, send};
use super::{BoxSpec, Launched, Tools};
use crate::error::{Error, ErrorKind, Reported};
use crate::protocol::{Decoder, Envelope, FrameType, VERSION, WireError, decode, encode, header};

/// Most bytes kept of the standard error of a launcher that failed.
const STDERR_BYTES_MAX: u64 = 4096;
/// Most tries to start a box: a launcher that ends before it takes the request is started anew once.
const LAUNCHES_MAX: u32 = 2;
/// The init is a small program; anything bigger is the wrong file.
const INIT_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Starts boxes, by a launcher process that stays and forks for each of them.
///
/// The process is started with the first box, and anew when it has ended. It ends with this. Spawning a process per box
/// would copy the table of descriptors of this one, of which each box has some: each box would make the next one dearer.
#[derive(Debug)]
pub struct Launcher {
    tools: Tools,
    forks: Forks,
}

impl Launcher {
    /// With these programs. Starts nothing yet.
    #[must_use]
    pub fn new(tools: Tools) -> Self {
        Self { tools, forks: Forks::default() }
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
        let mut tries_left = LAUNCHES_MAX;
        loop {
            tries_left -= 1;
            let (stream, theirs) = pair().map_err(|e| Error::io("make launcher's socket", &spec.id, e))?;
            let (said, stderr) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
                .map_err(|e| Error::io("make launcher's standard error", &spec.id, e))?;
            // The spec waits in the socket until the fork reads it.
            let fork = self.forks.request(&self.tools.launch, theirs, stderr).await?;
            let sent = send_spec(&stream, spec, &sealed).await;
            let lost = match read_report(&stream).await {
                Ok(report) => {
                    // It ends by itself now.
                    fork.leave();
                    return report;
                }
                Err(lost) => lost,
            };
            match fork.outcome().await {
                Outcome::Failed(errno) => return Err(Error::io("fork launcher", "", errno)),
                // The launcher has ended before it took the request.
                Outcome::Lost if tries_left > 0 => continue,
                Outcome::Forked | Outcome::Lost => {}
            }
            drop(fork);
            let said = tokio::task::spawn_blocking(move || last_words(said)).await.unwrap_or_default();
            let lost = sent.err().unwrap_or(lost);
            let cause = Reported(format!("it ended without a report: {} ({})", said.trim(), lost.report()));
            return Err(Error::new(ErrorKind::Internal, "run launcher", &spec.id).because(cause));
        }
    }
}

/// The socket to a fork: our end, and that of the fork.
fn pair() -> io::Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = raw_pair()?;
    Ok((UnixStream::from_std(ours.into())?, theirs))
}

/// What a launcher wrote to its standard error. Best effort: without it the error is only less precise.
fn last_words(stderr: OwnedFd) -> String {
    let mut said = Vec::new();
    let _ = File::from(stderr).take(STDERR_BYTES_MAX).read_to_end(&mut said);
    String::from_utf8_lossy(&said).into_owned()
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

async fn send_spec(stream: &UnixStream, spec: &BoxSpec, init: &OwnedFd) -> Result<(), Error> {
    let payload = encode(&Envelope::new(spec))?;
    let mut bytes = header(FrameType::Request, payload.len()).to_vec();
    bytes.extend_from_slice(&payload);
    let failed = |e: io::Error| Error::io("send spec to launcher", &spec.id, e);
    let send_first = || send(stream.as_fd(), &bytes, &[init.as_fd()]);
    let mut sent = stream.async_io(tokio::io::Interest::WRITABLE, send_first).await.map_err(failed)?;
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
