//! What is asked of a cgroup for each command, through descriptors that stay open: a reading is one system call.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::Cgroup;
use super::controller::Controller;
use super::error::{Error, ErrorKind, Result};
use super::file::{Dir, read_all};
use super::hierarchy::Backend;
use super::parse::{keyed, single};
use super::stats::{CpuUsage, Events, parse_cpu_stat, parse_events};

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

    /// CPU time used here and below, removed children included. Throttling is of the v2 controller only.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn cpu(&self) -> Result<CpuUsage> {
        let text = self.read(&self.cpu, "cpu.stat")?;
        parse_cpu_stat(&text).ok_or_else(|| unreadable(self.path.join("cpu.stat")))
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

/// The files of a leaf that say what the processes in it have used.
#[derive(Debug)]
pub struct LeafGauges {
    path: PathBuf,
    events: OwnedFd,
    cpu: OwnedFd,
    memory: Option<MemoryGauges>,
}

#[derive(Debug)]
struct MemoryGauges {
    current: OwnedFd,
    peak: OwnedFd,
    /// `peak` is open for writing, which begins a new count.
    restarts: bool,
    events: OwnedFd,
}

/// A reading of [`LeafGauges`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LeafReading {
    /// CPU time in µs, since the leaf was made.
    pub cpu_usec: u64,
    /// Memory in use; 0 where memory is not controlled.
    pub memory_current: u64,
    /// Most memory in use at one time, since [`LeafGauges::restart`]; `None` where the kernel does not report it.
    pub memory_peak: Option<u64>,
    /// Processes killed for want of memory, since the leaf was made.
    pub oom_kills: u64,
    /// There are processes in it.
    pub populated: bool,
    /// It is frozen, with a cgroup above it or by itself.
    pub frozen: bool,
}

impl Cgroup {
    /// Opens the gauges of the child `name`. `None` if it does not exist, or some of what it uses is not reported.
    ///
    /// # Errors
    /// `Unsupported` on a legacy layout, else those of the system calls.
    pub fn leaf_gauges(&self, name: &str) -> Result<Option<LeafGauges>> {
        let dir = self.v2("open")?;
        let fail = |dir: &Dir, file: &str| {
            let subject = dir.path().join(file);
            move |errno| Error::errno("open", subject, errno)
        };
        let cpu = match dir.open(&format!("{name}/cpu.stat"), OFlags::RDONLY) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(fail(dir, "cpu.stat")(errno)),
        };
        let events = format!("{name}/cgroup.events");
        let events = dir.open(&events, OFlags::RDONLY).map_err(fail(dir, &events))?;
        let files = match self.v1_dir(Controller::Memory) {
            Some(dir) => Some((dir, ["memory.usage_in_bytes", "memory.max_usage_in_bytes", "memory.oom_control"])),
            None if self.backend(Controller::Memory) == Backend::V2 => {
                Some((dir, ["memory.current", "memory.peak", "memory.events"]))
            }
            None => None,
        };
        let memory = files.map(|(dir, files)| MemoryGauges::open(dir, name, files));
        match memory {
            Some(None) => Ok(None),
            memory => Ok(Some(LeafGauges { path: dir.path().join(name), events, cpu, memory: memory.flatten() })),
        }
    }
}

impl MemoryGauges {
    /// `None` where a file is missing: memory is not handed down to here, or the kernel does not report its peak.
    fn open(dir: &Dir, name: &str, [current, peak, events]: [&str; 3]) -> Option<Self> {
        let open = |file: &str, access| dir.open(&format!("{name}/{file}"), access);
        // v2 before Linux 6.12 has a peak that is only read. The permissions tell: root can open it for writing anyway.
        let peak_of = |access| open(peak, access).ok();
        let read_only = peak_of(OFlags::RDONLY)?;
        let mode = rustix::fs::fstat(&read_only).ok()?.st_mode;
        let writable = Mode::from_raw_mode(mode).contains(Mode::WUSR).then(|| peak_of(OFlags::RDWR)).flatten();
        let restarts = writable.is_some();
        let peak = writable.unwrap_or(read_only);
        let (current, events) = (open(current, OFlags::RDONLY).ok()?, open(events, OFlags::RDONLY).ok()?);
        Some(Self { current, peak, restarts, events })
    }
}

impl LeafGauges {
    fn read_file(&self, fd: &OwnedFd) -> Result<String> {
        read_all(fd.as_fd()).map_err(|errno| Error::errno("read", &self.path, errno))
    }

    fn number(&self, fd: &OwnedFd) -> Result<u64> {
        single(&self.read_file(fd)?).flatten().ok_or_else(|| unreadable(self.path.clone()))
    }

    /// The state.
    ///
    /// # Errors
    /// `NotFound` once the leaf is removed, else those of the system calls.
    pub fn events(&self) -> Result<Events> {
        Ok(parse_events(&self.read_file(&self.events)?))
    }

    /// CPU time in µs, since the leaf was made.
    ///
    /// # Errors
    /// `NotFound` once the leaf is removed, else those of the system calls.
    pub fn cpu_usec(&self) -> Result<u64> {
        keyed(&self.read_file(&self.cpu)?, "usage_usec").ok_or_else(|| unreadable(self.path.join("cpu.stat")))
    }

    /// All of them. The state is read last: without processes the others do not grow any more.
    ///
    /// # Errors
    /// `NotFound` once the leaf is removed, else those of the system calls.
    pub fn read(&self) -> Result<LeafReading> {
        let mut reading = LeafReading { cpu_usec: self.cpu_usec()?, ..LeafReading::default() };
        if let Some(memory) = &self.memory {
            reading.memory_peak = Some(self.number(&memory.peak)?);
            reading.oom_kills = keyed(&self.read_file(&memory.events)?, "oom_kill").unwrap_or(0);
            reading.memory_current = self.number(&memory.current)?;
        }
        let events = self.events()?;
        Ok(LeafReading { populated: events.populated, frozen: events.frozen, ..reading })
    }

    /// True if [`LeafGauges::restart`] begins a new count.
    #[must_use]
    pub fn can_restart(&self) -> bool {
        self.memory.as_ref().is_none_or(|memory| memory.restarts)
    }

    /// Begins a new count of the peak of memory.
    ///
    /// # Errors
    /// `NotFound` once the leaf is removed, else those of the system calls: not every kernel can do that.
    pub fn restart(&self) -> Result<()> {
        let Some(memory) = &self.memory else { return Ok(()) };
        rustix::io::pwrite(&memory.peak, b"0", 0).map(drop).map_err(|errno| Error::errno("write", &self.path, errno))
    }
}
