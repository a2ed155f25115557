//! The files of a box's `/proc` that tell of the box: from when on they are kept, and where their numbers come from.

use std::sync::{Arc, Weak};

use icebox_runtime::cgroup::{self, CpuUsage};

use super::held::Held;
use super::{BoxHandle, Inner};
use crate::error::Error;
use crate::procfiles::{FDS, Keeper, Memory, Readings};

impl BoxHandle {
    /// Keeps the files of a running box up to date, for as long as this handle or a copy lives. A box of an earlier
    /// version has no such files; it keeps what it has.
    ///
    /// # Errors
    /// They cannot be watched. The box goes on; the files are written when a command is started and at a wake.
    pub fn keep_proc_files(
        &self,
        keeper: &Keeper,
        pid: i32,
        start_time_ticks: u64,
        boot_id: &str,
    ) -> Result<(), Error> {
        if !self.inner.init.alive(pid, start_time_ticks, boot_id) {
            return Ok(());
        }
        let Some(Ok(files)) = self.inner.init.descriptors(FDS) else { return Ok(()) };
        let Ok(files) = files.try_into() else { return Ok(()) };
        let readings = Box::new(OfBox(Arc::downgrade(&self.inner)));
        let Some((kept, watched)) = keeper.keep(files, readings, pid, start_time_ticks) else { return Ok(()) };
        // A handle is for one start of a box; those that were kept first stay.
        let _ = self.inner.files.set(kept);
        watched
    }
}

/// The counters of a box. It does not keep the box's handle, which keeps it.
#[derive(Debug)]
struct OfBox(Weak<Inner>);

impl OfBox {
    fn read<T>(&self, work: impl Fn(&Arc<Held>) -> cgroup::Result<T>) -> Option<T> {
        let handle = BoxHandle { inner: self.0.upgrade()? };
        handle.with_cgroup("read box's counters", work).ok()
    }
}

impl Readings for OfBox {
    fn cpu(&self) -> Option<CpuUsage> {
        self.read(|held| held.gauges.cpu())
    }

    fn memory(&self) -> Option<Memory> {
        self.read(|held| {
            let limit = held.whole.memory_max()?.and_then(|text| text.parse().ok());
            Ok(Memory { limit, used: held.whole.memory_current()?, parts: held.whole.memory_parts()? })
        })
    }

    fn tasks(&self) -> Option<u64> {
        self.read(|held| Ok(held.whole.pids()?.current))
    }
}
