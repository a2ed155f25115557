//! Checking the file system of a box before it starts.

use icebox_rootfs::{Check, Checked, Volume};

use super::launch::Start;
use super::started::Started;
use super::{Boxes, blocking};
use crate::refusal::Refusal;

/// The log text of a repair.
const REPAIRED: &str = "its file system had errors, which were repaired; the last writes before them may be lost";

impl Boxes {
    /// Starts a box on its disk after a check of its file system.
    pub(super) async fn start_checked(&self, start: &Start, volume: Volume, check: Check) -> Result<Started, Refusal> {
        let repaired = self.check_disk(&volume, check).await?;
        let disk = self.ready_disk(&start.id, volume).await?;
        let mut started = self.start(start, disk).await?;
        if repaired {
            tracing::warn!(box_id = start.id, "the file system of a box was repaired");
            started.warnings.push(REPAIRED.to_owned());
        }
        Ok(started)
    }

    /// Checks the file system of a box without processes. Returns true if it was repaired.
    async fn check_disk(&self, volume: &Volume, check: Check) -> Result<bool, Refusal> {
        let volume = volume.clone();
        match blocking("check the file system of the box", move || volume.check(check)).await {
            Ok(checked) => Ok(checked == Checked::Repaired),
            // e2fsck gives no reason. On a full disk it cannot write its corrections.
            Err(_) if self.check_free_space().await.is_err() => Err(Refusal::disk_full()),
            Err(error) => Err(error.into()),
        }
    }
}
