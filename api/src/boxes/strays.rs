//! What is left of boxes without an owner: found by name and place, removed at the operator's request.
//!
//! An owner is a box in the table, a reservation, or the record of a snapshot. They are read after the names: whatever gets
//! an owner has it on disk before it has a name. Only names that Icebox gives count; other files beside them are the
//! operator's.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};

use icebox_rootfs::images::{StrayImage, StrayImageKind};
use icebox_rootfs::{Stray, StrayKind};
use icebox_shim::handle::BoxHandle;

use super::launch::remove_run_dir;
use super::{Boxes, Entry, blocking};
use crate::domain::{Orphan, OrphanKind, Reservation, SnapshotStatus};
use crate::error::{Cause, Error};
use crate::ids;
use crate::refusal::Refusal;

/// Something of boxes, disks or images without an owner.
#[derive(Debug, Clone)]
pub(crate) enum Left {
    /// In the store of disks.
    File(Stray),
    /// In the store of images.
    Image(StrayImage),
    /// A cgroup: the root, and the id of a box.
    Cgroup(String, String),
    /// A run directory.
    RunDir(String),
    /// A reservation whose box could not be made or removed.
    Range(Reservation),
    /// A block of uids: its number, and the data directory that had it.
    Block(u32, String),
    /// A box of a build.
    BuildBox(Arc<Entry>),
}

impl Left {
    /// What the operator is shown.
    pub(crate) fn orphan(&self) -> Orphan {
        let (kind, name, bytes) = match self {
            Self::File(stray) => {
                let kind = match stray.kind {
                    StrayKind::Loop => OrphanKind::LoopDevice,
                    StrayKind::Volume => OrphanKind::Disk,
                    StrayKind::Data => OrphanKind::Volume,
                    StrayKind::Snapshot => OrphanKind::Snapshot,
                    StrayKind::Unfinished => OrphanKind::UnfinishedDisk,
                };
                (kind, stray.name.clone(), Some(stray.bytes))
            }
            Self::Image(stray) => {
                let kind = match stray.kind {
                    StrayImageKind::Unfinished => OrphanKind::UnfinishedImage,
                    StrayImageKind::Layer => OrphanKind::Layer,
                    StrayImageKind::Adapted => OrphanKind::AdaptedLayer,
                    StrayImageKind::Pins => OrphanKind::Pins,
                };
                (kind, stray.name.clone(), Some(stray.bytes))
            }
            Self::Cgroup(root, id) => (OrphanKind::Cgroup, format!("{root}/{id}"), None),
            Self::RunDir(id) => (OrphanKind::RunDirectory, id.clone(), None),
            Self::Range(range) => (OrphanKind::UidRange, format!("{} ({})", range.uid_base, range.box_id), None),
            Self::Block(block, owner) => (OrphanKind::UidBlock, format!("{block} ({owner})"), None),
            Self::BuildBox(entry) => (OrphanKind::BuildBox, entry.id.clone(), None),
        };
        Orphan { kind, name, bytes }
    }
}

impl Boxes {
    /// What has no owner. `builds_rest`: no build is under way, so that a box of a build has none.
    pub(crate) async fn left(&self, builds_rest: bool) -> Result<Vec<Left>, Refusal> {
        let mut left = Vec::new();
        let store = Arc::clone(&self.inner.store);
        // Names first, owners after them.
        let none = BTreeSet::new();
        let files = blocking("list the disks", move || store.strays(&none, &none)).await?;
        let groups = self.box_cgroups().await?;
        let run_dirs = self.run_dirs();
        let mut owners: BTreeSet<String> = self.all().into_iter().map(|entry| entry.id.clone()).collect();
        owners.extend(self.inner.db.reservations().await?.into_iter().map(|one| one.box_id));
        owners.extend(self.all().into_iter().map(|entry| entry.id.clone()));
        let snapshots = self.inner.db.all_snapshots().await?.into_iter();
        let is_kept = |status| !matches!(status, SnapshotStatus::Deleted | SnapshotStatus::Error);
        let snapshots: BTreeSet<String> = snapshots.filter(|one| is_kept(one.status)).map(|one| one.id).collect();
        let volumes: BTreeSet<String> = self.inner.db.all_volumes().await?.into_iter().map(|one| one.id).collect();
        let is_left = |stray: &Stray| match stray.kind {
            StrayKind::Loop | StrayKind::Volume => ids::is_box_id(&stray.id) && !owners.contains(&stray.id),
            StrayKind::Snapshot => ids::is_snapshot_id(&stray.id) && !snapshots.contains(&stray.id),
            StrayKind::Data => stray.id.starts_with("vol-") && !volumes.contains(&stray.id),
            StrayKind::Unfinished => true,
        };
        left.extend(files.into_iter().filter(is_left).map(Left::File));
        let is_stray = |id: &String| ids::is_box_id(id) && !owners.contains(id);
        left.extend(groups.into_iter().filter(|(_, id)| is_stray(id)).map(|(root, id)| Left::Cgroup(root, id)));
        left.extend(run_dirs.into_iter().filter(is_stray).map(Left::RunDir));
        if builds_rest {
            left.extend(self.all().into_iter().filter(|entry| entry.settings().build).map(Left::BuildBox));
        }
        let ranges = self.inner.stuck.lock().unwrap_or_else(PoisonError::into_inner).clone();
        left.extend(ranges.into_iter().map(Left::Range));
        let blocks = self.inner.ranges.stray_blocks();
        left.extend(blocks.into_iter().map(|(block, owner)| Left::Block(block, owner)));
        let images = self.image_store().await?;
        let images = blocking("look for leftovers of images", move || images.strays()).await?;
        left.extend(images.into_iter().map(Left::Image));
        Ok(left)
    }

    /// Removes it.
    pub(crate) async fn remove_left(&self, left: &Left) -> Result<(), Refusal> {
        match left.clone() {
            Left::File(stray) => {
                let store = Arc::clone(&self.inner.store);
                Ok(blocking("remove a leftover", move || store.remove_stray(&stray)).await?)
            }
            Left::Image(stray) => {
                let images = self.image_store().await?;
                Ok(blocking("remove a leftover", move || images.remove_strays(&[stray])).await.map(drop)?)
            }
            Left::Cgroup(_, id) => {
                self.kill_everywhere(&id, 0).await?;
                let boxes = self.clone();
                let removed = tokio::task::spawn_blocking(move || boxes.remove_cgroups(&id, 0)).await;
                Ok(removed.map_err(|_| Error::new("remove a cgroup", "", Cause::WorkerEnded))??)
            }
            Left::RunDir(id) => Ok(remove_run_dir(&self.run_dir(&id))?),
            Left::Range(range) => {
                if !self.erase(&range.box_id, range.uid_base).await {
                    let text = format!("something of {} cannot be removed; the log says what", range.box_id);
                    return Err(Refusal::Conflict(text));
                }
                let mut stuck = self.inner.stuck.lock().unwrap_or_else(PoisonError::into_inner);
                stuck.retain(|one| *one != range);
                drop(stuck);
                self.give_back(range);
                Ok(())
            }
            Left::Block(block, _) => Ok(self.inner.ranges.release_stray_block(block)?),
            Left::BuildBox(entry) => self.delete(&entry).await.map(drop),
        }
    }

    /// A box of this reservation could not be removed: the operator is shown it.
    pub(super) fn note_stuck(&self, reservation: Reservation) {
        self.inner.stuck.lock().unwrap_or_else(PoisonError::into_inner).push(reservation);
    }

    /// The children of all cgroups that hold boxes: (root, name).
    async fn box_cgroups(&self) -> Result<Vec<(String, String)>, Error> {
        let roots = &self.inner.roots;
        let all: Vec<String> = roots.earlier().into_iter().chain([roots.current().to_owned()]).collect();
        let run_dir = self.inner.config.run_dir.clone();
        let listed = tokio::task::spawn_blocking(move || {
            let mut found = Vec::new();
            for root in all {
                let failed = |cause| Error::new("list the cgroups in", &root, cause);
                let names = BoxHandle::open(&run_dir, &root, 0).and_then(|handle| handle.children()).map_err(failed)?;
                found.extend(names.into_iter().map(|name| (root.clone(), name)));
            }
            Ok(found)
        });
        listed.await.unwrap_or_else(|_| Err(Error::new("list the cgroups of boxes", "", Cause::WorkerEnded)))
    }

    fn run_dirs(&self) -> Vec<String> {
        let Ok(found) = std::fs::read_dir(self.inner.config.run_dir.join("boxes")) else { return Vec::new() };
        found.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }
}
