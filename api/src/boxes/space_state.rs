//! What is known of the space for disks between two looks at it.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

/// What is remembered of the space for disks.
#[derive(Debug, Default)]
pub(super) struct SpaceState {
    /// It is used up, and boxes are paused for that.
    pub(super) short: AtomicBool,
    /// The boxes that were paused.
    pub(super) paused: Mutex<HashSet<String>>,
    /// The last adjustment of the pool failed, and the log says so.
    pub(super) troubled: AtomicBool,
}

/// The space for disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Space {
    /// It is used up: less than `disk_free_bytes_min` is left.
    Short,
    /// Not enough for boxes that were paused to go on.
    Little,
    /// There is enough.
    Enough,
}
