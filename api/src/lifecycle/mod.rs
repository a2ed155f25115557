//! The life of boxes: the use cases that need a box and its processes.
//!
//! Owns: creating a box, waking it, taking over boxes and runs of an earlier daemon, and Icebox's own commands in a box
//! (`provision`). It stands above `boxes` and `runs`, which do not call each other's operations: `http` and
//! `public_urls` call this module. Leaves out: how a box is made, frozen or started (`boxes`) and how a command runs
//! (`runs`).

mod agent;
mod create;
mod diff;
mod fork;
mod import;
mod packets;
mod provision;
mod reconcile;
mod restart;
mod space;
mod undo;
mod wake;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use crate::boxes::Boxes;
use crate::db::Db;
use crate::events::Events;
use crate::runs::Runs;

pub use agent::AgentRequest;
pub use create::{BoxRequest, check_env, check_git_identity, check_headers, check_init_command};
pub use diff::{Change, Diff};
pub use reconcile::Progress;

/// The use cases over all boxes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Lifecycle {
    boxes: Boxes,
    runs: Runs,
    db: Db,
    events: Events,
    /// Boxes that the start of the daemon has processed.
    settled: Arc<AtomicUsize>,
}

impl Lifecycle {
    /// The use cases over these boxes, whose records are in `db`.
    #[must_use]
    pub fn new(boxes: Boxes, runs: Runs, db: Db, events: Events) -> Self {
        Self { boxes, runs, db, events, settled: Arc::default() }
    }
}
