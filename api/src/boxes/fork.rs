//! Copies of disks that are no snapshots: for forks, and to take the place of a box's disk.

use std::sync::Arc;

use icebox_rootfs::{Copy, Replacement};

use super::create::does_not_fit;
use super::{Boxes, Entry, Secret, blocking};
use crate::db::{AGENT_API_KEY, GITHUB_TOKEN};
use crate::error::Error;
use crate::refusal::Refusal;

/// The secrets of a box that its forks get.
#[derive(Debug)]
pub(crate) struct Secrets {
    /// Token for git's servers.
    pub(crate) github_token: Option<Secret>,
    /// Key of the agent's provider.
    pub(crate) agent_api_key: Option<Secret>,
}

impl Boxes {
    /// Copies the disk of a box as it is now. Must not be cancelled.
    pub(crate) async fn copy_disk(&self, entry: &Arc<Entry>) -> Result<(Copy, Secrets), Refusal> {
        self.check_free_space().await?;
        let secrets = Secrets {
            github_token: self.secret(&entry.id, GITHUB_TOKEN).await?,
            agent_api_key: self.secret(&entry.id, AGENT_API_KEY).await?,
        };
        let store = Arc::clone(&self.inner.store);
        let (copy, stood) = self.with_still_disk(entry, move |source| store.copy(source)).await?;
        tracing::debug!(box_id = entry.id, stood_ms = stood.as_millis(), "copied a disk");
        Ok((copy, secrets))
    }

    async fn secret(&self, box_id: &str, kind: &'static str) -> Result<Option<Secret>, Error> {
        let plain = self.open_secret(box_id, kind).await?;
        Ok(plain.map(|plain| Secret(String::from_utf8_lossy(&plain).into_owned())))
    }

    /// Readies a copy to take the place of a box's disk: of its size, and on disk.
    pub(crate) async fn prepare_replacement(&self, entry: &Entry, copy: Copy) -> Result<Replacement, Refusal> {
        let (store, id, gib) = (Arc::clone(&self.inner.store), entry.id.clone(), entry.settings().disk_gib());
        let ready = blocking("ready the new disk", move || store.prepare_replacement(&id, copy, gib)).await;
        ready.map_err(|error| does_not_fit(error, gib))
    }

    /// Puts a new disk in the place of that of a box without processes. The lifecycle lock is held.
    pub(crate) async fn replace_disk(&self, entry: &Entry, replacement: Replacement) -> Result<(), Refusal> {
        let store = Arc::clone(&self.inner.store);
        tracing::info!(box_id = entry.id, "its disk is replaced");
        Ok(blocking("replace the disk", move || store.replace_volume(replacement)).await?)
    }
}
