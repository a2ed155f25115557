//! The boxes whose files are kept up to date, as the thread that answers finds them: by the file that is read.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use nix::sys::fanotify::{Fanotify, MarkFlags, MaskFlags};

use super::files::BoxFiles;
use super::{Key, Kind};

/// Opening and reading. Reading too: programs keep the file open, go back to its beginning and read again.
pub(super) const READING: MaskFlags = MaskFlags::FAN_OPEN_PERM.union(MaskFlags::FAN_ACCESS_PERM);

/// What the keeper and the thread that answers have in common.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// The thread owns the group: when it ends for whatever reason, the kernel lets all readers go on.
    pub(super) group: Weak<Fanotify>,
    pub(super) boxes: Mutex<HashMap<Key, (Weak<BoxFiles>, Kind)>>,
    pub(super) cpuinfo: Mutex<HashMap<Vec<u32>, String>>,
    pub(super) events: AtomicU64,
    pub(super) refreshes: AtomicU64,
}

/// The registration of a box's files, undone when it is dropped.
#[derive(Debug)]
pub(super) struct Membership {
    shared: Arc<Shared>,
    keys: [(Key, Kind); 3],
}

impl Membership {
    /// Registers files, and marks them. An event always finds its box: the registration comes first.
    pub(super) fn new(shared: &Arc<Shared>, group: &Fanotify, files: &Arc<BoxFiles>) -> std::io::Result<Self> {
        let keys = files.keys()?;
        shared.boxes().extend(keys.map(|(key, kind)| (key, (Arc::downgrade(files), kind))));
        let membership = Self { shared: Arc::clone(shared), keys };
        for (_, kind) in keys {
            mark(group, MarkFlags::FAN_MARK_ADD, READING, files.file(kind))?;
        }
        Ok(membership)
    }

    pub(super) fn is_watched(&self) -> bool {
        self.shared.group.strong_count() > 0
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let mut boxes = self.shared.boxes();
        self.keys.iter().for_each(|(key, _)| drop(boxes.remove(key)));
    }
}

impl Shared {
    fn boxes(&self) -> std::sync::MutexGuard<'_, HashMap<Key, (Weak<BoxFiles>, Kind)>> {
        self.boxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn find(&self, key: Key) -> Option<(Arc<BoxFiles>, Kind)> {
        let boxes = self.boxes();
        let (files, kind) = boxes.get(&key)?;
        files.upgrade().map(|files| (files, *kind))
    }
}

/// Changes the mark of a file.
pub(super) fn mark(group: &Fanotify, flags: MarkFlags, mask: MaskFlags, file: BorrowedFd<'_>) -> nix::Result<()> {
    group.mark::<_, Path>(flags, mask, file, None)
}
