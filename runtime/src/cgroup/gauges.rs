//! What is asked of a cgroup for each command, through descriptors that stay open: a reading is one system call.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::OFlags;

use super::Cgroup;
use super::error::{Error, ErrorKind, Result};
use super::file::read_all;
use super::parse::keyed;
use super::stats::{Events, parse_events};

/// The state and the CPU time of a v2 cgroup. `NotFound` once the cgroup is removed.
#[derive(Debug)]
pub struct Gauges {
    path: PathBuf,
    events: OwnedFd,
    cpu: OwnedFd,
}

impl Cgroup {
    /// Opens the files of its state and CPU time.
    ///
    /// # Errors
    /// `Unsupported` on a legacy layout, else those of the system calls.
    pub fn gauges(&self) -> Result<Gauges> {
        let dir = self.v2("open")?;
        let open = |file: &str| {
            dir.open(file, OFlags::RDONLY).map_err(|errno| Error::errno("open", dir.path().join(file), errno))
        };
        Ok(Gauges { path: dir.path().to_path_buf(), events: open("cgroup.events")?, cpu: open("cpu.stat")? })
    }
}

pub(super) fn unreadable(path: PathBuf) -> Error {
    Error::new("read", path, ErrorKind::Io).detail("unexpected content")
}

impl Gauges {
    fn read(&self, fd: &OwnedFd, file: &str) -> Result<String> {
        read_all(fd.as_fd()).map_err(|errno| Error::errno("read", self.path.join(file), errno))
    }

    /// The state.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn events(&self) -> Result<Events> {
        Ok(parse_events(&self.read(&self.events, "cgroup.events")?))
    }

    /// CPU time used here and below, removed children included, in µs.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn cpu_usec(&self) -> Result<u64> {
        let text = self.read(&self.cpu, "cpu.stat")?;
        keyed(&text, "usage_usec").ok_or_else(|| unreadable(self.path.join("cpu.stat")))
    }
}
