//! Creating a box.

use std::fmt;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use icebox_rootfs::{Check, CloneMethod, Content, Volume};
use tokio::sync::oneshot;

use super::build::BoxRoot;
use super::launch::{ReadyDisk, Start, remove_run_dir, storage_of};
use super::started::Started;
use super::{Boxes, Entry, Meter, Passed, Phase, View, Write, blocking};
use crate::clock;
use crate::db::{HEADERS, LogRow};
use crate::domain::{BoxRecord, BoxSettings, BoxState, Reservation, VolumeRequest};
use crate::error::{Cause, Error};
use crate::events::{Event, Fact};
use crate::refusal::Refusal;
use icebox_net::headers::HeaderRules;

/// A client's settings for a new box, already checked.
#[derive(Debug, Clone)]
pub struct NewBox {
    /// Account that will own it.
    pub account_id: String,
    /// Name.
    pub name: Option<String>,
    /// Settings.
    pub settings: BoxSettings,
    /// Life in seconds, for an ephemeral box.
    pub ttl_seconds: Option<u64>,
    /// Default idle time of the account.
    pub account_idle: Option<u64>,
    /// Headers that are added to its outgoing requests.
    pub headers: Option<Arc<HeaderRules>>,
    /// The layers below it; those of the current image if there are none.
    pub root: Option<BoxRoot>,
    /// Token for git's servers.
    pub github_token: Option<Secret>,
    /// Key of the agent's provider.
    pub agent_api_key: Option<Secret>,
    /// The disk that it starts with; a new one if there is none.
    pub origin: Option<Origin>,
    /// The volumes that it has. (Those of the settings are found by them.)
    pub volumes: Vec<VolumeRequest>,
}

/// The disk of another box, at one moment.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The content.
    pub content: Content,
    /// The base image that it lies on.
    pub image: Option<String>,
}

/// The disk of a new box.
pub(super) struct NewDisk {
    pub(super) volume: Volume,
    pub(super) ready: ReadyDisk,
    /// Its flush.
    pub(super) flushing: tokio::task::JoinHandle<Result<(), Error>>,
}

/// A text that no log and no answer contains.
#[derive(Clone)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Boxes {
    /// Creates a box and starts it. On return the box is on disk and accepts work. Must not be cancelled.
    pub(crate) async fn create(&self, mut wanted: NewBox) -> Result<Arc<Entry>, Refusal> {
        let began = Instant::now();
        // Without them no box can be made.
        let given = wanted.root.as_ref().map(|root| root.name.clone());
        let of_snapshot = wanted.origin.as_ref().and_then(|origin| origin.image.as_deref());
        let (image, images_stay) = match given {
            Some(image) => (image, None),
            None => {
                let (image, stay) = self.image_for_new(wanted.settings.runtime.as_deref(), of_snapshot).await?;
                (image, Some(stay))
            }
        };
        let _creation = self.inner.ready.creation();
        let promises = self.inner.config.storage.promised_percent_max.is_some();
        let claims = match promises || !wanted.volumes.is_empty() {
            true => Some(self.inner.claims.lock().await),
            false => None,
        };
        self.check_promises(wanted.settings.disk_gib()).await?;
        wanted.settings.volumes = self.free_volumes(&wanted.account_id, &wanted.volumes).await?;
        let ready = self.take_ready(&wanted, &image).await;
        let reservation = match &ready {
            Some(ready) => ready.reservation.clone(),
            None => {
                self.check_cgroup_parent()?;
                self.check_free_space().await?;
                self.check_device(wanted.settings.disk_gib())?;
                self.inner.reservations.take().await?
            }
        };
        let entry = match self.enter(&wanted, &reservation, image) {
            Ok(entry) => entry,
            Err(refusal) => {
                match ready {
                    Some(ready) => self.put_back_ready(ready),
                    None => self.inner.reservations.put_back(reservation).await,
                }
                return Err(refusal);
            }
        };
        drop((images_stay, claims));
        let life = entry.lock_life().await;
        let made = match ready {
            Some(ready) => self.claim(&entry, ready, &wanted, began).await,
            None => self.make(&entry, &reservation, &wanted, began).await,
        };
        match made {
            Ok(created) => self.open_for_work(&entry, created),
            Err(refusal) => {
                tracing::error!(box_id = entry.id, reason = refusal.chain(), "a box could not be created");
                entry.change_view(|view| view.phase = Phase::Deleting);
                self.forget(&entry.id);
                drop(life);
                self.unmake(reservation);
                return Err(refusal);
            }
        }
        drop(life);
        Ok(entry)
    }

    /// Puts the box into the table, if its name and the account's limit allow it.
    fn enter(&self, wanted: &NewBox, reservation: &Reservation, image: String) -> Result<Arc<Entry>, Refusal> {
        let now = clock::unix_ms();
        let lifetime = wanted.ttl_seconds.map(|seconds| i64::try_from(seconds).unwrap_or(i64::MAX / 2000) * 1000);
        let record = BoxRecord {
            id: reservation.box_id.clone(),
            account_id: wanted.account_id.clone(),
            name: wanted.name.clone(),
            state: BoxState::Ready,
            settings: wanted.settings.clone(),
            image: Some(image.clone()),
            uid_base: reservation.uid_base,
            incarnation: None,
            created_ms: now,
            updated_ms: now,
            expires_ms: lifetime.map(|ms| now + ms),
            address: None,
        };
        let view = View {
            phase: Phase::Creating,
            handle: self.open_handle(&record.id, record.uid_base)?,
            uid_base: record.uid_base,
            image: Some(image),
            incarnation: None,
            error: None,
            damaged: false,
            adopted: true,
            range_held: true,
            pair: None,
            headers: wanted.headers.clone(),
        };
        let idle = self.idle_in_force(&record.settings, wanted.account_idle);
        let passed = Passed::new(self.inner.config.passed_bytes_per_second_max);
        let entry = Arc::new(Entry::new(&record, view, idle, Meter::new(&[]), passed, 0));
        let mut table = self.inner.table.write().unwrap_or_else(PoisonError::into_inner);
        let is_mine = |other: &Entry| other.account_id == wanted.account_id && other.view().phase != Phase::Deleting;
        if let Some(name) = &wanted.name
            && table.values().any(|other| other.name.as_ref() == Some(name) && is_mine(other))
        {
            return Err(Refusal::Conflict(format!("a box named '{name}' exists already")));
        }
        if table.count_of(&wanted.account_id) >= self.inner.config.boxes_per_account_max as usize {
            let most = self.inner.config.boxes_per_account_max;
            return Err(Refusal::Limit(format!("an account has at most {most} boxes; delete some")));
        }
        // Last: no step after it may fail, because the address would not be released.
        let pair = self.assign_addresses(&record.id)?;
        entry.change_view(|view| view.pair = pair);
        table.insert(Arc::clone(&entry));
        Ok(entry)
    }

    /// Disk, processes, record. The lifecycle lock is held. `began`: the time of the request.
    async fn make(
        &self,
        entry: &Arc<Entry>,
        reservation: &Reservation,
        wanted: &NewBox,
        began: Instant,
    ) -> Result<(Started, Event), Refusal> {
        let settings = entry.settings();
        let (size, disk_gib) = (settings.size, settings.disk_gib());
        let rights = entry.rights();
        let (pair, image) = (entry.view().pair, self.image_of(entry).await?);
        let (root, uid_base) = (wanted.root.clone(), reservation.uid_base);
        let volumes = settings.volumes;
        let start = Start { id: entry.id.clone(), size, image, root, uid_base, pair, rights, volumes };
        let NewDisk { volume, ready, flushing } = self.make_disk(&entry.id, disk_gib, wanted.origin.clone()).await?;
        let started = self.start(&start, ready).await;
        // A power cut after the answer must not remove the disk.
        let flushed = flushing.await;
        let started = started?;
        flushed.map_err(|_| Error::new("flush the disk", &entry.id, Cause::WorkerEnded))??;
        let storage = storage_of(&volume, &entry.id);
        self.record_new(entry, wanted, started, storage, began).await
    }

    /// Writes the record of a box that has been started, in place of its reservation.
    pub(super) async fn record_new(
        &self,
        entry: &Arc<Entry>,
        wanted: &NewBox,
        started: Started,
        storage: Option<u64>,
        began: Instant,
    ) -> Result<(Started, Event), Refusal> {
        entry.change_view(|view| {
            view.handle = started.handle.clone();
            view.incarnation = Some(started.incarnation.clone());
        });
        let sample = entry.meter.read(&entry.id, &started.handle, storage, Write::Always, "create");
        let unread = || Error::new("read the counters of", &entry.id, Cause::Invalid("its cgroup cannot be read"));
        let sample = sample.ok_or_else(unread)?;
        let mut secrets = self.seal_secrets(&entry.id, wanted)?;
        secrets.extend(self.seal_headers(entry)?.map(|sealed| (HEADERS, sealed)));
        let (launch, warnings) = (started.took, started.warnings.clone());
        let created = entry.event(Fact::Created { took: began.elapsed(), launch, warnings });
        self.inner.db.insert_box(&entry.record(), secrets, sample, LogRow::of(&created)).await?;
        Ok((started, created))
    }

    /// Makes the disk of a box, readies it for the start, and flushes it beside the start. One thread does all of this: the
    /// flush goes on in the thread that has told of the disk.
    pub(super) async fn make_disk(
        &self,
        box_id: &str,
        disk_gib: u32,
        origin: Option<Origin>,
    ) -> Result<NewDisk, Refusal> {
        let (store, id, run_dir) = (Arc::clone(&self.inner.store), box_id.to_owned(), self.run_dir(box_id));
        let (tell, told) = oneshot::channel();
        let flushing = tokio::task::spawn_blocking(move || {
            let made = store.balance().and_then(|()| match origin {
                Some(origin) => {
                    let (volume, method) = store.create_volume_from(&id, &origin.content, disk_gib)?;
                    volume.check(Check::IfMarked)?;
                    Ok((volume, method))
                }
                None => store.create_volume(&id, disk_gib),
            });
            let made = made.map_err(|cause| Error::new("make the disk", &id, cause));
            let made = made.and_then(|(volume, method)| Ok((ReadyDisk::make(&volume, run_dir)?, volume, method)));
            let volume = made.as_ref().ok().map(|(_, volume, _)| volume.clone());
            // A creation is not cancelled. Without a receiver the daemon is stopping.
            let _ = tell.send(made);
            let flush = |volume: Volume| volume.sync().map_err(|cause| Error::new("flush the disk", &id, cause));
            volume.map_or(Ok(()), flush)
        });
        let ended = |_| Error::new("make the disk", box_id, Cause::WorkerEnded);
        let (ready, volume, method) = told.await.map_err(ended)?.map_err(|error| does_not_fit(error, disk_gib))?;
        if method != CloneMethod::Reflink {
            tracing::debug!(box_id, ?method, "the disk was copied, not reflinked");
        }
        Ok(NewDisk { volume, ready, flushing })
    }

    /// Finishes the creation: the box accepts requests, its creation is published, its death is watched, and the clocks
    /// are notified of it.
    fn open_for_work(&self, entry: &Arc<Entry>, (started, created): (Started, Event)) {
        entry.change_view(|view| view.phase = Phase::Ready);
        entry.activity.restart(0);
        // Its counter of traffic began at its start too.
        entry.activity.saw_traffic(0);
        if entry.settings().init_command.is_some() {
            // It starts something, as after a start on the disk.
            entry.activity.woken();
        }
        self.inner.events.publish(created);
        self.watch_death(entry);
        self.start_clock();
        self.inner.number.notify_one();
        if entry.expires_ms.is_some() {
            self.inner.expiring.notify_one();
        }
        tracing::info!(box_id = entry.id, pid = started.incarnation.pid, "created");
    }

    /// Removes the remains of a failed creation, in the background.
    fn unmake(&self, reservation: Reservation) {
        let boxes = self.clone();
        tokio::spawn(async move {
            boxes.erase_reserved(reservation).await;
            boxes.reap_orphans().await;
        });
    }

    /// Removes everything that was made for a reservation, and releases it. If something is left, the operator is shown it.
    pub(super) async fn erase_reserved(&self, reservation: Reservation) {
        match self.erase(&reservation.box_id, reservation.uid_base).await {
            true => self.give_back(reservation),
            false => self.note_stuck(reservation),
        }
    }

    /// Removes everything of this id except records: processes, cgroup, disk, run directory. Returns true if all of it
    /// is gone.
    pub(super) async fn erase(&self, id: &str, uid_base: u32) -> bool {
        let gone = self.erase_parts(id, uid_base).await;
        if let Err(refusal) = &gone {
            tracing::error!(
                box_id = id,
                reason = refusal.chain(),
                "something of a box is left; the next start tries again"
            );
        }
        gone.is_ok()
    }

    async fn erase_parts(&self, id: &str, uid_base: u32) -> Result<(), Refusal> {
        self.kill_everywhere(id, uid_base).await?;
        self.give_up_network(id).await?;
        if let Some(entry) = self.entry(id) {
            self.forget_points(&entry).await;
        }
        let (boxes, store, id_too) = (self.clone(), Arc::clone(&self.inner.store), id.to_owned());
        let run_dir = self.run_dir(id);
        let removed = tokio::task::spawn_blocking(move || {
            boxes.remove_cgroups(&id_too, uid_base)?;
            store.remove_volume(&id_too).map_err(|cause| Error::new("remove the disk of", &id_too, cause))?;
            remove_run_dir(&run_dir)
        });
        match removed.await {
            Ok(done) => done.map_err(Refusal::from),
            Err(_) => Err(Refusal::Failed(Error::new("remove the parts of", id, Cause::WorkerEnded))),
        }
    }

    /// Makes the removal of disks durable. Must precede the removal of the record that refers to the disk: a power cut
    /// between the two must leave a record without a disk, not a disk without a record.
    pub(super) async fn sync_removals(&self) -> Result<(), Error> {
        let flush = || {
            let store = Arc::clone(&self.inner.store);
            blocking("flush the removal of disks", move || store.sync_removals())
        };
        self.inner.removals.wait(flush).await
    }

    /// Releases an unused reservation.
    pub(super) fn give_back(&self, reservation: Reservation) {
        self.inner.ranges.give_back(reservation.uid_base, clock::unix_ms());
        let boxes = self.clone();
        tokio::spawn(async move {
            let released = match boxes.sync_removals().await {
                Ok(()) => boxes.inner.db.release(&reservation).await,
                Err(error) => Err(error),
            };
            if let Err(error) = released {
                // The next start of the daemon finds and releases it.
                tracing::warn!(error = error.chain(), "cannot release a reservation");
            }
        });
    }
}

/// The refusal of a copy whose files do not fit into the size asked for.
pub(super) fn does_not_fit(error: Error, disk_gib: u32) -> Refusal {
    match error.cause() {
        Cause::Rootfs(cause) if cause.kind() == icebox_rootfs::ErrorKind::TooSmall => Refusal::Invalid(format!(
            "the files of the copied disk do not fit into a disk of {disk_gib} GiB; ask for a larger size"
        )),
        _ => error.into(),
    }
}
