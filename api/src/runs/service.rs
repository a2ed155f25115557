//! Shared parts of all runs: the boxes, the database, the events, and the limits of the configuration.

use std::sync::Arc;

use super::lasting::Lasting;
use crate::boxes::Boxes;
use crate::config::Config;
use crate::db::Db;
use crate::events::Events;

/// The runs of all boxes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Runs {
    boxes: Boxes,
    db: Db,
    events: Events,
    lasting: Arc<Lasting>,
    /// Commands that may run in one box at once.
    pub(super) per_box_max: u32,
    /// Answer a run only when its record is on disk.
    pub(super) reply_after_commit: bool,
}

impl Runs {
    /// The runs with the limits of the configuration.
    #[must_use]
    pub fn new(config: &Config, boxes: Boxes, db: Db, events: Events) -> Self {
        let (per_box_max, reply_after_commit) = (config.runs_per_box_max, config.reply_after_commit);
        Self { boxes, db, events, lasting: Arc::default(), per_box_max, reply_after_commit }
    }

    pub(super) fn boxes(&self) -> &Boxes {
        &self.boxes
    }

    pub(super) fn db(&self) -> &Db {
        &self.db
    }

    pub(super) fn lasting(&self) -> &Arc<Lasting> {
        &self.lasting
    }

    pub(super) fn events(&self) -> &Events {
        &self.events
    }
}
