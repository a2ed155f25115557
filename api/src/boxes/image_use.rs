//! Which images the boxes use: the image of a new box, and the removal of images that none uses.

use std::collections::{BTreeSet, HashMap};
use std::sync::PoisonError;

use icebox_rootfs::images::Images as Store;
use tokio::sync::RwLockReadGuard;

use super::Boxes;
use super::images::told;
use super::tasks::blocking;
use crate::error::Error;
use crate::refusal::Refusal;

impl Boxes {
    /// The store of images of this host.
    pub(crate) async fn image_store(&self) -> Result<Store, Refusal> {
        let dir = self.inner.images.dir.clone();
        Ok(blocking("open the store of images", move || Store::open(&dir)).await?)
    }

    /// The refusal for a failure of the store.
    pub(crate) fn image_refusal(operation: &'static str, error: icebox_rootfs::Error) -> Refusal {
        told(Error::new(operation, "", error))
    }

    /// Chooses and pins the image of a new box; one of a snapshot has the snapshot's. Until the box is in the table, the guard keeps images from being removed.
    pub(super) async fn image_for_new(
        &self,
        runtime: Option<&str>,
        of_snapshot: Option<&str>,
    ) -> Result<(String, RwLockReadGuard<'_, ()>), Refusal> {
        let images = &self.inner.images;
        let guard = images.removing.read().await;
        let id = match of_snapshot {
            Some(image) => image.to_owned(),
            None => images.choose(runtime).await?,
        };
        // An image that cannot be the root of a box is refused now.
        images.root(&id).await?;
        images.pin(&id).await?;
        Ok((id, guard))
    }

    /// Does `work`, which may remove images, while no box is between the choice of its image and the table. The pins are
    /// those of the boxes that there are.
    pub(crate) async fn removing_images<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> icebox_rootfs::Result<T> + Send + 'static,
    ) -> Result<T, Refusal> {
        let images = &self.inner.images;
        let _guard = images.removing.write().await;
        self.set_pins().await?;
        let dir = images.dir.clone();
        let done = blocking("remove images", move || work(&Store::open(&dir)?)).await.map_err(told);
        // What is gone must be looked up again.
        images.roots.lock().unwrap_or_else(PoisonError::into_inner).clear();
        done
    }

    /// Pins exactly the images of the boxes in the table, and of their snapshots.
    async fn set_pins(&self) -> Result<(), Refusal> {
        let images = &self.inner.images;
        let mut used: BTreeSet<String> = self.all().iter().filter_map(|entry| entry.view().image).collect();
        used.extend(self.inner.ready.images());
        // A box that is made of a snapshot stands on the image of the snapshot.
        let snapshots = self.inner.db.all_snapshots().await?;
        used.extend(snapshots.into_iter().filter_map(|snapshot| snapshot.image));
        let (dir, owner, wanted) = (images.dir.clone(), images.owner.clone(), used.clone());
        blocking("pin the images of boxes", move || Store::open(&dir)?.set_pins(&owner, &wanted)).await?;
        *images.pinned.lock().unwrap_or_else(PoisonError::into_inner) = used;
        Ok(())
    }

    /// Number of boxes by image.
    pub(crate) fn boxes_by_image(&self) -> HashMap<String, usize> {
        let mut counts = HashMap::new();
        for image in self.all().iter().filter_map(|entry| entry.view().image) {
            *counts.entry(image).or_default() += 1;
        }
        counts
    }

    /// Looks up the images of all boxes, once at the start: their variables are those of every command. A box whose image is
    /// missing learns that when it is started. What imports of a dead daemon have left goes: it may be large, and no other
    /// import may come for long.
    pub(crate) async fn know_images(&self) {
        let dir = self.inner.images.dir.clone();
        let swept = blocking("sweep the images", move || Store::open(&dir)?.sweep_unfinished()).await;
        if let Err(error) = swept {
            tracing::warn!(reason = told(error).chain(), "something of an unfinished import is left");
        }
        if let Err(refusal) = self.set_pins().await {
            tracing::warn!(reason = refusal.chain(), "the images of boxes cannot be pinned");
        }
        for entry in self.all() {
            let Some(id) = entry.view().image else { continue };
            match self.inner.images.root(&id).await {
                Ok(root) => entry.set_root(root),
                Err(refusal) => {
                    tracing::warn!(box_id = entry.id, reason = refusal.chain(), "the image of a box is missing")
                }
            }
        }
    }
}
