//! Holding a box still while its disk is copied.
//!
//! Most of what is dirty is written before; so the time for which the box stands still does not grow with it. Requests that
//! arrive meanwhile wait for the lifecycle lock, and packets for the box's processes. The box is not asleep: its bill, its
//! idle rule and its status go on as before.

use std::sync::Arc;
use std::time::{Duration, Instant};

use icebox_rootfs::{Source, Volume};

use super::{Boxes, Entry, FREEZE_DEADLINE, THAW_DEADLINE, blocking};
use crate::error::Error;
use crate::refusal::Refusal;

impl Boxes {
    /// Does `work` with the disk of a box as it is at one moment. Returns its result and the time for which the box
    /// stood still: none for one that sleeps or is stopped. Must not be cancelled.
    pub(super) async fn with_still_disk<T: Send + 'static>(
        &self,
        entry: &Arc<Entry>,
        work: impl FnOnce(&Source) -> icebox_rootfs::Result<T> + Send + 'static,
    ) -> Result<(T, Duration), Refusal> {
        let volume = self.volume(&entry.id).await?;
        if entry.alive() {
            let early = volume.clone();
            blocking("flush the disk", move || early.live_source()?.flush()).await?;
        }
        let _life = entry.lock_life().await;
        let view = entry.usable_view()?;
        if !entry.alive() {
            let done = blocking("copy the disk", move || work(&volume.resting_source()?)).await?;
            return Ok((done, Duration::ZERO));
        }
        if view.handle.frozen().map_err(Refusal::from)? {
            let done = blocking("copy the disk", move || work(&volume.live_source()?)).await?;
            return Ok((done, Duration::ZERO));
        }
        self.hold_still(entry, volume, work).await
    }

    /// The case of a box that runs. The lifecycle lock is held.
    async fn hold_still<T: Send + 'static>(
        &self,
        entry: &Arc<Entry>,
        volume: Volume,
        work: impl FnOnce(&Source) -> icebox_rootfs::Result<T> + Send + 'static,
    ) -> Result<(T, Duration), Refusal> {
        let handle = entry.handle();
        // What can take long is done before.
        let source = blocking("find the disk", move || volume.live_source()).await?;
        let began = Instant::now();
        entry.set_still(true);
        let held = handle.hold_still(FREEZE_DEADLINE).await;
        let done = match held {
            Ok(()) => Ok(blocking("copy the disk", move || work(&source)).await),
            Err(cause) if cause.kind() == icebox_shim::ErrorKind::FreezeTimeout => {
                Err(Refusal::Conflict("the box could not be held still in time; it goes on running".into()))
            }
            Err(cause) => Err(Refusal::Failed(Error::new("hold the box still", &entry.id, cause))),
        };
        // Also after a failure: a box that is not frozen stays as it is.
        let let_go = handle.let_go(THAW_DEADLINE).await;
        entry.set_still(false);
        let stood = began.elapsed();
        if let Err(error) = let_go {
            // Its next request wakes it.
            tracing::error!(box_id = entry.id, error = error.report(), "a box was held still and does not go on");
        }
        Ok((done??, stood))
    }

    /// Lets a box go on that an earlier daemon held still when it was killed.
    pub(crate) async fn let_go_if_held(&self, entry: &Arc<Entry>) {
        let handle = entry.handle();
        match handle.is_held_still() {
            Ok(false) => return,
            Ok(true) => tracing::info!(box_id = entry.id, "a box was held still for a copy of its disk; it goes on"),
            Err(error) => {
                return tracing::warn!(box_id = entry.id, error = error.report(), "cannot see if a box is held still");
            }
        }
        if let Err(error) = handle.let_go(THAW_DEADLINE).await {
            tracing::error!(box_id = entry.id, error = error.report(), "a box was held still and does not go on");
        }
    }
}
