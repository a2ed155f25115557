//! The public URLs in memory, and the connections that are open through them.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::address::Target;
use crate::db::PublicUrlRow;

#[derive(Debug)]
pub(super) struct PublicUrl {
    pub(super) row: PublicUrlRow,
    /// Cancelled when it is deleted or replaced: its connections end.
    pub(super) closed: CancellationToken,
    /// Room for connections, shared by the URLs of its box.
    pub(super) room: Arc<Semaphore>,
}

#[derive(Debug)]
struct OfBox {
    room: Arc<Semaphore>,
    urls: BTreeMap<u16, Arc<PublicUrl>>,
}

#[derive(Debug)]
pub(super) struct Table {
    boxes: RwLock<HashMap<String, OfBox>>,
    connections_per_box_max: usize,
}

impl Table {
    pub(super) fn new(connections_per_box_max: u32) -> Self {
        Self { boxes: RwLock::default(), connections_per_box_max: connections_per_box_max as usize }
    }

    pub(super) fn find(&self, target: &Target) -> Option<Arc<PublicUrl>> {
        let boxes = self.boxes.read().unwrap_or_else(PoisonError::into_inner);
        boxes.get(&target.box_id)?.urls.get(&target.port).map(Arc::clone)
    }

    /// The URLs of a box, by port.
    pub(super) fn of_box(&self, box_id: &str) -> Vec<Arc<PublicUrl>> {
        let boxes = self.boxes.read().unwrap_or_else(PoisonError::into_inner);
        boxes.get(box_id).map_or_else(Vec::new, |known| known.urls.values().map(Arc::clone).collect())
    }

    /// Inserts one, replacing the one of the same port. Returns true if it is the first of its box.
    pub(super) fn put(&self, row: PublicUrlRow) -> bool {
        let mut boxes = self.boxes.write().unwrap_or_else(PoisonError::into_inner);
        let first = !boxes.contains_key(&row.box_id);
        let of_box = boxes.entry(row.box_id.clone()).or_insert_with(|| OfBox {
            room: Arc::new(Semaphore::new(self.connections_per_box_max)),
            urls: BTreeMap::new(),
        });
        let room = Arc::clone(&of_box.room);
        let port = row.port;
        let url = Arc::new(PublicUrl { row, closed: CancellationToken::new(), room });
        if let Some(old) = of_box.urls.insert(port, url) {
            old.closed.cancel();
        }
        first
    }

    pub(super) fn remove(&self, target: &Target) {
        let mut boxes = self.boxes.write().unwrap_or_else(PoisonError::into_inner);
        let removed = boxes.get_mut(&target.box_id).and_then(|known| known.urls.remove(&target.port));
        if let Some(old) = removed {
            old.closed.cancel();
        }
    }

    /// Removes all URLs of a box that no longer exists.
    pub(super) fn forget(&self, box_id: &str) {
        let mut boxes = self.boxes.write().unwrap_or_else(PoisonError::into_inner);
        for old in boxes.remove(box_id).into_iter().flat_map(|known| known.urls.into_values()) {
            old.closed.cancel();
        }
    }
}
