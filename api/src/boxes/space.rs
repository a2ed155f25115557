//! Check of the free disk space before a box is created.

use super::Boxes;
use crate::db::free_bytes;
use crate::error::Error;
use crate::refusal::Refusal;

impl Boxes {
    /// Refuses a new box if the disk has less free space than the configured minimum. Existing boxes need the rest:
    /// their disks are sparse and grow.
    pub(super) fn check_free_space(&self) -> Result<(), Refusal> {
        let (dir, least) = (&self.inner.config.data_dir, self.inner.config.disk_free_bytes_min);
        let free =
            free_bytes(dir).map_err(|cause| Error::new("read the free space of", dir.display().to_string(), cause))?;
        if free >= least {
            return Ok(());
        }
        let mib = |bytes: u64| bytes >> 20;
        Err(Refusal::NoSpace(format!(
            "the disk of this host has {} MiB of free space, and a new box needs {} MiB; delete boxes, or ask the \
             operator to free space in the data directory",
            mib(free),
            mib(least)
        )))
    }
}
