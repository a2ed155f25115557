//! A box that is awake and stays so.

use std::sync::Arc;

use super::activity::Work;
use super::entry::Entry;

/// A box that is awake, and stays so until this is dropped.
#[derive(Debug)]
pub struct Awake {
    /// The box.
    pub entry: Arc<Entry>,
    /// Keeps the box awake.
    pub work: Work,
}
