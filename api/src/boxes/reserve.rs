//! Ids and uid ranges reserved for future boxes.
//!
//! The id of a box must be on disk before any of its resources exists; otherwise a crash leaves resources without a
//! record. That costs a flush of the disk; so a few ids are written ahead, and a new box takes one without waiting.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Mutex;

use super::uids::UidRanges;
use crate::clock;
use crate::db::Db;
use crate::domain::Reservation;
use crate::error::{Cause, Error};
use crate::ids;

/// Number of reservations kept ready.
const READY_MAX: usize = 16;
/// Below this number, more are made in the background.
const READY_LOW: usize = 8;

/// The reservations that are ready.
#[derive(Debug, Clone)]
pub(super) struct Reservations {
    db: Db,
    ranges: Arc<UidRanges>,
    ready: Arc<Mutex<VecDeque<Reservation>>>,
    /// The daemon is stopping: no more reservations.
    closed: Arc<AtomicBool>,
}

impl Reservations {
    /// No reservations yet.
    #[must_use]
    pub(super) fn new(db: Db, ranges: Arc<UidRanges>) -> Self {
        Self { db, ranges, ready: Arc::default(), closed: Arc::default() }
    }

    /// A reservation for a new box; waits for the disk only if none is ready.
    pub(super) async fn take(&self) -> Result<Reservation, Error> {
        let mut ready = self.ready.lock().await;
        if ready.is_empty() {
            self.refill(&mut ready).await?;
        }
        let taken = ready.pop_front();
        if ready.len() < READY_LOW {
            let this = self.clone();
            tokio::spawn(async move { this.prepare().await });
        }
        taken.ok_or_else(|| Error::new("reserve a box id", "", Cause::Exhausted("box id")))
    }

    /// Takes back an unused reservation.
    pub(super) async fn put_back(&self, unused: Reservation) {
        self.ready.lock().await.push_front(unused);
    }

    /// Releases all of them. No resource was ever made for them, so the ranges need no rest.
    pub(super) async fn release_all(&self) {
        let unused: Vec<Reservation> = {
            let mut ready = self.ready.lock().await;
            self.closed.store(true, Ordering::SeqCst);
            ready.drain(..).collect()
        };
        for one in &unused {
            self.ranges.forget(one.uid_base);
        }
        if let Err(error) = self.db.unreserve(unused).await {
            // The next start finds and releases them.
            tracing::warn!(error = error.chain(), "cannot release the reserved box ids");
        }
    }

    /// Refills. A failure now is harmless: the next box retries and reports it.
    pub(super) async fn prepare(&self) {
        let mut ready = self.ready.lock().await;
        if let Err(error) = self.refill(&mut ready).await {
            tracing::warn!(error = error.chain(), "cannot reserve box ids");
        }
    }

    async fn refill(&self, ready: &mut VecDeque<Reservation>) -> Result<(), Error> {
        if self.closed.load(Ordering::SeqCst) {
            return Ok(());
        }
        let now = clock::unix_ms();
        let mut wanted = Vec::new();
        for _ in ready.len()..READY_MAX {
            match self.ranges.take(now) {
                Ok(uid_base) => wanted.push(Reservation { box_id: ids::new_box_id(), uid_base }),
                // The last ranges of the host: use the ones that are left.
                Err(error) if wanted.is_empty() && ready.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        let asked: Vec<u32> = wanted.iter().map(|one| one.uid_base).collect();
        let made = self.db.reserve(wanted).await;
        let kept: Vec<u32> = made.iter().flatten().map(|one| one.uid_base).collect();
        for uid_base in asked.into_iter().filter(|base| !kept.contains(base)) {
            self.ranges.give_back(uid_base, 0);
        }
        ready.extend(made?);
        Ok(())
    }
}
