//! Undo points: the disk of a box before each of its last commands, for boxes whose owners ask for it.
//!
//! A point is a copy that shares its blocks with the disk, where the file system can share them. It is made as for a snapshot,
//! with the box held still for a moment, but has no digest: `icebox_rootfs` tells what is compared instead. Points are bounded
//! in number and age, belong to one box, and go with it. Their blocks are in the bill of the box.
//!
//! Leaves out: taking a box back, which ends its processes (`lifecycle::undo`).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use icebox_rootfs::{Copy, PointState};
use tokio::sync::MutexGuard;

use super::{Boxes, Entry, blocking, to_the_end};
use crate::clock;
use crate::domain::{Undo, UndoPoint};
use crate::error::Error;
use crate::ids;
use crate::refusal::Refusal;

/// Context of the signatures.
const SIGNED_FOR: &str = "undo";
/// Most commands that can be taken back.
const STEPS_MAX: u32 = 20;
/// Longest age of a point: a week.
const AGE_SECONDS_MAX: u64 = 7 * 24 * 3600;
/// What counts if the owner does not say.
const STEPS_DEFAULT: u32 = 5;
const AGE_SECONDS_DEFAULT: u64 = 24 * 3600;

impl Entry {
    /// Its disk is copied before each command.
    pub(crate) fn has_undo(&self) -> bool {
        self.configured().settings.undo.is_some()
    }

    /// Its points, the newest first.
    #[must_use]
    pub fn undo_points(&self) -> Vec<UndoPoint> {
        self.points.change(|list| list.iter().rev().cloned().collect())
    }

    /// Waits until no other request takes the box back.
    pub(crate) async fn lock_undo(&self) -> MutexGuard<'_, ()> {
        self.points.busy.lock().await
    }
}

impl Boxes {
    /// Copies the disk of a box before each command from now on, within these bounds.
    pub async fn set_undo(
        &self,
        entry: &Arc<Entry>,
        account_idle: Option<u64>,
        steps: Option<u32>,
        max_age_seconds: Option<u64>,
    ) -> Result<Undo, Refusal> {
        let before = entry.settings().undo;
        let undo = Undo {
            steps: steps.or(before.map(|undo| undo.steps)).unwrap_or(STEPS_DEFAULT),
            max_age_seconds: max_age_seconds.or(before.map(|undo| undo.max_age_seconds)).unwrap_or(AGE_SECONDS_DEFAULT),
        };
        check(undo)?;
        self.change_settings(entry, account_idle, |settings| settings.undo = Some(undo)).await?;
        self.remove_points(entry.points.take_surplus(undo, clock::unix_ms())).await;
        Ok(undo)
    }

    /// Copies the disk of a box no longer, and removes its points.
    pub async fn end_undo(&self, entry: &Arc<Entry>, account_idle: Option<u64>) -> Result<(), Refusal> {
        self.change_settings(entry, account_idle, |settings| settings.undo = None).await?;
        self.forget_points(entry).await;
        Ok(())
    }

    /// Makes a point before a command. The command must not run without it.
    pub(crate) async fn take_undo_point(&self, entry: &Arc<Entry>, command: &str) -> Result<(), Refusal> {
        let (boxes, entry, command) = (self.clone(), Arc::clone(entry), command.to_owned());
        let taken = to_the_end(async move { boxes.make_point(&entry, command).await });
        let why = |what: String| format!("the command was not started, since the undo point before it failed: {what}");
        taken.await.map_err(|refusal| match refusal {
            Refusal::NoSpace(text) => Refusal::NoSpace(why(text)),
            Refusal::Conflict(text) => Refusal::Conflict(why(text)),
            other => other,
        })
    }

    async fn make_point(&self, entry: &Arc<Entry>, command: String) -> Result<(), Refusal> {
        self.check_free_space().await?;
        let (store, id) = (Arc::clone(&self.inner.store), ids::new_undo_id());
        let (copy, stood) = self.with_still_disk(entry, move |source| store.copy(source)).await?;
        let taken_ms = clock::unix_ms();
        let (store, name) = (Arc::clone(&self.inner.store), id.clone());
        let kept = blocking("keep the undo point", move || store.keep_point(&copy, &name)).await?;
        let PointState { inode, length, changed } = kept.state;
        let size_bytes = kept.allocated_bytes;
        let mut point = UndoPoint { id, command, taken_ms, size_bytes, inode, length, changed, signature: Vec::new() };
        point.signature = self.inner.key.sign(SIGNED_FOR, &point.signed_text(&entry.id));
        tracing::debug!(box_id = entry.id, stood_ms = stood.as_millis(), "made an undo point");
        let Some(undo) = entry.settings().undo else {
            self.remove_points(vec![point.id]).await;
            return Ok(());
        };
        self.inner.db.insert_undo_point(&entry.id, &point);
        entry.points.change(|list| list.push(point));
        let surplus = entry.points.take_surplus(undo, taken_ms);
        if !surplus.is_empty() {
            let boxes = self.clone();
            tokio::spawn(async move { boxes.remove_points(surplus).await });
        }
        Ok(())
    }

    /// The newest point of a box, or the one that is wanted if it is the newest, and a copy of it.
    pub(crate) async fn copy_undo_point(
        &self,
        entry: &Arc<Entry>,
        wanted: Option<&str>,
    ) -> Result<(UndoPoint, Copy), Refusal> {
        if let Some(undo) = entry.settings().undo {
            self.remove_points(entry.points.take_surplus(undo, clock::unix_ms())).await;
        }
        let Some(point) = entry.undo_points().into_iter().next() else {
            let text = match entry.has_undo() {
                true => {
                    "there is no command to take back: none has run since undo is on, or all are taken back or too old"
                }
                false => "undo is off for this box; `icebox undo BOX --on` turns it on for the commands that follow",
            };
            return Err(Refusal::Conflict(text.into()));
        };
        if wanted.is_some_and(|wanted| wanted != point.id) {
            return Err(Refusal::Conflict(
                "another command has run in the box since; look again at what is undone".into(),
            ));
        }
        let damaged =
            || Refusal::Conflict("the undo point is damaged and cannot be used: it is not what was written".into());
        if !self.inner.key.is_signed(SIGNED_FOR, &point.signed_text(&entry.id), &point.signature) {
            tracing::error!(box_id = entry.id, point = point.id, "the record of an undo point was changed");
            return Err(damaged());
        }
        let state = PointState { inode: point.inode, length: point.length, changed: point.changed };
        let (store, id) = (Arc::clone(&self.inner.store), point.id.clone());
        let copy = blocking("copy the undo point", move || store.copy_point(&id, &state)).await;
        let copy = copy.map_err(|error| match error.cause() {
            crate::error::Cause::Rootfs(cause)
                if matches!(cause.kind(), icebox_rootfs::ErrorKind::Corrupt | icebox_rootfs::ErrorKind::NotFound) =>
            {
                tracing::error!(box_id = entry.id, error = error.chain(), "the file of an undo point was changed");
                damaged()
            }
            _ => error.into(),
        })?;
        Ok((point, copy))
    }

    /// Removes one point of a box.
    pub(crate) async fn forget_point(&self, entry: &Entry, id: &str) {
        entry.points.change(|list| list.retain(|point| point.id != id));
        self.remove_points(vec![id.to_owned()]).await;
    }

    /// Removes all points of a box.
    pub(crate) async fn forget_points(&self, entry: &Entry) {
        self.remove_points(entry.points.take()).await;
    }

    /// Removes the points that have become too old.
    pub(super) async fn forget_old_points(&self) {
        for entry in self.all() {
            if let Some(undo) = entry.settings().undo {
                self.remove_points(entry.points.take_surplus(undo, clock::unix_ms())).await;
            }
        }
    }

    /// Removes files and records. What cannot be removed now is removed at the next start.
    async fn remove_points(&self, ids: Vec<String>) {
        if ids.is_empty() {
            return;
        }
        let (store, files) = (Arc::clone(&self.inner.store), ids.clone());
        let removed =
            blocking("remove undo points", move || files.iter().try_for_each(|id| store.remove_point(id))).await;
        if let Err(error) = removed {
            tracing::error!(error = error.chain(), "the file of an undo point stays until the next start");
        }
        self.inner.db.delete_undo_points(ids);
    }

    /// Finds the points of an earlier run of the daemon. A file without a record, and a record without a file, is removed:
    /// an undo point is never the only copy of a disk.
    pub(crate) async fn settle_undo_points(&self) -> Result<(), Error> {
        let store = Arc::clone(&self.inner.store);
        let files = blocking("list the undo points", move || store.list_points()).await?;
        let files: HashSet<String> = files.into_iter().collect();
        let (mut found, mut lost): (HashMap<String, Vec<UndoPoint>>, Vec<String>) = Default::default();
        let mut known = HashSet::new();
        for (box_id, point) in self.inner.db.undo_points().await? {
            known.insert(point.id.clone());
            match self.entry(&box_id) {
                Some(_) if files.contains(&point.id) => found.entry(box_id).or_default().push(point),
                _ => lost.push(point.id),
            }
        }
        lost.extend(files.difference(&known).cloned());
        for (box_id, points) in found {
            if let Some(entry) = self.entry(&box_id) {
                entry.points.change(|list| *list = points);
            }
        }
        if !lost.is_empty() {
            tracing::info!(points = lost.len(), "removing undo points that were not finished or not removed");
        }
        self.remove_points(lost).await;
        Ok(())
    }
}

fn check(undo: Undo) -> Result<(), Refusal> {
    if !(1..=STEPS_MAX).contains(&undo.steps) {
        return Err(Refusal::Invalid(format!("steps must be 1 to {STEPS_MAX}")));
    }
    if !(1..=AGE_SECONDS_MAX).contains(&undo.max_age_seconds) {
        return Err(Refusal::Invalid(format!("max_age_seconds must be 1 to {AGE_SECONDS_MAX}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_have_bounds() {
        for (steps, max_age_seconds, good) in
            [(1, 1, true), (STEPS_MAX, AGE_SECONDS_MAX, true), (0, 1, false), (STEPS_MAX + 1, 1, false), (1, 0, false)]
        {
            assert_eq!(check(Undo { steps, max_age_seconds }).is_ok(), good, "{steps} {max_age_seconds}");
        }
        assert!(check(Undo { steps: 1, max_age_seconds: AGE_SECONDS_MAX + 1 }).is_err());
    }
}
