//! Restarting a box: all its processes end, its file system is checked, and it starts anew on its disk.
//!
//! This is the way out for a box that the host has harmed: its disk met a full or failing disk of the host, and its file
//! system is read-only since then.

use std::sync::Arc;

use icebox_rootfs::{Check, Checked};

use super::{Boxes, Entry, Phase, WorkKind, blocking, to_the_end};
use crate::refusal::Refusal;

/// What the log of a box says about a repair.
pub(super) const REPAIRED: &str =
    "its file system had errors, which were repaired; the last writes before them may be lost";

impl Boxes {
    /// Ends all processes of a box, checks its file system and starts it anew. Commands in flight end as failed.
    pub async fn restart(&self, entry: &Arc<Entry>) -> Result<(), Refusal> {
        let work = entry.activity.begin(WorkKind::Request);
        let (boxes, entry) = (self.clone(), Arc::clone(entry));
        to_the_end(async move {
            let _work = work;
            let _life = entry.lock_life().await;
            let view = entry.view();
            if view.phase == Phase::Deleting {
                return Err(Refusal::unknown_box(&entry.id));
            }
            if let (true, Some(error)) = (view.damaged, &view.error) {
                return Err(Refusal::Unavailable(error.clone()));
            }
            tracing::info!(box_id = entry.id, "restarting");
            boxes.start_again(&entry, Check::Always).await
        })
        .await
    }

    /// Checks the file system of a box without processes. Says whether it was repaired.
    pub(super) async fn check_disk(&self, volume: &icebox_rootfs::Volume, check: Check) -> Result<bool, Refusal> {
        let volume = volume.clone();
        match blocking("check the file system of the box", move || volume.check(check)).await {
            Ok(checked) => Ok(checked == Checked::Repaired),
            // e2fsck tells no reason. On a full disk it cannot write what it corrects.
            Err(_) if self.check_free_space().is_err() => Err(Refusal::disk_full()),
            Err(error) => Err(error.into()),
        }
    }
}
