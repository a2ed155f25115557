//! Check of the free disk space before a box is created.

use std::sync::Arc;

use super::{Boxes, blocking};
use crate::refusal::Refusal;

impl Boxes {
    /// Refuses a new box if the disk, or the pool in it, has less free space than the configured minimum. Existing boxes
    /// need the rest: their disks are sparse and grow.
    pub(super) async fn check_free_space(&self) -> Result<(), Refusal> {
        let least = self.inner.config.disk_free_bytes_min;
        let store = Arc::clone(&self.inner.store);
        // Usually there is enough without an adjustment of the pool, which may take time. It follows with the disk.
        if store.free_bytes_unadjusted().is_ok_and(|free| free >= least) {
            return Ok(());
        }
        let free = blocking("read the free space of the disk", move || store.free_bytes()).await?;
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

    /// Adjusts the pool to what others have written to the disk around it.
    pub(super) async fn balance_pool(&self) {
        let store = Arc::clone(&self.inner.store);
        if let Err(error) = blocking("adjust the pool of disks", move || store.balance()).await {
            tracing::warn!(error = error.chain(), "cannot adjust the pool of disks to the space around it");
        }
    }
}
