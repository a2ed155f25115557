//! Taking the last command of a box back: its disk becomes what it was before.

use std::sync::Arc;

use super::Lifecycle;
use crate::boxes::{Entry, WorkKind, to_the_end};
use crate::domain::UndoPoint;
use crate::events::Fact;
use crate::refusal::Refusal;

impl Lifecycle {
    /// Puts the disk of a box back to what it was before its last command that is not taken back yet. All processes of the
    /// box end, and it starts again. `wanted`: the point that the caller means, if it must be this one.
    pub async fn undo(&self, entry: &Arc<Entry>, wanted: Option<String>) -> Result<UndoPoint, Refusal> {
        let work = entry.activity.begin(WorkKind::Request);
        let (lifecycle, entry) = (self.clone(), Arc::clone(entry));
        to_the_end(async move {
            let _work = work;
            let _one = entry.lock_undo().await;
            entry.usable_view()?;
            let (point, copy) = lifecycle.boxes.copy_undo_point(&entry, wanted.as_deref()).await?;
            let disk = lifecycle.boxes.prepare_replacement(&entry, copy).await?;
            lifecycle.start_on(&entry, disk).await?;
            // After a crash before this, the same step back is taken again.
            lifecycle.boxes.forget_point(&entry, &point.id).await;
            tracing::info!(box_id = entry.id, point = point.id, "a command was taken back");
            let command = point.command.clone();
            lifecycle.events.publish(entry.event(Fact::Undone { command, taken_ms: point.taken_ms }));
            Ok(point)
        })
        .await
    }
}
