//! `iceboxd`'s side of a launch: spawn the launcher, hand it the spec and a sealed copy of the init, read its report.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::net::{AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::net::{SocketFlags, SocketType};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

use super::{BoxSpec, Launched, Tools};
use crate::error::{Error, ErrorKind, Reported};
use crate::protocol::{Decoder, Envelope, FrameType, VERSION, WireError, decode, encode, header};

/// Most bytes kept of the standard error of a launcher that failed.
const STDERR_BYTES_MAX: u64 = 4096;
/// The init is a small program; anything bigger is the wrong file.
const INIT_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Starts a box and returns when its init is ready to be talked to.
///
/// # Errors
/// The launcher's error with its step, subject and cause; `Timeout` after the deadline, when the launcher was killed.
/// Objects it has made by then carry the box's names; the caller removes them.
pub async fn launch(spec: &BoxSpec, tools: &Tools, deadline: Duration) -> Result<Launched, Error> {
    tokio::time::timeout(deadline, launch_unlimited(spec, tools))
        .await
        .map_err(|e| Error::new(ErrorKind::Timeout, "launch box", &spec.id).because(e))?
}

async fn launch_unlimited(spec: &BoxSpec, tools: &Tools) -> Result<Launched, Error> {
    let init = tools.init.clone();
    let sealed = tokio::task::spawn_blocking(move || shared_copy(&init))
        .await
        .map_err(|e| Error::new(ErrorKind::Internal, "copy init", "").because(e))??;
    let failed = |e: rustix::io::Errno| Error::io("make launcher's socket", &spec.id, e);
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).map_err(failed)?;
    rustix::io::ioctl_fionbio(&ours, true).map_err(failed)?;
    let stream = UnixStream::from_std(ours.into()).map_err(|e| Error::io("register launcher's socket", &spec.id, e))?;
    // No pre_exec, no uid: std uses posix_spawn, and no code of a multi-threaded process runs after a fork.
    let mut child = tokio::process::Command::new(&tools.launch)
        .env_clear()
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| Error::io("spawn launcher", tools.launch.display(), e))?;
    let stderr = child.stderr.take();
    send_spec(&stream, spec, sealed).await?;
    let report = read_report(&stream).await;
    let status = child.wait().await;
    match report {
        Ok(report) => report,
        Err(lost) => {
            let mut said = Vec::new();
            if let Some(stderr) = stderr {
                // Best effort: without it the error is only less precise.
                let _ = stderr.take(STDERR_BYTES_MAX).read_to_end(&mut said).await;
            }
            let status = status.map_or_else(|e| e.to_string(), |s| s.to_string());
            let said = String::from_utf8_lossy(&said);
            let cause = Reported(format!("{status} {} ({})", said.trim(), lost.report()));
            Err(Error::new(ErrorKind::Internal, "run launcher", &spec.id).because(cause))
        }
    }
}

/// The identity of a version of a file: device, inode, length, modification time.
type Version = (u64, u64, u64, i64, i64);

/// The sealed copy of the init, made once per version of the file and shared by all boxes that this daemon starts.
///
/// Sharing keeps 1.5 MB per box out of memory. A copy per box would keep the pages of one box's init apart from
/// another's against bugs that write to pages of files one can only read (CVE-2022-0847 and its kind); but the pages of
/// the base image are shared in the same way, so it would close a window beside an open door.
fn shared_copy(path: &Path) -> Result<OwnedFd, Error> {
    static LATEST: Mutex<Option<(PathBuf, Version, OwnedFd)>> = Mutex::new(None);
    let failed = |step: &'static str| move |e: io::Error| Error::io(step, path.display(), e);
    let meta = std::fs::metadata(path).map_err(failed("look at init"))?;
    let version = (meta.dev(), meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec());
    let mut latest = LATEST.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((of, at, copy)) = latest.as_ref()
        && of == path
        && *at == version
    {
        return copy.try_clone().map_err(failed("share init"));
    }
    let copy = sealed_copy(path)?;
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
    icebox_runtime::sealed::seal(io::Read::take(source, INIT_BYTES_MAX), "icebox-init").map_err(failed("copy init"))
}

async fn send_spec(stream: &UnixStream, spec: &BoxSpec, init: OwnedFd) -> Result<(), Error> {
    let payload = encode(&Envelope::new(spec))?;
    let mut bytes = header(FrameType::Request, payload.len()).to_vec();
    bytes.extend_from_slice(&payload);
    let failed = |e: io::Error| Error::io("send spec to launcher", &spec.id, e);
    let fds = [init.as_fd()];
    let mut sent = stream
        .async_io(tokio::io::Interest::WRITABLE, || {
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            control.push(SendAncillaryMessage::ScmRights(&fds));
            let parts = [io::IoSlice::new(&bytes)];
            rustix::net::sendmsg(stream.as_fd(), &parts, &mut control, SendFlags::NOSIGNAL).map_err(io::Error::from)
        })
        .await
        .map_err(failed)?;
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
