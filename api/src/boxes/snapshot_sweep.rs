//! Snapshots at the start of the daemon: records and files are brought together.

use std::collections::HashSet;
use std::sync::Arc;

use super::{Boxes, blocking};
use crate::domain::SnapshotStatus;
use crate::error::Error;

/// Reasons in the records of snapshots that cannot be used.
const INTERRUPTED: &str = "iceboxd ended while it was being made";
const LOST: &str = "its file is missing";

impl Boxes {
    /// Settles snapshots whose making or deletion was interrupted. A file without any record may hold an owner's data:
    /// it is reported, never removed.
    pub(crate) async fn settle_snapshots(&self) -> Result<(), Error> {
        let store = Arc::clone(&self.inner.store);
        let files = blocking("list the snapshots", move || store.list_snapshots()).await?;
        let mut unclaimed: HashSet<String> = files.into_iter().collect();
        for record in self.inner.db.all_snapshots().await? {
            let has_file = unclaimed.remove(&record.id);
            let reason = match record.status {
                SnapshotStatus::Ready if has_file => continue,
                SnapshotStatus::Ready => LOST,
                SnapshotStatus::Creating => INTERRUPTED,
                SnapshotStatus::Error | SnapshotStatus::Deleted => {
                    self.remove_if(has_file, &record.id).await;
                    continue;
                }
            };
            tracing::warn!(snapshot = record.id, box_id = record.box_id, reason, "a snapshot cannot be used");
            self.remove_if(has_file, &record.id).await;
            self.inner.db.fail_snapshot(&record.id, reason).await?;
        }
        let deleted = self.inner.db.deleted_snapshots(unclaimed.iter().cloned().collect()).await?;
        unclaimed.retain(|id| !deleted.contains(id));
        self.remove_snapshot_files(deleted).await;
        for snapshot in unclaimed {
            tracing::warn!(
                snapshot,
                "there is a snapshot file without a record; `icebox doctor` shows it if it is one of Icebox"
            );
        }
        Ok(())
    }

    async fn remove_if(&self, has_file: bool, id: &str) {
        if has_file {
            self.remove_snapshot_files(vec![id.to_owned()]).await;
        }
    }
}
