//! Ready boxes: making, taking and removing them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;

use super::launch::{Start, storage_of};
use super::ready::{Kind, ReadyBox};
use super::started::Started;
use super::{Boxes, Entry, FREEZE_DEADLINE, NewBox, THAW_DEADLINE};
use crate::domain::BoxSize;
use crate::error::{Cause, Error};
use crate::events::Event;
use crate::refusal::Refusal;
use icebox_net::Rights;
use icebox_net::policy::BoxPolicy;

/// Interval between looks for ready boxes that are too old, or whose runtime has another image now.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Pause after a failure.
const RETRY_AFTER: Duration = Duration::from_secs(30);
/// Ready boxes that are removed at once.
const REMOVED_AT_ONCE: usize = 8;

/// The ready boxes of one entry of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadyCount {
    /// The runtime; none for the base image.
    pub runtime: Option<String>,
    /// The size class.
    pub size: BoxSize,
    /// The number that is kept.
    pub wanted: u32,
    /// The number now.
    pub held: u32,
}

impl Boxes {
    /// A ready box for this creation, thawed, if there is one. A creation that names what no ready box has gets none.
    pub(super) async fn take_ready(&self, wanted: &NewBox, image: &str) -> Option<ReadyBox> {
        let settings = &wanted.settings;
        // What a start is given besides image and size (`Start`) is what a ready box has not got.
        let is_plain = wanted.root.is_none()
            && wanted.origin.is_none()
            && settings.volumes.is_empty()
            && settings.disk_gib() == settings.size.disk_gib();
        if !is_plain || self.inner.config.ready.is_empty() {
            return None;
        }
        let kind = Kind { image: image.to_owned(), size: settings.size };
        while let Some(ready) = self.inner.ready.take(&kind) {
            let (id, init) = (&ready.reservation.box_id, &ready.started.incarnation);
            let thawed = ready.started.handle.thaw(THAW_DEADLINE).await;
            if thawed.is_ok() && ready.started.handle.alive(init.pid, init.start_time_ticks, &init.boot_id) {
                self.inner.metrics.ready_taken(true);
                return Some(ready);
            }
            let why = thawed.err().map_or_else(|| "it has no processes".to_owned(), |error| error.report());
            tracing::warn!(box_id = id, why, "a ready box cannot be used");
            self.drop_ready(ready);
        }
        let is_kept = |kept: &crate::config::Ready| kept.runtime == settings.runtime && kept.size == settings.size;
        if self.inner.config.ready.iter().any(is_kept) {
            self.inner.metrics.ready_taken(false);
        }
        None
    }

    /// Gives back a ready box that was taken in vain.
    pub(super) fn put_back_ready(&self, ready: ReadyBox) {
        let boxes = self.clone();
        tokio::spawn(async move {
            let closed = boxes.inner.ready.making.lock().await;
            match ready.started.handle.freeze(FREEZE_DEADLINE).await {
                Ok(()) if !*closed => boxes.hold_ready(ready),
                _ => boxes.remove_ready(ready).await,
            }
        });
    }

    /// Makes a ready box the box of this entry, up to its record.
    pub(super) async fn claim(
        &self,
        entry: &Arc<Entry>,
        ready: ReadyBox,
        wanted: &NewBox,
        began: Instant,
    ) -> Result<(Started, Event), Refusal> {
        let claimed = Instant::now();
        let ReadyBox { kind, mut started, storage, .. } = ready;
        entry.set_root(self.inner.images.root(&kind.image).await?);
        if let Some(network) = &self.inner.network {
            network.set_rights(&entry.id, entry.rights()).await.map_err(Error::from)?;
        }
        started.took = claimed.elapsed();
        self.record_new(entry, wanted, started, storage, began).await
    }

    /// Keeps as many ready boxes as the configuration says. Never returns if it says any.
    pub async fn keep_ready(self) {
        if self.inner.config.ready.is_empty() {
            return;
        }
        loop {
            let pause = match self.refill().await {
                Ok(()) => LOOK_EVERY,
                Err(refusal) => {
                    tracing::warn!(reason = refusal.chain(), "a ready box cannot be made; trying again later");
                    RETRY_AFTER
                }
            };
            tokio::select! {
                () = self.inner.ready.changed() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Makes what is missing, then removes what is too old or unwanted. Returns the first failure; the other kinds are
    /// made all the same.
    async fn refill(&self) -> Result<(), Refusal> {
        let mut failed = None;
        let mut wanted: Vec<(Kind, usize)> = Vec::new();
        for kept in &self.inner.config.ready {
            match self.inner.images.choose(kept.runtime.as_deref()).await {
                Ok(image) => {
                    let (kind, count) = (Kind { image, size: kept.size }, kept.count as usize);
                    match wanted.iter_mut().find(|(known, _)| *known == kind) {
                        // Two names of one image.
                        Some((_, both)) => *both += count,
                        None => wanted.push((kind, count)),
                    }
                }
                Err(refusal) => failed = failed.or(Some(refusal)),
            }
        }
        for (kind, count) in &wanted {
            while self.inner.ready.young(kind) < *count {
                self.inner.ready.quiet().await;
                let closed = self.inner.ready.making.lock().await;
                if *closed {
                    return Ok(());
                }
                match self.make_ready(kind).await {
                    Ok(ready) => self.hold_ready(ready),
                    Err(refusal) => {
                        failed = failed.or(Some(refusal));
                        break;
                    }
                }
            }
        }
        for ready in self.inner.ready.take_unwanted(&wanted) {
            self.inner.ready.quiet().await;
            self.remove_ready(ready).await;
        }
        failed.map_or(Ok(()), Err)
    }

    /// Makes one: disk, processes, a closed link; then freezes it.
    async fn make_ready(&self, kind: &Kind) -> Result<ReadyBox, Refusal> {
        // Until it is held, the guard keeps its image.
        let (image, _stays) = self.image_for_new(None, Some(&kind.image)).await?;
        self.check_cgroup_parent()?;
        self.check_free_space().await?;
        let reservation = self.inner.reservations.take().await?;
        match self.start_ready(&reservation.box_id, reservation.uid_base, kind.size, image).await {
            Ok((started, storage)) => {
                tracing::debug!(box_id = reservation.box_id, "a box is ready");
                Ok(ReadyBox { reservation, kind: kind.clone(), started, storage, made: Instant::now() })
            }
            Err(refusal) => {
                self.erase_reserved(reservation).await;
                Err(refusal)
            }
        }
    }

    async fn start_ready(
        &self,
        id: &str,
        uid_base: u32,
        size: BoxSize,
        image: String,
    ) -> Result<(Started, Option<u64>), Refusal> {
        let pair = self.assign_addresses(id)?;
        // Of no account, and allowed nothing.
        let rights = Rights { account: String::new(), policy: BoxPolicy::DenyAll, headers: None };
        let start = Start { id: id.to_owned(), size, image, root: None, uid_base, pair, rights, volumes: Vec::new() };
        let disk = self.make_disk(id, size.disk_gib(), None).await?;
        let started = self.start(&start, disk.ready).await;
        let flushed = disk.flushing.await;
        let started = started?;
        flushed.map_err(|_| Error::new("flush the disk", id, Cause::WorkerEnded))??;
        let frozen = started.handle.freeze(FREEZE_DEADLINE).await;
        frozen.map_err(|cause| Error::new("freeze the box", id, cause))?;
        Ok((started, storage_of(&disk.volume, id)))
    }

    /// Holds a ready box until it is taken or its init ends.
    fn hold_ready(&self, ready: ReadyBox) {
        let (boxes, id) = (self.clone(), ready.reservation.box_id.clone());
        let (handle, init) = (ready.started.handle.clone(), ready.started.incarnation.clone());
        let watch = tokio::spawn(async move {
            handle.wait_dead(init.pid, init.start_time_ticks, &init.boot_id).await;
            // Taking it ends this task.
            let remover = boxes.clone();
            tokio::spawn(async move {
                let Some(dead) = remover.inner.ready.take_id(&id) else { return };
                tracing::warn!(box_id = id, "the init of a ready box has ended");
                remover.remove_ready(dead).await;
            });
        });
        self.inner.ready.hold(ready, watch.abort_handle());
    }

    /// Removes a ready box in the background.
    fn drop_ready(&self, ready: ReadyBox) {
        let boxes = self.clone();
        tokio::spawn(async move { boxes.remove_ready(ready).await });
    }

    /// Removes a ready box. Its range needs no rest, since no tenant has had it. What cannot be removed is removed by the
    /// next start, which finds the reservation.
    async fn remove_ready(&self, ready: ReadyBox) {
        let reservation = ready.reservation;
        let (id, uid_base) = (reservation.box_id.clone(), reservation.uid_base);
        if !self.erase(&id, uid_base).await {
            return self.note_stuck(reservation);
        }
        let released = match self.sync_removals().await {
            Ok(()) => self.inner.db.unreserve(vec![reservation]).await,
            Err(error) => Err(error),
        };
        match released {
            Ok(()) => self.inner.ranges.forget(uid_base),
            Err(error) => tracing::warn!(box_id = id, error = error.chain(), "cannot release a reservation"),
        }
    }

    /// Removes all ready boxes, and makes no more.
    pub(super) async fn end_ready(&self) {
        *self.inner.ready.making.lock().await = true;
        let held = self.inner.ready.take_unwanted(&[]);
        let removals = futures::stream::iter(held).map(|ready| self.remove_ready(ready));
        removals.buffer_unordered(REMOVED_AT_ONCE).collect::<()>().await;
    }

    /// The ready boxes by entry of the configuration. A box that two entries could give counts for the first.
    pub async fn ready_counts(&self) -> Vec<ReadyCount> {
        let mut kinds = self.inner.ready.kinds();
        let mut counts = Vec::new();
        for kept in &self.inner.config.ready {
            let image = self.inner.images.choose(kept.runtime.as_deref()).await.ok();
            let mut held = 0;
            kinds.retain(|kind| {
                let counted = held < kept.count && kind.size == kept.size && Some(&kind.image) == image.as_ref();
                held += u32::from(counted);
                !counted
            });
            counts.push(ReadyCount { runtime: kept.runtime.clone(), size: kept.size, wanted: kept.count, held });
        }
        counts
    }
}
