//! The devices that are ours, and what each of them is now.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::program::Program;
use super::settings::{BlockSettings, BlockSource, Refused};

/// What the work in the background shares.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) settings: BlockSettings,
    pub(super) owner: String,
    pub(super) refused: Vec<Refused>,
    pub(super) slots: Mutex<Slots>,
}

/// By their paths.
pub(super) type Slots = BTreeMap<PathBuf, Slot>;

/// A device that is ours.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) bytes: u64,
    /// The program's name for it.
    pub(super) name: Option<String>,
    pub(super) state: State,
}

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    Free,
    Making,
    Disk {
        id: String,
        generation: u64,
    },
    Wiping {
        /// Why the last attempt failed.
        trouble: Option<String>,
    },
}

impl Slot {
    /// True if it is free for a disk of that size.
    pub(super) fn fits(&self, size_gib: u32) -> bool {
        self.state == State::Free && self.bytes >= u64::from(size_gib) << 30
    }
}

impl Shared {
    pub(super) fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn program(&self) -> Option<Program> {
        match &self.settings.source {
            BlockSource::Program(words) => Some(Program(words.clone())),
            BlockSource::List(_) => None,
        }
    }
}
