//! Restarting a box: all its processes end, its file system is checked, and it restarts on its disk.
//!
//! For a box that the host has harmed: its disk met a full or failing disk of the host, and its file system is
//! read-only since then.

use std::sync::Arc;

use icebox_rootfs::Check;

use super::Lifecycle;
use crate::boxes::{Entry, WorkKind, to_the_end};
use crate::events::StopCause;
use crate::refusal::Refusal;

impl Lifecycle {
    /// Ends all processes of a box, checks its file system and restarts it. Commands in flight end as failed.
    pub async fn restart(&self, entry: &Arc<Entry>) -> Result<(), Refusal> {
        let work = entry.activity.begin(WorkKind::Request);
        let (lifecycle, entry) = (self.clone(), Arc::clone(entry));
        to_the_end(async move {
            let _work = work;
            let _life = entry.lock_life().await;
            entry.usable_view()?;
            lifecycle.boxes.check_space_to_run()?;
            tracing::info!(box_id = entry.id, "restarting");
            lifecycle.start_again(&entry, Check::Always, StopCause::Restart).await
        })
        .await
    }
}
