//! What can be done with images at once.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use icebox_registry::Settings;
use icebox_rootfs::images::{Image, Images as Store, Pruned};
use icebox_rootfs::oci::Reference;
use tokio::sync::Semaphore;

use crate::boxes::Boxes;
use crate::config::Config;
use crate::error::{Cause, Error};
use crate::refusal::Refusal;

/// Imports and exports at once: each keeps two processors busy.
const AT_ONCE_MAX: usize = 2;
/// Pulls and pushes at once: they wait for the network most of the time.
const TRANSFERS_MAX: usize = 4;

/// The images of a daemon. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Images {
    pub(super) boxes: Boxes,
    pub(super) registry: Arc<Settings>,
    room: Arc<Semaphore>,
    transfers: Arc<Semaphore>,
}

/// An image and the number of this daemon's boxes that use it.
#[derive(Debug, Clone)]
pub struct Listed {
    /// The image.
    pub image: Image,
    /// Boxes.
    pub boxes: usize,
}

impl Images {
    /// The images below these boxes.
    #[must_use]
    pub fn new(boxes: Boxes, config: &Config) -> Self {
        let room = |at_once| Arc::new(Semaphore::new(at_once));
        Self {
            boxes,
            registry: Arc::new(config.registry.settings()),
            room: room(AT_ONCE_MAX),
            transfers: room(TRANSFERS_MAX),
        }
    }

    /// All images, by age.
    pub async fn list(&self) -> Result<Vec<Listed>, Refusal> {
        let images = self.read("list the images", Store::list).await?;
        let counts = self.boxes.boxes_by_image();
        let boxes = |image: &Image| counts.get(&image.id).copied().unwrap_or(0);
        Ok(images.into_iter().map(|image| Listed { boxes: boxes(&image), image }).collect())
    }

    /// One image by name or id, and what was left out of its layers.
    pub async fn show(&self, name: String) -> Result<(Listed, Vec<String>), Refusal> {
        let found = self.read("find the image", move |store| {
            let image = store.find(&name)?;
            let mut warnings = Vec::new();
            for diff_id in &image.diff_ids {
                warnings.extend(store.layer(diff_id)?.into_iter().flat_map(|facts| facts.warnings));
            }
            Ok((image, warnings))
        });
        let (image, warnings) = found.await?;
        let boxes = self.boxes.boxes_by_image().get(&image.id).copied().unwrap_or(0);
        Ok((Listed { image, boxes }, warnings))
    }

    /// Takes a name from an image, or removes the image.
    pub async fn remove(&self, name: String) -> Result<Pruned, Refusal> {
        self.boxes.removing_images(move |store| store.remove(&name)).await
    }

    /// Removes images without a name (`all`: with names too) that no box uses.
    pub async fn prune(&self, all: bool) -> Result<Pruned, Refusal> {
        self.boxes.removing_images(move |store| store.prune(all)).await
    }

    /// Gives an image another name.
    pub async fn tag(&self, image: String, name: String) -> Result<(), Refusal> {
        self.read("name the image", move |store| {
            let name: Reference = name.parse()?;
            let image = store.find(&image)?;
            store.tag(&image.id, &name)
        })
        .await
    }

    /// Writes an image as an OCI layout in a tar archive. The name in it is the one that it was asked for by.
    pub async fn export(&self, name: String, output: impl Write + Send + 'static) -> Result<bool, Refusal> {
        let _room = self.room().await;
        self.read("export the image", move |store| {
            let image = store.find(&name)?;
            let reference = name.parse::<Reference>().ok().filter(|name| image.names.contains(&name.to_string()));
            let first = || image.names.first().and_then(|name| name.parse().ok());
            store.export(&image, reference.or_else(first).as_ref(), output)
        })
        .await
    }

    pub(super) async fn room(&self) -> Option<tokio::sync::OwnedSemaphorePermit> {
        // The semaphore is never closed.
        Arc::clone(&self.room).acquire_owned().await.ok()
    }

    pub(super) async fn transfer_room(&self) -> Option<tokio::sync::OwnedSemaphorePermit> {
        Arc::clone(&self.transfers).acquire_owned().await.ok()
    }

    /// Works with the store in a thread of its own.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&Store) -> icebox_rootfs::Result<T> + Send + 'static,
    ) -> Result<T, Refusal> {
        let store = self.boxes.image_store().await?;
        match tokio::task::spawn_blocking(move || work(&store)).await {
            Ok(done) => done.map_err(|cause| Boxes::image_refusal(operation, cause)),
            Err(_) => Err(Error::new(operation, "", Cause::WorkerEnded).into()),
        }
    }

    /// The directory of images.
    pub async fn dir(&self) -> Result<PathBuf, Refusal> {
        Ok(self.boxes.image_store().await?.dir().to_owned())
    }
}
