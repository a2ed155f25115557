//! A box whose processes have just been started.

use std::time::Duration;

use icebox_shim::handle::BoxHandle;

use crate::domain::Incarnation;

/// What a start results in.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) incarnation: Incarnation,
    pub(super) handle: BoxHandle,
    /// Message for its owner.
    pub(super) warnings: Vec<String>,
    /// Time of the start.
    pub(super) took: Duration,
}
