//! Giving memory back: the pages of a cgroup are written to swap or dropped while its processes keep them by name.
//!
//! v2's `memory.reclaim` (Linux 5.19, `Documentation/admin-guide/cgroup-v2.rst`) takes an amount, works in the writer's
//! context, so the writer is charged for its CPU time, and answers EAGAIN when it reclaimed less than requested.
//! v1's `memory.force_empty` (`Documentation/admin-guide/cgroup-v1/memory.rst`) knows no amount: it takes what it can
//! get. Neither needs the processes to run, or wakes them.
//!
//! Leaves out: whether there is swap, and whether it may be used (`memory.swap.max`, see `Limits`).

use rustix::io::Errno;

use super::Cgroup;
use super::controller::Controller;
use super::error::{Error, ErrorKind, Result};
use super::hierarchy::Backend;

/// The result of a reclaim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reclaimed {
    /// Memory in use before, in bytes.
    pub before: u64,
    /// And after.
    pub after: u64,
    /// The kernel found as much as was asked for. If not, there is little left that can be reclaimed.
    pub complete: bool,
}

impl Cgroup {
    /// Asks the kernel to take `bytes` from this cgroup and those below it. Blocks while it does; the time grows with
    /// `bytes` (v1: with all that is in use).
    ///
    /// # Errors
    /// `Unenforced(Memory)` when no memory controller is on this cgroup or the kernel has no such file. A kernel that
    /// finds less than `bytes` is no error: see [`Reclaimed::complete`].
    pub fn reclaim(&self, bytes: u64) -> Result<Reclaimed> {
        let c = Controller::Memory;
        let (dir, file, value) = match (self.v1_dir(c), &self.unified) {
            (Some(dir), _) => (dir, "memory.force_empty", "0".to_owned()),
            (None, Some(dir)) if self.hierarchy.backend(c) == Backend::V2 => (dir, "memory.reclaim", bytes.to_string()),
            _ => {
                return Err(Error::new("reclaim", self.path.as_str(), ErrorKind::Unenforced(c))
                    .detail("no memory controller on this cgroup"));
            }
        };
        let before = self.memory_current()?;
        let complete = match dir.write(file, &value) {
            Ok(()) => true,
            // v1: EBUSY when pages are left. EINTR cannot occur, since writes are repeated.
            Err(e) if e.is(Errno::AGAIN) || e.is(Errno::BUSY) => false,
            Err(e) if e.is(Errno::NOENT) => {
                return Err(e.with_kind(ErrorKind::Unenforced(c)).detail("the kernel cannot reclaim on demand"));
            }
            Err(e) => return Err(e),
        };
        Ok(Reclaimed { before, after: self.memory_current()?, complete })
    }
}
