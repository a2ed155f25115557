//! Snapshots of boxes: taking, listing, deleting, and the content for a new box.
//!
//! The order on disk: the record (`creating`), the file under its final name, the digest, the record (`ready`). A deletion
//! begins with the record. So a crash leaves a record without a usable file, which `snapshot_sweep` settles, or a file
//! whose record says that it is deleted; never a snapshot that is `ready` and incomplete.

use std::sync::Arc;
use std::time::Duration;

use icebox_rootfs::{Content, Copy, Source};
use tokio::sync::oneshot;

use super::{Boxes, Entry, Secret, blocking};
use crate::clock;
use crate::db::AGENT_API_KEY;
use crate::domain::{Snapshot, SnapshotStatus};
use crate::error::{Cause, Error};
use crate::events::Fact;
use crate::ids;
use crate::refusal::Refusal;

/// Longest wait for a snapshot before its client is told that it is being made.
const ANSWER_WAIT: Duration = Duration::from_secs(2);
/// Context of the signatures.
const SIGNED_FOR: &str = "snapshot";
/// Why a snapshot is taken: its owner asked for it.
pub(super) const MANUAL: &str = "manual";

/// A snapshot that boxes can be made from.
#[derive(Debug, Clone)]
pub struct Restorable {
    /// Its record.
    pub record: Snapshot,
    /// The key of the agent's provider.
    pub agent_key: Option<Secret>,
    /// Its content, verified.
    pub content: Content,
}

impl Boxes {
    /// Takes a snapshot of a box. It goes on if the client leaves, and is answered as being made if it takes long.
    pub async fn snapshot(&self, entry: &Arc<Entry>, name: &str) -> Result<Snapshot, Refusal> {
        ids::check_snapshot_name(name).map_err(Refusal::Invalid)?;
        let begun = self.begin_snapshot(entry, name, MANUAL).await?;
        let (done, answer) = oneshot::channel();
        let (boxes, entry, record) = (self.clone(), Arc::clone(entry), begun.clone());
        tokio::spawn(async move {
            // The client may have its answer already.
            let _ = done.send(boxes.make_snapshot(&entry, record).await.map(|(record, _)| record));
        });
        match tokio::time::timeout(ANSWER_WAIT, answer).await {
            Err(_) => Ok(begun),
            Ok(Ok(made)) => made,
            Ok(Err(_)) => Err(Refusal::Failed(Error::new("take a snapshot", begun.id, Cause::WorkerEnded))),
        }
    }

    /// Records a snapshot that is about to be taken.
    pub(super) async fn begin_snapshot(
        &self,
        entry: &Arc<Entry>,
        name: &str,
        kind: &'static str,
    ) -> Result<Snapshot, Refusal> {
        self.check_free_space().await?;
        let id = ids::new_snapshot_id();
        let settings = serde_json::to_string(&entry.settings())
            .map_err(|cause| Error::new("write the settings of", &entry.id, cause))?;
        let agent_key = match self.open_secret(&entry.id, AGENT_API_KEY).await? {
            Some(plain) => Some(self.inner.key.seal(&sealed_for(&id), &plain).map_err(Error::from)?),
            None => None,
        };
        let record = Snapshot {
            id,
            account_id: entry.account_id.clone(),
            box_id: entry.id.clone(),
            name: name.to_owned(),
            kind: kind.to_owned(),
            status: SnapshotStatus::Creating,
            created_ms: clock::unix_ms(),
            deleted_ms: None,
            size_bytes: 0,
            image: Some(self.image_of(entry).await?),
            settings,
            digest: None,
            signature: None,
            agent_key,
            error: None,
        };
        let most = self.inner.config.snapshots_per_account_max;
        if !self.inner.db.insert_snapshot(&record, most).await? {
            return Err(Refusal::Limit(format!("an account has at most {most} snapshots; delete some")));
        }
        Ok(record)
    }

    /// Takes a snapshot that is recorded, and records the result. Returns the mark of the disk at that moment too. Must not be
    /// cancelled.
    pub(super) async fn make_snapshot(
        &self,
        entry: &Arc<Entry>,
        record: Snapshot,
    ) -> Result<(Snapshot, String), Refusal> {
        let id = record.id.clone();
        let made = self.copy_and_keep(entry, record).await;
        if let Err(refusal) = &made {
            tracing::error!(box_id = entry.id, snapshot = id, reason = refusal.chain(), "a snapshot failed");
            self.remove_snapshot_files(vec![id.clone()]).await;
            if let Err(error) = self.inner.db.fail_snapshot(&id, &refusal.to_string()).await {
                // The next start finds it.
                tracing::error!(snapshot = id, error = error.chain(), "cannot record that a snapshot failed");
            }
        }
        made
    }

    async fn copy_and_keep(&self, entry: &Arc<Entry>, record: Snapshot) -> Result<(Snapshot, String), Refusal> {
        let store = Arc::clone(&self.inner.store);
        let copy = move |source: &Source| Ok((store.copy(source)?, source.mark()?));
        let ((copy, mark), stood) = self.with_still_disk(entry, copy).await?;
        self.publish(entry, Fact::Snapshotted { snapshot_id: record.id.clone(), name: record.name.clone(), stood });
        let record = self.keep_copy(copy, record).await?;
        if !self.inner.db.finish_snapshot(&record).await? {
            self.remove_snapshot_files(vec![record.id.clone()]).await;
            return Err(unknown_snapshot(&record.id));
        }
        tracing::info!(box_id = entry.id, snapshot = record.id, stood_ms = stood.as_millis(), "took a snapshot");
        Ok((record, mark))
    }

    /// Makes a copy durable and signs its record.
    async fn keep_copy(&self, copy: Copy, record: Snapshot) -> Result<Snapshot, Refusal> {
        // Reading whole disks in many threads at once would slow down everything else.
        let _one_of_few = self.inner.digesting.acquire().await;
        let (store, id) = (Arc::clone(&self.inner.store), record.id.clone());
        let kept = blocking("keep the snapshot", move || store.keep_copy(&copy, &id)).await?;
        let mut record = Snapshot {
            status: SnapshotStatus::Ready,
            size_bytes: kept.allocated_bytes,
            digest: Some(kept.digest),
            ..record
        };
        record.signature = Some(self.inner.key.sign(SIGNED_FOR, &record.signed_text()));
        Ok(record)
    }

    /// The snapshots of a box, the oldest first.
    pub async fn snapshots_of(&self, entry: &Entry) -> Result<Vec<Snapshot>, Error> {
        self.inner.db.snapshots(&entry.account_id, Some(&entry.id)).await
    }

    /// The snapshots of an account, the oldest first.
    pub async fn snapshots_of_account(&self, account: &str) -> Result<Vec<Snapshot>, Error> {
        self.inner.db.snapshots(account, None).await
    }

    /// A snapshot of an account.
    pub async fn find_snapshot(&self, account: &str, id: &str) -> Result<Snapshot, Refusal> {
        self.inner.db.snapshot(account, id).await?.ok_or_else(|| unknown_snapshot(id))
    }

    /// A snapshot of an account, with its content, checked.
    pub async fn open_snapshot(&self, account: &str, id: &str) -> Result<Restorable, Refusal> {
        let record = self.find_snapshot(account, id).await?;
        match record.status {
            SnapshotStatus::Ready => {}
            SnapshotStatus::Creating => {
                return Err(Refusal::Conflict("the snapshot is still being made; try again".into()));
            }
            SnapshotStatus::Error | SnapshotStatus::Deleted => {
                let reason = record.error.as_deref().unwrap_or("it could not be made");
                return Err(Refusal::Conflict(format!("the snapshot cannot be used: {reason}")));
            }
        }
        let signature = record.signature.as_deref().unwrap_or_default();
        let is_ours = self.inner.key.is_signed(SIGNED_FOR, &record.signed_text(), signature);
        let (true, Some(digest)) = (is_ours, record.digest.clone()) else {
            tracing::error!(snapshot = id, "the record of a snapshot was changed: its signature is not ours");
            return Err(damaged(id));
        };
        let (store, file) = (Arc::clone(&self.inner.store), id.to_owned());
        let _one_of_few = self.inner.digesting.acquire().await;
        let content = blocking("open the snapshot", move || store.snapshot(&file, &digest)).await;
        let content = content.map_err(|error| match error.cause() {
            Cause::Rootfs(cause) if cause.kind() == icebox_rootfs::ErrorKind::Corrupt => {
                tracing::error!(snapshot = id, error = error.chain(), "the file of a snapshot was changed");
                damaged(id)
            }
            Cause::Rootfs(cause) if cause.kind() == icebox_rootfs::ErrorKind::NotFound => {
                tracing::error!(snapshot = id, error = error.chain(), "the file of a snapshot is missing");
                Refusal::Conflict("the snapshot cannot be used: its file is missing".into())
            }
            _ => error.into(),
        })?;
        let agent_key = match &record.agent_key {
            Some(sealed) => Some(self.inner.key.open(&sealed_for(id), sealed).map_err(Error::from)?),
            None => None,
        };
        let agent_key = agent_key.map(|plain| Secret(String::from_utf8_lossy(&plain).into_owned()));
        Ok(Restorable { record, agent_key, content })
    }

    /// Deletes these snapshots of an account, or all of them with `None`. Returns how many there were.
    pub async fn delete_snapshots(&self, account: &str, ids: Option<Vec<String>>) -> Result<usize, Refusal> {
        let gone = self.inner.db.delete_snapshots(account, ids).await?;
        let deleted = gone.len();
        let boxes = self.clone();
        super::to_the_end(async move {
            boxes.remove_snapshot_files(gone).await;
            Ok(deleted)
        })
        .await
    }

    /// Removes files of snapshots whose records say that they are gone. What cannot be removed now is removed at the next
    /// start.
    pub(super) async fn remove_snapshot_files(&self, ids: Vec<String>) {
        for id in ids {
            let (store, file) = (Arc::clone(&self.inner.store), id.clone());
            if let Err(error) = blocking("remove the snapshot", move || store.remove_snapshot(&file)).await {
                tracing::error!(snapshot = id, error = error.chain(), "the file of a deleted snapshot stays");
            }
        }
    }

    /// A secret of a box.
    pub(super) async fn open_secret(&self, box_id: &str, kind: &'static str) -> Result<Option<Vec<u8>>, Error> {
        let Some(sealed) = self.inner.db.sealed_secret(box_id, kind).await? else { return Ok(None) };
        Ok(Some(self.inner.key.open(&format!("{kind}/{box_id}"), &sealed)?))
    }
}

fn sealed_for(snapshot_id: &str) -> String {
    format!("{AGENT_API_KEY}/{snapshot_id}")
}

/// The snapshot is unknown to the caller.
fn unknown_snapshot(id: &str) -> Refusal {
    Refusal::NotFound(format!("snapshot '{}' does not exist", id.chars().take(80).collect::<String>()))
}

fn damaged(id: &str) -> Refusal {
    Refusal::Conflict(format!("the snapshot '{id}' is damaged and cannot be used: it is not what was written"))
}
