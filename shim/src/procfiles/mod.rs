//! Files of `/proc` that tell of a box and not of the host: `meminfo`, `cpuinfo`, `stat` and `loadavg`.
//!
//! They are files of the box's own tmpfs, mounted read-only over those of its procfs. `cpuinfo` never changes. The box's
//! init has the other three open, and this process takes the descriptors from there, also after a restart. It writes the
//! files when a program of the box opens or reads them: a group of fanotify(7) holds that program up for the moment.
//!
//! Invariants:
//! - The thread that answers needs nothing from a box, from its init, or from the runtime's threads, and takes no lock
//!   that is held across a wait. Every event is answered with "allow".
//! - No thread of this process opens a marked file: it would wait for an answer. Contents are written through
//!   descriptors that the init has opened before the mark.
//! - A text replaces the former one by one pwrite(2); it is shortened after that and never before, so that no reader
//!   sees an empty file.
//! - If the group is gone, the kernel lets every program go on, and files say what they said last.
//!
//! Leaves out: reading a cgroup ([`Readings`]), and mounting.

mod files;
mod keeper;
mod meminfo;
mod processors;
mod registry;
mod watch;

use std::os::fd::AsFd;

use icebox_runtime::cgroup::{CpuUsage, MemoryParts};
use rustix::io::Errno;

pub(crate) use keeper::{FDS, Kept};
pub use keeper::{Keeper, Size, can_watch};

/// The contents of a file that change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Meminfo,
    Stat,
    Loadavg,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Meminfo, Self::Stat, Self::Loadavg];

    /// The name in `/proc`.
    const fn name(self) -> &'static str {
        match self {
            Self::Meminfo => "meminfo",
            Self::Stat => "stat",
            Self::Loadavg => "loadavg",
        }
    }
}

/// What the kernel counts for a box now. `None` where it does not tell.
pub(crate) trait Readings: std::fmt::Debug + Send + Sync {
    /// Processor time.
    fn cpu(&self) -> Option<CpuUsage>;
    /// Memory.
    fn memory(&self) -> Option<Memory>;
    /// Processes and threads.
    fn tasks(&self) -> Option<u64>;
}

/// Memory of a box, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// The limit; `None` without one.
    pub(crate) limit: Option<u64>,
    /// In use.
    pub(crate) used: u64,
    pub(crate) parts: MemoryParts,
}

/// Device and inode: what an event names a file by.
type Key = (u64, u64);

fn key(file: impl AsFd) -> Result<Key, Errno> {
    let stat = rustix::fs::fstat(file)?;
    Ok((stat.st_dev, stat.st_ino))
}
