//! The launcher: a single-threaded process that forks for each box (`forks`); the new process starts the box and exits.
//!
//! Standard input of the new process is a socket to `iceboxd`: the spec and the sealed init come in, one report goes out.
//! The runtime undoes a failed set-up before the report; named objects (socket, files of the run directory) are made anew
//! by the next launch.

mod forks;

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use icebox_runtime::cgroup::{Cgroup, Controller, Hierarchy, Limits, Unenforced};
use icebox_runtime::launch::{Child, Inherit, launch};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use crate::control_path::ControlPath;
use crate::error::{Error, ErrorKind};
use crate::launch::{BoxSpec, Launched, RUNS_GROUP};
use crate::processors::host_processors;
use crate::protocol::{CONTROL_SOCKET, Decoder, Envelope, FrameType, VERSION, WireError, decode, encode, header};
use crate::translate;

const READ_BYTES: usize = 16 * 1024;
/// Time limit for killing a box whose set-up failed and removing its cgroup.
const REMOVE_DEADLINE: Duration = Duration::from_secs(2);

/// The whole program: returns the exit code.
#[must_use]
pub fn main() -> i32 {
    // What is the same for all boxes is made once, and inherited by all forks. A failure is that of the launch that meets
    // it again.
    let _ = (icebox_runtime::identity::boot_id(), Hierarchy::of_machine(), translate::filter());
    match forks::serve(rustix::stdio::stdin(), start_one) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("icebox-launch: {}", error.report());
            2
        }
    }
}

/// Starts one box; returns the exit code.
fn start_one() -> i32 {
    let socket = rustix::stdio::stdin();
    let report = receive(socket).and_then(|(spec, init)| start(&spec, init));
    let wire = report.as_ref().map_err(WireError::from);
    match send(socket, &Envelope::new(&wire)) {
        Ok(()) => i32::from(report.is_err()),
        Err(error) => {
            // The parent is gone: only standard error is left for the report.
            eprintln!("icebox-launch: {}", error.report());
            2
        }
    }
}

/// The spec and the descriptor beside it.
fn receive(socket: impl AsFd) -> Result<(BoxSpec, OwnedFd), Error> {
    let failed = |e: io::Error| Error::io("read spec", "standard input", e);
    let mut decoder = Decoder::default();
    let mut init = None;
    let mut piece = vec![0; READ_BYTES];
    loop {
        let frame = decoder.next_frame();
        let frame = frame.map_err(|e| Error::new(ErrorKind::InvalidInput, "decode spec", "").because(e))?;
        if let Some(frame) = frame {
            let spec: Envelope<BoxSpec> = decode(&frame.payload)?;
            if spec.v != VERSION {
                return Err(Error::new(ErrorKind::InvalidInput, "check version of iceboxd", spec.v));
            }
            let init = init.ok_or_else(|| Error::new(ErrorKind::InvalidInput, "take sealed init", "no descriptor"))?;
            return Ok((spec.m, init));
        }
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [io::IoSliceMut::new(&mut piece)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let got = rustix::net::recvmsg(&socket, &mut parts, &mut control, flags).map_err(|e| failed(e.into()))?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                init = fds.last().or(init);
            }
        }
        if got.bytes == 0 {
            return Err(failed(io::ErrorKind::UnexpectedEof.into()));
        }
        decoder.push(piece.get(..got.bytes).unwrap_or_default());
    }
}

fn send<T: serde::Serialize>(socket: impl AsFd, message: &T) -> Result<(), Error> {
    let payload = encode(message)?;
    let mut bytes = header(FrameType::Response, payload.len()).to_vec();
    bytes.extend_from_slice(&payload);
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        let sent = rustix::io::write(&socket, rest).map_err(|e| Error::io("send report", "", e))?;
        rest = rest.get(sent..).unwrap_or_default();
    }
    Ok(())
}

fn start(spec: &BoxSpec, init: OwnedFd) -> Result<Launched, Error> {
    let began = Instant::now();
    let control = listen(&spec.run_dir)?;
    make_mount_point(spec)?;
    let log = log_file(&spec.run_dir.join("init.log"))?;
    let null = fs::File::open("/dev/null").map_err(|e| Error::io("open null device", "/dev/null", e))?;
    let cpus = host_processors(spec.limits.cpuset_cpus.as_deref(), spec.cores)?;
    let plan = translate::plan(spec, init, &disks(spec)?, &cpus)?;
    let prepared = began.elapsed();
    let inherit = Inherit {
        fds: vec![
            (null.try_clone().map_err(|e| Error::io("open null device", "/dev/null", e))?.into(), 0),
            (null.into(), 1),
            (log.into(), 2),
            (control.into(), translate::CONTROL_FD),
        ],
        start_socket: None,
    };
    let child = launch(&plan, inherit).map_err(|error| from_runtime(&error))?;
    if let Some(cgroup) = &child.cgroup
        && let Err(error) = limit_runs(cgroup, spec)
    {
        let _ = cgroup.kill();
        let _ = cgroup.remove(REMOVE_DEADLINE);
        return Err(error);
    }
    report(spec, &child, &[("prepare", prepared), ("launch", began.elapsed() - prepared)])
}

/// Makes the cgroup of all runs. Its pids limit keeps some processes for the init.
fn limit_runs(cgroup: &Cgroup, spec: &BoxSpec) -> Result<(), Error> {
    let failed = |e| Error::cgroup("limit processes of runs", &spec.cgroup, e);
    let most = i64::try_from(spec.pids_max).unwrap_or(i64::MAX);
    let limits = Limits { pids_max: Some(most), ..Limits::default() };
    let unenforced = if spec.allow_unenforced_limits { Unenforced::Allow } else { Unenforced::Refuse };
    let group = match cgroup.v1_child(RUNS_GROUP, Controller::Pids).map_err(failed)? {
        Some(group) => group,
        None => {
            let group = cgroup.leaf(RUNS_GROUP, &[Controller::Memory]).map_err(failed)?;
            group.enable_leaf_controllers().map_err(failed)?;
            group
        }
    };
    group.apply(&limits, unenforced).map(drop).map_err(failed)
}

fn report(spec: &BoxSpec, child: &Child, steps: &[(&str, std::time::Duration)]) -> Result<Launched, Error> {
    let boot_id = icebox_runtime::identity::boot_id().map_err(|e| Error::io("read boot id", "", e))?.to_owned();
    let inode = match &child.cgroup {
        Some(cgroup) => cgroup.inode().map_err(|e| Error::cgroup("read cgroup", &spec.cgroup, e))?,
        None => 0,
    };
    Ok(Launched {
        pid: child.pid,
        start_time_ticks: child.start_time,
        boot_id,
        cgroup_inode: inode,
        warnings: child.warnings.clone(),
        steps: steps.iter().map(|(name, took)| ((*name).to_owned(), took.as_micros() as u64)).collect(),
    })
}

/// The control socket, which only the host can reach: a path in a directory of root's own, inherited by the init.
fn listen(run_dir: &Path) -> Result<UnixListener, Error> {
    let path = run_dir.join(CONTROL_SOCKET);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io("remove old socket", path.display(), e)),
        _ => {}
    }
    let listener = ControlPath::of(run_dir)
        .and_then(|short| UnixListener::bind(short.as_path()))
        .map_err(|e| Error::io("bind control socket", path.display(), e))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
        .map_err(|e| Error::io("protect control socket", path.display(), e))?;
    listener.set_nonblocking(true).map_err(|e| Error::io("set up control socket", path.display(), e))?;
    Ok(listener)
}

fn make_mount_point(spec: &BoxSpec) -> Result<(), Error> {
    let mount_point = translate::mount_point(spec);
    match fs::DirBuilder::new().mode(0o755).create(&mount_point) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            return Err(Error::io("make mount point", mount_point.display(), e));
        }
        _ => {}
    }
    Ok(())
}

/// The numbers of the devices of its volumes, if a limit is to name them.
fn disks(spec: &BoxSpec) -> Result<Vec<(u32, u32)>, Error> {
    if !spec.limits.limits_io() {
        return Ok(Vec::new());
    }
    let paths = std::iter::once(&spec.volume_device).chain(spec.volumes.iter().map(|volume| &volume.device));
    let mut numbers = Vec::new();
    for path in paths {
        let found = fs::metadata(path).map_err(|e| Error::io("look at the volume", path.display(), e))?;
        let number = found.rdev();
        if found.file_type().is_block_device() {
            numbers.push((rustix::fs::major(number), rustix::fs::minor(number)));
        }
    }
    Ok(numbers)
}

/// The file behind the init's standard error. The init writes it once, when it fails.
fn log_file(path: &Path) -> Result<fs::File, Error> {
    fs::OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .map_err(|e| Error::io("open log of the init", path.display(), e))
}

fn from_runtime(error: &icebox_runtime::Error) -> Error {
    let kind = match error.kind {
        icebox_runtime::Kind::Unenforced => ErrorKind::Unenforced,
        icebox_runtime::Kind::Invalid => ErrorKind::InvalidInput,
        _ => error.errno.map_or(ErrorKind::Internal, ErrorKind::from_errno),
    };
    Error::new(kind, error.step.name(), &error.subject).because(crate::error::Reported(error.cause.clone()))
}
