//! Measuring the disks of boxes for the bill, those of boxes that are awake or have not rested long enough.

use std::sync::Arc;

use icebox_rootfs::Store;
use tokio::time::Instant;

use super::{Boxes, Entry, Phase, Write};
use crate::db::StoredSample;
use crate::error::Error;

impl Boxes {
    /// Measures the disks of these boxes that can have changed, and all volumes, and writes changes to the ledger.
    pub(super) async fn measure_disks(&self, mut entries: Vec<Arc<Entry>>) {
        entries.retain(|entry| {
            let awake = entry.runs_here() && !entry.left_asleep();
            entry.view().phase == Phase::Ready && entry.disk.is_due(awake, entry.points.bytes())
        });
        if !entries.is_empty() {
            let store = Arc::clone(&self.inner.store);
            let measure = move || entries.iter().filter_map(|entry| measure(&store, entry)).collect();
            let samples: Vec<StoredSample> = tokio::task::spawn_blocking(measure).await.unwrap_or_default();
            if !samples.is_empty() {
                self.inner.db.append_samples(samples);
            }
        }
        if let Err(error) = self.measure_volumes().await {
            tracing::warn!(error = error.chain(), "cannot measure the volumes");
        }
    }
}

/// Reads the disk of a box and its counters. This blocks.
fn measure(store: &Store, entry: &Entry) -> Option<StoredSample> {
    let (began, points) = (Instant::now(), entry.points.bytes());
    let storage = stored_bytes(store, &entry.id, points);
    match &storage {
        Ok(_) => entry.disk.measured(began, points),
        Err(error) => tracing::warn!(box_id = entry.id, error = error.chain(), "cannot measure a disk"),
    }
    entry.meter.read(&entry.id, &entry.handle(), storage.ok().flatten(), Write::IfChanged, "storage")
}

/// Bytes that the disk of a box occupies, with its undo points; `None` if there is no disk. This blocks.
pub(super) fn stored_bytes(store: &Store, id: &str, points: u64) -> Result<Option<u64>, Error> {
    let read = || store.volume(id)?.map(|volume| volume.allocated_bytes()).transpose();
    Ok(read().map_err(|cause| Error::new("measure the disk", id, cause))?.map(|bytes| bytes + points))
}
