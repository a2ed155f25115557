//! Boxes and the space for disks, where `[storage] when_full = "pause"` says so: they are paused when it is used up, and go on
//! when there is more.

use std::time::Duration;

use super::Lifecycle;
use crate::boxes::Space;

/// Interval between two looks at the space.
const LOOK_EVERY: Duration = Duration::from_millis(250);

impl Lifecycle {
    /// Looks at the space for disks. Returns only if boxes are not paused for want of it.
    pub async fn heed_space(self) {
        if !self.boxes.pauses_when_full() {
            return;
        }
        let mut told = false;
        loop {
            match self.boxes.look_at_space().await {
                Ok(Space::Short) => self.boxes.pause_for_space().await,
                // A request may have found a box awake just before.
                Ok(Space::Little) if self.boxes.is_short_of_space() => self.boxes.pause_for_space().await,
                Ok(Space::Little) => {}
                Ok(Space::Enough) => self.go_on().await,
                Err(error) if !told => {
                    told = true;
                    tracing::error!(
                        error = error.chain(),
                        "cannot read the free space: no box is paused for want of it"
                    );
                }
                Err(_) => {}
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Wakes the boxes that were paused.
    async fn go_on(&self) {
        for entry in self.boxes.space_is_back() {
            if let Err(refusal) = self.wake(&entry).await {
                tracing::warn!(box_id = entry.id, reason = refusal.chain(), "a box that was paused does not go on");
            }
        }
    }
}
