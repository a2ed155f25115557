//! The life of boxes: the use cases that need a box and what runs in it.
//!
//! Owns: creating a box, waking it, taking over what an earlier daemon has left, and what Icebox itself does in a box
//! (`provision`). It stands above `boxes` and `runs`, which do not know each other's verbs: `http` and `public_urls` ask
//! here. Leaves out: how a box is made, frozen or started (`boxes`) and how a command runs (`runs`).

mod agent;
mod create;
mod packets;
mod provision;
mod reconcile;
mod restart;
mod wake;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use crate::boxes::Boxes;
use crate::db::Db;
use crate::metrics::Metrics;
use crate::runs::Runs;

pub use agent::AgentRequest;
pub use create::{BoxRequest, check_env, check_git_identity, check_headers, check_init_command};
pub use reconcile::Progress;

/// The use cases over all boxes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Lifecycle {
    boxes: Boxes,
    runs: Runs,
    db: Db,
    metrics: Arc<Metrics>,
    /// Boxes that the start of the daemon has dealt with.
    settled: Arc<AtomicUsize>,
}

impl Lifecycle {
    /// Over these boxes, whose records are in `db`.
    #[must_use]
    pub fn new(boxes: Boxes, runs: Runs, db: Db, metrics: Arc<Metrics>) -> Self {
        Self { boxes, runs, db, metrics, settled: Arc::default() }
    }
}
