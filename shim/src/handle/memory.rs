//! A sleeping box's memory, from the host side: reclaiming and reading it.
//!
//! Invariant: a running box never swaps. Swap is opened (`memory.swap.max`) only for a frozen box whose pages are being
//! reclaimed, and closed before it is thawed. Swapped pages come back one by one as they are touched, on the box's CPU
//! time; reclaiming them was on the caller's.
//! Leaves out: when to do it (the API's), and whether the host's swap is fast.

use icebox_runtime::cgroup::{Limits, Pressure, Resource, Unenforced};

use super::BoxHandle;
use super::held::{LEAF_V1, blocking};
use crate::error::{Error, ErrorKind};

/// Bytes reclaimed in one step. They bound how long a request to the box waits: about 10 ms with swap in compressed
/// memory.
const RECLAIM_CHUNK_BYTES: u64 = 8 << 20;
/// A pass that gets less than this part of the requested amount ends the reclaim.
const PROGRESS_PART: u64 = 8;
/// The page cache comes first and is soon gone; a box can write no more than this to be reclaimed.
const RECLAIM_PASSES_MAX: u64 = 1 << 20;

/// The result of a reclaim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reclaimed {
    /// Memory in use before.
    pub memory_before: u64,
    /// And after.
    pub memory_after: u64,
    /// In swap before.
    pub swap_before: u64,
    /// And after.
    pub swap_after: u64,
    /// The reclaim ended early, because a request to the box was waiting.
    pub cut_short: bool,
}

/// The box's pressure (PSI) by resource. `None` where the kernel does not report it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct BoxPressure {
    /// For a CPU.
    pub cpu: Option<Pressure>,
    /// For memory.
    pub memory: Option<Pressure>,
    /// For its disk.
    pub io: Option<Pressure>,
}

/// Memory in use, in RAM and in swap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Footprint {
    /// In use.
    pub memory: u64,
    /// In swap.
    pub swap: u64,
}

/// More about a box's memory than [`super::BoxUsage`] has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BoxMemory {
    /// In swap.
    pub swap: u64,
    /// Throttled because of `memory.high`.
    pub high_events: u64,
    /// Times usage was about to go over the limit.
    pub max_events: u64,
}

impl BoxHandle {
    /// Reclaims the memory of a frozen box, as much as the kernel can. Between two steps `wanted` tells whether a
    /// request to the box is waiting; if so the reclaim ends. The caller must keep the box frozen meanwhile.
    ///
    /// # Errors
    /// `InvalidInput` if the box is not frozen, `Unenforced` where the kernel cannot reclaim on demand.
    pub async fn reclaim(&self, wanted: impl Fn() -> bool + Send + 'static) -> Result<Reclaimed, Error> {
        let handle = self.clone();
        blocking(move || handle.reclaim_now(&wanted)).await
    }

    fn reclaim_now(&self, wanted: &dyn Fn() -> bool) -> Result<Reclaimed, Error> {
        let step = "reclaim box's memory";
        let cgroup = self.cgroup(&LEAF_V1)?;
        if !cgroup.events().map_err(self.fail(step))?.frozen {
            return Err(Error::new(ErrorKind::InvalidInput, step, "the box is not asleep"));
        }
        let swap = || cgroup.swap().map(Option::unwrap_or_default).map_err(self.fail(step));
        let mut done = Reclaimed {
            memory_before: cgroup.memory_current().map_err(self.fail(step))?,
            swap_before: swap()?,
            ..Reclaimed::default()
        };
        done.memory_after = done.memory_before;
        // Not all of it is a failure without swap: the page cache can go.
        let open = Limits { memory_swap_max_bytes: Some(-1), ..Limits::default() };
        // Where memory is v1's, the one limit of memory and swap together stays as it is.
        self.cgroup(&[])?.apply(&open, Unenforced::Allow).map_err(self.fail(step))?;
        for _ in 0..RECLAIM_PASSES_MAX {
            done.cut_short = wanted();
            if done.cut_short {
                break;
            }
            let pass = cgroup.reclaim(RECLAIM_CHUNK_BYTES).map_err(self.fail(step))?;
            done.memory_after = pass.after;
            if pass.before.saturating_sub(pass.after) < RECLAIM_CHUNK_BYTES / PROGRESS_PART {
                break;
            }
        }
        done.swap_after = swap()?;
        Ok(done)
    }

    /// Reads the box's memory counters.
    ///
    /// # Errors
    /// `NotFound` without a cgroup, `Unenforced` without a memory controller.
    pub fn memory(&self) -> Result<BoxMemory, Error> {
        let step = "read box's memory";
        let cgroup = self.cgroup(&LEAF_V1)?;
        let events = cgroup.memory_events().map_err(self.fail(step))?;
        Ok(BoxMemory {
            swap: cgroup.swap().map_err(self.fail(step))?.unwrap_or_default(),
            high_events: events.high,
            max_events: events.max,
        })
    }

    /// Reads how much memory is in use here and below: always two files, however many cgroups are below.
    ///
    /// # Errors
    /// `NotFound` without a cgroup, `Unenforced` without a memory controller.
    pub fn footprint(&self) -> Result<Footprint, Error> {
        let step = "read memory";
        let cgroup = self.cgroup(&LEAF_V1)?;
        Ok(Footprint {
            memory: cgroup.memory_current().map_err(self.fail(step))?,
            swap: cgroup.swap().map_err(self.fail(step))?.unwrap_or_default(),
        })
    }

    /// Reads the pressure files.
    ///
    /// # Errors
    /// `NotFound` without a cgroup.
    pub fn pressure(&self) -> Result<BoxPressure, Error> {
        let cgroup = self.cgroup(&[])?;
        // A kernel without PSI is no error.
        let read = |resource| cgroup.pressure(resource).ok();
        Ok(BoxPressure { cpu: read(Resource::Cpu), memory: read(Resource::Memory), io: read(Resource::Io) })
    }
}
