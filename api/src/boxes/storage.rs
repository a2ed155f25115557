//! Disks of boxes: growing one, and what all of them take.

use std::sync::Arc;

use icebox_rootfs::{Backing, DeviceReport, Grown, Taken, Usage, VOLUME_SIZE_GIB_MAX, Volume};

use super::{Boxes, Entry, Phase, blocking, to_the_end};
use crate::error::Error;
use crate::refusal::Refusal;

/// How a box's disk has grown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resized {
    /// Its size.
    pub size_gib: u32,
    /// Why the file system in it grows at the next start of the box only.
    pub waits_because: Option<&'static str>,
}

/// A box's disk, and the space it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Id of the box.
    pub id: String,
    /// What it takes.
    pub taken: Taken,
}

impl Boxes {
    /// Grows the disk of a box, whatever its state. The record is changed first: a growth that is cut short is completed
    /// at the next start of the box, or by another request for the same size.
    pub async fn resize(
        &self,
        entry: &Arc<Entry>,
        account_idle: Option<u64>,
        size_gib: u32,
    ) -> Result<Resized, Refusal> {
        let (boxes, entry) = (self.clone(), Arc::clone(entry));
        to_the_end(async move {
            let _life = entry.lock_life().await;
            if entry.view().phase != Phase::Ready {
                return Err(Refusal::Conflict("the box is being made or deleted".into()));
            }
            let now = entry.settings().disk_gib();
            if size_gib > VOLUME_SIZE_GIB_MAX {
                return Err(Refusal::Invalid(format!("disk_gib must be {now} to {VOLUME_SIZE_GIB_MAX}")));
            }
            if size_gib < now {
                return Err(Refusal::Invalid(format!("the disk has {now} GiB, and a disk cannot become smaller")));
            }
            boxes.check_free_space().await?;
            let claims = boxes.inner.claims.lock().await;
            boxes.check_promises(size_gib - now).await?;
            let volume = boxes.volume(&entry.id).await?;
            // A device that cannot grow is known before the record asks for it.
            let room = volume.clone();
            blocking("grow the device of the disk", move || room.make_room(size_gib)).await?;
            if size_gib > now {
                boxes.change_settings(&entry, account_idle, |settings| settings.disk_gib = Some(size_gib)).await?;
            }
            drop(claims);
            let grown = blocking("grow the disk", move || volume.grow(size_gib)).await?;
            entry.disk.changes();
            tracing::info!(box_id = entry.id, size_gib, ?grown, "the disk of a box has grown");
            Ok(Resized { size_gib, waits_because: reason(grown) })
        })
        .await
    }

    /// Completes a growth that the record asks for. The box has no processes.
    pub(super) async fn grow_to_record(&self, entry: &Entry, volume: &Volume) -> Result<(), Error> {
        let Some(size_gib) = entry.settings().disk_gib else { return Ok(()) };
        let volume = volume.clone();
        blocking("grow the disk", move || volume.grow(size_gib)).await.map(|_| ())
    }

    /// What the disks of an account's boxes take.
    pub async fn disks_of(&self, account_id: &str) -> Result<Vec<Disk>, Refusal> {
        let store = Arc::clone(&self.inner.store);
        let ids: Vec<String> = self.of_account(account_id).into_iter().map(|entry| entry.id.clone()).collect();
        let disks = blocking("measure the disks", move || {
            let measure = |id: String| {
                let Some(volume) = store.volume(&id)? else { return Ok(None) };
                let taken = volume.taken()?;
                Ok(Some(Disk { id, taken }))
            };
            ids.into_iter().filter_map(|id| measure(id).transpose()).collect()
        });
        Ok(disks.await?)
    }

    /// What new disks lie on.
    #[must_use]
    pub fn backing(&self) -> &Backing {
        self.inner.store.backing()
    }

    /// The block devices for disks, if there are any.
    #[must_use]
    pub fn devices(&self) -> Option<DeviceReport> {
        self.inner.store.devices()
    }

    /// What the disks of all boxes lie on and take.
    pub async fn storage_usage(&self) -> Result<Usage, Refusal> {
        let store = Arc::clone(&self.inner.store);
        Ok(blocking("measure the disks", move || store.usage()).await?)
    }
}

pub(super) fn reason(grown: Grown) -> Option<&'static str> {
    match grown {
        Grown::Done => None,
        Grown::AtNextUse { lacks_capability: true } => {
            Some("iceboxd has no CAP_SYS_RESOURCE, which growing a mounted file system needs")
        }
        Grown::AtNextUse { lacks_capability: false } => {
            Some("its file system was made by an earlier version and cannot grow while it is mounted")
        }
    }
}
