//! The space for disks: checks before something new takes of it, and what becomes of boxes that run when it is used up
//! (`[storage] when_full`).

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::space_state::Space;
use super::{Boxes, Entry, FreezeReason, blocking};
use crate::config::WhenFull;
use crate::error::Error;
use crate::events::Fact;
use crate::refusal::Refusal;

/// Boxes that were paused go on when there is more than the minimum by this part of it: what they write next would pause them
/// again.
const SPARE_DIVISOR: u64 = 4;

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

    /// Refuses a new box early if its disk is to be a block device, and none is free.
    pub(super) fn check_device(&self, disk_gib: u32) -> Result<(), Refusal> {
        let checked = self.inner.store.check_device(disk_gib);
        checked.map_err(|cause| Error::new("find a device for the disk", "", cause).into())
    }

    /// Refuses a disk or a volume if all together would be promised more than the operator allows. The caller holds `claims`
    /// until the new one is recorded.
    pub(super) async fn check_promises(&self, more_gib: u32) -> Result<(), Refusal> {
        let Some(percent) = self.inner.config.storage.promised_percent_max else { return Ok(()) };
        let boxes: u64 = self.all().iter().map(|entry| u64::from(entry.settings().disk_gib())).sum();
        let volumes: u64 = self.inner.db.all_volumes().await?.iter().map(|volume| u64::from(volume.size_gib)).sum();
        let promised = boxes + volumes;
        let store = Arc::clone(&self.inner.store);
        let space = blocking("measure the disks", move || Ok(store.free_bytes()? + store.allocated_bytes()?)).await?;
        let most = u128::from(space) * u128::from(percent) / 100;
        if u128::from(promised + u64::from(more_gib)) << 30 <= most {
            return Ok(());
        }
        Err(Refusal::NoSpace(format!(
            "disks and volumes of this host are promised {promised} GiB, and {more_gib} GiB more would exceed the {} GiB that may be \
             promised; delete boxes or volumes, or ask the operator for more space",
            most >> 30
        )))
    }

    /// Adjusts the pool to what others have written to the disk around it.
    pub(super) async fn balance_pool(&self) {
        let store = Arc::clone(&self.inner.store);
        match blocking("adjust the pool of disks", move || store.balance()).await {
            Ok(()) => self.inner.space.troubled.store(false, Ordering::Relaxed),
            // This is called each second: the log says it once.
            Err(error) if !self.inner.space.troubled.swap(true, Ordering::Relaxed) => {
                tracing::error!(error = error.chain(), "cannot adjust the pool of disks to the space around it");
            }
            Err(_) => {}
        }
    }

    /// True if boxes are paused when the space for disks is used up.
    pub(crate) fn pauses_when_full(&self) -> bool {
        self.inner.config.storage.when_full == WhenFull::Pause
    }

    /// True from the moment at which boxes are paused for want of space until they go on.
    pub(crate) fn is_short_of_space(&self) -> bool {
        self.inner.space.short.load(Ordering::SeqCst)
    }

    /// Looks at the space for disks.
    pub(crate) async fn look_at_space(&self) -> Result<Space, Error> {
        let least = self.inner.config.disk_free_bytes_min;
        let enough = least + least / SPARE_DIVISOR;
        let store = Arc::clone(&self.inner.store);
        let look = move || match store.free_bytes_unadjusted()? {
            free if free >= enough => Ok(free),
            // The pool may have less than it could have.
            _ => store.free_bytes(),
        };
        let free = blocking("read the free space of the disk", look).await?;
        Ok(match free {
            _ if free < least => Space::Short,
            _ if free < enough => Space::Little,
            _ => Space::Enough,
        })
    }

    /// Pauses the boxes that are awake: the space for disks is used up. From here on none is woken.
    pub(crate) async fn pause_for_space(&self) {
        if !self.inner.space.short.swap(true, Ordering::SeqCst) {
            tracing::warn!("the space for disks is used up: boxes are paused until there is more");
        }
        for entry in self.all().into_iter().filter(|entry| entry.runs_here() && !entry.left_asleep()) {
            match self.freeze(&entry, FreezeReason::Space).await {
                Ok(()) if entry.left_asleep() => {
                    self.paused().insert(entry.id.clone());
                    let text =
                        "paused: the space for disks on this host is used up; it goes on when there is more".to_owned();
                    self.publish(&entry, Fact::Warning { text });
                }
                Ok(()) => {}
                Err(refusal) => tracing::warn!(box_id = entry.id, reason = refusal.chain(), "a box cannot be paused"),
            }
        }
    }

    /// There is space again. Returns the boxes that go on.
    pub(crate) fn space_is_back(&self) -> Vec<Arc<Entry>> {
        if self.inner.space.short.swap(false, Ordering::SeqCst) {
            tracing::info!("there is space for disks again: boxes go on");
        }
        let paused = std::mem::take(&mut *self.paused());
        paused.iter().filter_map(|id| self.with_id(id)).collect()
    }

    /// The owner of a box has paused it: it does not go on by itself.
    pub(crate) fn paused_by_owner(&self, entry: &Entry) {
        self.paused().remove(&entry.id);
    }

    /// Refuses to wake or start a box while boxes are paused for want of space.
    pub(crate) fn check_space_to_run(&self) -> Result<(), Refusal> {
        if !self.is_short_of_space() {
            return Ok(());
        }
        let text = "the space for disks on this host is used up, and boxes are paused until there is more; delete boxes or volumes, \
                    or ask the operator to free space in the data directory";
        Err(Refusal::NoSpace(text.into()))
    }

    fn paused(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.inner.space.paused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
