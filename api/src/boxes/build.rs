//! Boxes in which a step of a build runs: their root, and what the step has changed in it.
//!
//! Such a box is like any other: it has limits, a network policy, a bill, and a record that says what it is for. Its record
//! is why a crash leaves nothing: the next start of the daemon removes it.

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use icebox_shim::launch::{UPPER, open_disk};

use super::{Boxes, Entry};
use crate::error::{Cause, Error};
use crate::events::StopCause;
use crate::refusal::Refusal;

/// Layers that a box gets in place of those of an image.
#[derive(Debug, Clone)]
pub struct BoxRoot {
    /// Its name in the record of the box.
    pub name: String,
    /// The layers, the topmost first.
    pub lower: Vec<PathBuf>,
}

impl Boxes {
    /// Ends all processes of a box of a build and gives `work` the directory with what they have changed: the upper
    /// directory of its overlay, which can be read and has no other name.
    pub(crate) async fn take_apart<T: Send + 'static>(
        &self,
        entry: &Arc<Entry>,
        work: impl FnOnce(&Path) -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let _life = entry.lock_life().await;
        self.clean_up_dead(entry, StopCause::InitKilled).await;
        let volume = self.volume(&entry.id).await?;
        let id = entry.id.clone();
        let worked = tokio::task::spawn_blocking(move || {
            let attached = volume.attach().map_err(|cause| Error::new("attach the disk", &id, cause))?;
            let disk =
                open_disk(&attached.device, &id).map_err(|cause| Error::new("read the changes of", &id, cause))?;
            Ok(work(Path::new(&format!("/proc/self/fd/{}/{UPPER}", disk.as_raw_fd()))))
        });
        match worked.await {
            Ok(done) => done.map_err(Refusal::Failed),
            Err(_) => Err(Refusal::Failed(Error::new("read the changes of", &entry.id, Cause::WorkerEnded))),
        }
    }

    /// The id of the base image of new boxes.
    pub(crate) async fn current_image(&self) -> Result<String, Refusal> {
        self.inner.images.current().await
    }

    /// Removes a box of a build.
    pub(crate) async fn end_build_box(&self, entry: &Arc<Entry>) {
        if let Err(refusal) = self.delete(entry).await {
            tracing::error!(box_id = entry.id, reason = refusal.chain(), "a box of a build is left");
        }
    }

    /// Removes the boxes of builds that an earlier daemon had begun.
    pub(crate) async fn end_builds(&self) {
        for entry in self.all().into_iter().filter(|entry| entry.settings().build) {
            tracing::info!(box_id = entry.id, "removing a box of a build that was not finished");
            self.end_build_box(&entry).await;
        }
    }
}
