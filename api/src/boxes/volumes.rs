//! Volumes: files that outlive boxes. A volume has one box that writes to it, or any number of boxes that read it.
//!
//! A box has its volumes for life: from its creation to the end of its deletion, also while it sleeps or has no processes. Which
//! boxes have a volume is in their settings only.
//!
//! The order on disk: the record (`creating`), the file, the record (`ready`). A deletion begins with the record. So a crash
//! leaves a record without a usable file or a file whose record says that it is deleted; the next start removes both.

use std::collections::HashSet;
use std::sync::Arc;

use super::storage::reason;
use super::{Boxes, Phase, blocking, to_the_end};
use crate::clock;
use crate::db::Inserted;
use crate::domain::{Stored, Volume, VolumeRequest, VolumeState, VolumeUse};
use crate::error::{Cause, Error};
use crate::ids;
use crate::refusal::Refusal;
use icebox_rootfs::{AttachedData, Grown, VOLUME_SIZE_GIB_MAX};

/// Most volumes of an account.
const PER_ACCOUNT_MAX: usize = 256;
/// Size of a volume for which none is asked.
const SIZE_GIB_DEFAULT: u32 = 10;

/// A volume, and the boxes that have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeReport {
    /// Its record.
    pub volume: Volume,
    /// Bytes that it occupies now.
    pub allocated_bytes: u64,
    /// The boxes that have it.
    pub users: Vec<VolumeUser>,
}

/// A box that has a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeUser {
    /// Id of the box.
    pub box_id: String,
    /// Where it sees the volume.
    pub path: String,
    /// It can only read it.
    pub read_only: bool,
    /// It is being deleted.
    going: bool,
}

impl Boxes {
    /// Makes a volume. On return it is on disk.
    pub async fn create_volume(
        &self,
        account_id: &str,
        name: &str,
        size_gib: Option<u32>,
    ) -> Result<VolumeReport, Refusal> {
        ids::check_volume_name(name).map_err(Refusal::Invalid)?;
        let size_gib = size_gib.unwrap_or(SIZE_GIB_DEFAULT);
        if !(1..=VOLUME_SIZE_GIB_MAX).contains(&size_gib) {
            return Err(Refusal::Invalid(format!("size_gib must be 1 to {VOLUME_SIZE_GIB_MAX}")));
        }
        self.check_free_space().await?;
        let now_ms = clock::unix_ms();
        let volume = Volume {
            id: ids::new_volume_id(),
            account_id: account_id.to_owned(),
            name: name.to_owned(),
            state: VolumeState::Creating,
            size_gib,
            created_ms: now_ms,
            stored: Stored { measured_ms: now_ms, ..Stored::default() },
        };
        let boxes = self.clone();
        to_the_end(async move {
            let claims = boxes.inner.claims.lock().await;
            boxes.check_promises(size_gib).await?;
            match boxes.inner.db.insert_volume(&volume, PER_ACCOUNT_MAX).await? {
                Inserted::Done => {}
                Inserted::NameTaken => {
                    return Err(Refusal::Conflict(format!("a volume named '{}' exists already", volume.name)));
                }
                Inserted::TooMany => {
                    let text = format!("an account has at most {PER_ACCOUNT_MAX} volumes; delete some");
                    return Err(Refusal::Limit(text));
                }
            }
            drop(claims);
            match boxes.make_volume(&volume).await {
                Ok(allocated_bytes) => {
                    tracing::info!(volume = volume.id, name = volume.name, size_gib, "a volume was made");
                    let volume = Volume { state: VolumeState::Ready, ..volume };
                    Ok(VolumeReport { volume, allocated_bytes, users: Vec::new() })
                }
                Err(error) => {
                    boxes.unmake_volume(&volume.id).await;
                    Err(error.into())
                }
            }
        })
        .await
    }

    async fn make_volume(&self, volume: &Volume) -> Result<u64, Error> {
        let (store, id, size_gib) = (Arc::clone(&self.inner.store), volume.id.clone(), volume.size_gib);
        let bytes = blocking("make the volume", move || {
            store.balance()?;
            let made = store.create_data(&id, size_gib)?;
            made.sync()?;
            made.allocated_bytes()
        });
        let bytes = bytes.await?;
        self.inner.db.finish_volume(&volume.id, bytes).await?;
        Ok(bytes)
    }

    /// Removes a volume: its record first, then its file. What cannot be removed now is removed at the next start.
    async fn unmake_volume(&self, id: &str) {
        if let Err(error) = self.inner.db.delete_volume(id).await {
            return tracing::error!(volume = id, error = error.chain(), "the record of a volume stays");
        }
        self.remove_volume_file(id).await;
    }

    async fn remove_volume_file(&self, id: &str) {
        let (store, file) = (Arc::clone(&self.inner.store), id.to_owned());
        if let Err(error) = blocking("remove the volume", move || store.remove_data(&file)).await {
            tracing::error!(volume = id, error = error.chain(), "the file of a deleted volume stays");
        }
    }

    /// The volumes of an account, by name.
    pub async fn volumes_of(&self, account_id: &str) -> Result<Vec<VolumeReport>, Refusal> {
        let mut reports = Vec::new();
        for volume in self.inner.db.volumes(account_id).await? {
            reports.push(self.report_of(volume).await?);
        }
        Ok(reports)
    }

    /// A volume of an account.
    pub async fn volume_named(&self, account_id: &str, name: &str) -> Result<VolumeReport, Refusal> {
        self.report_of(self.find_volume(account_id, name).await?).await
    }

    async fn find_volume(&self, account_id: &str, name: &str) -> Result<Volume, Refusal> {
        let unknown =
            || Refusal::NotFound(format!("volume '{}' does not exist", name.chars().take(80).collect::<String>()));
        self.inner.db.volume(account_id, name).await?.ok_or_else(unknown)
    }

    async fn report_of(&self, volume: Volume) -> Result<VolumeReport, Refusal> {
        let allocated_bytes = self.bytes_of_volume(&volume.id).await?;
        let users = self.users_of(&volume.id);
        Ok(VolumeReport { volume, allocated_bytes, users })
    }

    async fn bytes_of_volume(&self, id: &str) -> Result<u64, Error> {
        let (store, id) = (Arc::clone(&self.inner.store), id.to_owned());
        let measure = move || store.data(&id)?.map_or(Ok(0), |volume| volume.allocated_bytes());
        blocking("measure the volume", measure).await
    }

    /// The boxes that have a volume, by id.
    fn users_of(&self, id: &str) -> Vec<VolumeUser> {
        let mut users = Vec::new();
        for entry in self.all() {
            if let Some(found) = entry.settings().volumes.into_iter().find(|volume| volume.id == id) {
                let going = entry.view().phase == Phase::Deleting;
                let VolumeUse { path, read_only, .. } = found;
                users.push(VolumeUser { box_id: entry.id.clone(), path, read_only, going });
            }
        }
        users.sort_by(|one, other| one.box_id.cmp(&other.box_id));
        users
    }

    /// Deletes a volume that no box has, with its files.
    pub async fn delete_volume(&self, account_id: &str, name: &str) -> Result<(), Refusal> {
        let (boxes, account_id, name) = (self.clone(), account_id.to_owned(), name.to_owned());
        to_the_end(async move {
            let _claims = boxes.inner.claims.lock().await;
            let volume = boxes.find_volume(&account_id, &name).await?;
            let users = boxes.users_of(&volume.id);
            if !users.is_empty() {
                let text = format!("the volume '{name}' is in use: {}; delete the box first", names(&users));
                return Err(Refusal::Conflict(text));
            }
            boxes.inner.db.delete_volume(&volume.id).await?;
            boxes.remove_volume_file(&volume.id).await;
            tracing::info!(volume = volume.id, name, "a volume was deleted");
            Ok(())
        })
        .await
    }

    /// Grows a volume, also while a box writes to it. The record is changed first: a growth that is cut short is completed at
    /// the next use of the volume. Answers with the reason why its file system grows at its next use only.
    pub async fn resize_volume(
        &self,
        account_id: &str,
        name: &str,
        size_gib: u32,
    ) -> Result<(VolumeReport, Option<&'static str>), Refusal> {
        let (boxes, account_id, name) = (self.clone(), account_id.to_owned(), name.to_owned());
        to_the_end(async move {
            let _claims = boxes.inner.claims.lock().await;
            let volume = boxes.find_volume(&account_id, &name).await?;
            let now = volume.size_gib;
            if size_gib < now {
                return Err(Refusal::Invalid(format!("the volume has {now} GiB, and it cannot become smaller")));
            }
            if size_gib > VOLUME_SIZE_GIB_MAX {
                return Err(Refusal::Invalid(format!("size_gib must be {now} to {VOLUME_SIZE_GIB_MAX}")));
            }
            let readers: Vec<_> = boxes.users_of(&volume.id).into_iter().filter(|user| user.read_only).collect();
            if !readers.is_empty() {
                let text = format!("the volume '{name}' cannot grow while boxes read it: {}", names(&readers));
                return Err(Refusal::Conflict(text));
            }
            boxes.check_free_space().await?;
            boxes.check_promises(size_gib - now).await?;
            boxes.inner.db.grow_volume(&volume.id, size_gib).await?;
            let grown = boxes.grow_file(&volume.id, size_gib).await?;
            tracing::info!(volume = volume.id, size_gib, ?grown, "a volume has grown");
            let report = boxes.report_of(Volume { size_gib, ..volume }).await?;
            Ok((report, reason(grown)))
        })
        .await
    }

    async fn grow_file(&self, id: &str, size_gib: u32) -> Result<Grown, Error> {
        let (store, file) = (Arc::clone(&self.inner.store), id.to_owned());
        let grow = move || store.data(&file)?.map(|volume| volume.grow(size_gib)).transpose();
        blocking("grow the volume", grow).await?.ok_or_else(|| missing(id))
    }

    /// Finds the volumes that a new box asks for, if it may have them. The caller holds `claims` until the new box is in the
    /// table: no other box gets one meanwhile.
    pub(super) async fn free_volumes(
        &self,
        account_id: &str,
        wanted: &[VolumeRequest],
    ) -> Result<Vec<VolumeUse>, Refusal> {
        let mut uses = Vec::new();
        for VolumeRequest { name, path, read_only } in wanted {
            let volume = self.find_volume(account_id, name).await?;
            check_free(name, *read_only, &self.users_of(&volume.id))?;
            uses.push(VolumeUse { id: volume.id, name: name.clone(), path: path.clone(), read_only: *read_only });
        }
        Ok(uses)
    }

    /// Attaches the volumes of a box that is about to start.
    pub(super) async fn attach_volumes(&self, uses: &[VolumeUse]) -> Result<Vec<AttachedData>, Refusal> {
        let mut attached = Vec::new();
        for one in uses {
            let (store, id, read_only) = (Arc::clone(&self.inner.store), one.id.clone(), one.read_only);
            let attach = move || store.data(&id)?.map(|volume| volume.attach_data(read_only)).transpose();
            attached.push(blocking("attach the volume", attach).await?.ok_or_else(|| missing(&one.id))?);
        }
        Ok(attached)
    }

    /// Measures all volumes and writes what has changed, for the bill.
    pub(super) async fn measure_volumes(&self) -> Result<(), Error> {
        let mut measures = Vec::new();
        for volume in self.inner.db.all_volumes().await? {
            let bytes = self.bytes_of_volume(&volume.id).await?;
            if volume.state == VolumeState::Ready && bytes != volume.stored.bytes {
                measures.push((volume.id, bytes));
            }
        }
        if measures.is_empty() { Ok(()) } else { self.inner.db.measure_volumes(measures).await }
    }

    /// Settles volumes whose making or deletion was interrupted. A file without any record may hold an owner's data: it is
    /// reported, never removed.
    pub(crate) async fn settle_volumes(&self) -> Result<(), Error> {
        let store = Arc::clone(&self.inner.store);
        let files = blocking("list the volumes", move || store.list_data()).await?;
        let mut unclaimed: HashSet<String> = files.into_iter().collect();
        for volume in self.inner.db.all_volumes().await? {
            let has_file = unclaimed.remove(&volume.id);
            if volume.state == VolumeState::Creating {
                self.unmake_volume(&volume.id).await;
            } else if !has_file {
                tracing::error!(volume = volume.id, name = volume.name, "the file of a volume is missing");
            }
        }
        for id in self.inner.db.deleted_volumes(unclaimed.iter().cloned().collect()).await? {
            unclaimed.remove(&id);
            self.remove_volume_file(&id).await;
        }
        for volume in unclaimed {
            tracing::warn!(
                volume,
                "there is a volume without a record; `icebox doctor` shows it if it is one of Icebox"
            );
        }
        Ok(())
    }
}

/// Refuses a volume that others have in a way that excludes this use.
fn check_free(name: &str, read_only: bool, users: &[VolumeUser]) -> Result<(), Refusal> {
    let excluding: Vec<VolumeUser> = users.iter().filter(|user| !(read_only && user.read_only)).cloned().collect();
    if excluding.is_empty() {
        return Ok(());
    }
    let (names, rule) =
        (names(&excluding), "a volume has one box that writes to it, or any number of boxes that read it");
    Err(Refusal::Conflict(match excluding.iter().find(|user| !user.read_only) {
        Some(_) if read_only => {
            format!("the volume '{name}' is in use by a box that writes to it: {names}; {rule}, never both")
        }
        Some(_) => format!("the volume '{name}' is in use by a box that writes to it: {names}; {rule}"),
        None => format!("the volume '{name}' is in use by boxes that read it: {names}; {rule}"),
    }))
}

/// The boxes in words.
fn names(users: &[VolumeUser]) -> String {
    const SHOWN_MAX: usize = 5;
    let one = |user: &VolumeUser| format!("{}{}", user.box_id, if user.going { " (being deleted)" } else { "" });
    let mut list: Vec<String> = users.iter().take(SHOWN_MAX).map(one).collect();
    if users.len() > SHOWN_MAX {
        list.push(format!("{} more", users.len() - SHOWN_MAX));
    }
    list.join(", ")
}

fn missing(id: &str) -> Error {
    Error::new("find the volume", id, Cause::Invalid("its file is missing"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(box_id: &str, read_only: bool) -> VolumeUser {
        VolumeUser { box_id: box_id.into(), path: "/data".into(), read_only, going: false }
    }

    #[test]
    fn a_volume_has_one_writer_or_many_readers() {
        let (writer, reader) = (user("w", false), user("r", true));
        assert!(check_free("v", false, &[]).is_ok() && check_free("v", true, &[]).is_ok());
        assert!(check_free("v", true, &[reader.clone(), user("s", true)]).is_ok());
        let refused =
            |read_only, users: &[VolumeUser]| check_free("v", read_only, users).expect_err("it is in use").to_string();
        let text = refused(false, std::slice::from_ref(&writer));
        assert!(text.contains("writes to it: w;"), "{text}");
        let text = refused(true, &[writer]);
        assert!(text.contains("writes to it: w;") && text.contains("never both"), "{text}");
        let text = refused(false, &[reader]);
        assert!(text.contains("boxes that read it: r;"), "{text}");
    }

    #[test]
    fn many_users_are_counted_and_one_that_goes_is_marked() {
        let mut users: Vec<VolumeUser> = (0..8).map(|n| user(&format!("b{n}"), true)).collect();
        users[0].going = true;
        assert_eq!(names(&users), "b0 (being deleted), b1, b2, b3, b4, 3 more");
    }
}
