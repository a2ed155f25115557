//! Boxes and remains of an earlier run of the daemon.

use std::collections::HashSet;
use std::sync::Arc;

use futures::StreamExt as _;

use super::launch::remove_run_dir;
use super::{Boxes, Entry, Meter, Passed, Phase, View, blocking};
use crate::domain::{BoxRecord, BoxState, Reservation};
use crate::error::Error;

/// Remains of boxes that are removed at once.
const REMOVED_AT_ONCE: usize = 8;

impl Boxes {
    /// Puts a box from the database into the table.
    pub(crate) async fn restore(
        &self,
        record: BoxRecord,
        damage: Option<serde_json::Error>,
        account_idle: Option<u64>,
        last_run: u64,
    ) -> Result<(), Error> {
        let handle = self.find_handle(&record.id, record.uid_base)?;
        let alive = record
            .incarnation
            .as_ref()
            .is_some_and(|init| handle.alive(init.pid, init.start_time_ticks, &init.boot_id));
        if let Some(init) = record.incarnation.as_ref().filter(|_| alive) {
            self.watch_proc_files(&record.id, &handle, init);
        }
        // Before any new box can take it.
        let range_held = self.inner.ranges.keep(record.uid_base)?;
        if alive && !range_held {
            tracing::error!(
                box_id = record.id,
                uid_base = record.uid_base,
                "another daemon claims the uids of this box"
            );
        }
        let samples = self.inner.db.samples_of(&record.id).await?;
        // A box must not run without its headers: its requests would lack them, and its owner relies on them.
        let (headers, problem) = match self.open_headers(&record.id).await {
            Ok(headers) => (headers, damage.as_ref().map(|cause| format!("its record cannot be read: {cause}"))),
            Err(error) => (None, Some(format!("its attach_headers cannot be read: {}", error.chain()))),
        };
        let view = View {
            phase: if record.state == BoxState::Deleting { Phase::Deleting } else { Phase::Ready },
            handle,
            uid_base: record.uid_base,
            image: record.image.clone(),
            incarnation: record.incarnation.clone().filter(|_| alive),
            error: problem.clone(),
            damaged: problem.is_some(),
            adopted: false,
            range_held,
            pair: self.claim_addresses(&record),
            headers,
        };
        let idle = self.idle_in_force(&record.settings, account_idle);
        let passed = Passed::new(self.inner.config.passed_bytes_per_second_max);
        let entry = Arc::new(Entry::new(&record, view, idle, Meter::new(&samples), passed, last_run));
        let mut table = self.inner.table.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        table.insert(entry);
        Ok(())
    }

    /// Removes run directories without a box.
    pub(crate) fn sweep_run_dirs(&self) {
        let known: HashSet<String> = self.all().into_iter().map(|entry| entry.id.clone()).collect();
        let Ok(found) = std::fs::read_dir(self.inner.config.run_dir.join("boxes")) else { return };
        for path in found.flatten().map(|found| found.path()) {
            let ours = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| known.contains(name));
            if !ours && let Err(error) = remove_run_dir(&path) {
                tracing::warn!(error = error.chain(), "a run directory without a box stays");
            }
        }
    }

    /// A disk without a record may hold an owner's data: it is reported, never removed.
    pub(crate) async fn report_unknown_volumes(&self) {
        let store = Arc::clone(&self.inner.store);
        let volumes = match blocking("list the disks", move || store.list()).await {
            Ok(volumes) => volumes,
            Err(error) => return tracing::warn!(error = error.chain(), "cannot list the disks"),
        };
        let reserved = self.inner.db.reservations().await.unwrap_or_default();
        let known: HashSet<String> = self
            .all()
            .into_iter()
            .map(|entry| entry.id.clone())
            .chain(reserved.into_iter().map(|one| one.box_id))
            .collect();
        for volume in volumes.iter().filter(|volume| !known.contains(*volume)) {
            tracing::warn!(volume, "there is a disk without a box; `icebox doctor` shows it if it is one of Icebox");
        }
    }

    /// Removes the remains of boxes that were in creation, or ready, when the daemon died.
    pub(crate) async fn remove_half_made(&self, leftovers: Vec<Reservation>) {
        let remove = |leftover: Reservation| async move {
            if let Err(error) = self.inner.ranges.keep(leftover.uid_base) {
                tracing::warn!(error = error.chain(), "cannot hold a uid range");
            }
            self.erase_reserved(leftover).await;
        };
        futures::stream::iter(leftovers).for_each_concurrent(REMOVED_AT_ONCE, remove).await;
    }
}
