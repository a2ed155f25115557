//! The last events of one account, or of all.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::Notify;

use super::Event;

/// Events in order. Each has a number, one more than that of the event before it.
#[derive(Debug)]
pub(super) struct History {
    kept: VecDeque<Arc<Event>>,
    kept_max: usize,
    /// Number of the next event.
    next: u64,
    /// Notified after each event.
    pub(super) changed: Arc<Notify>,
}

/// Result of a search.
#[derive(Debug, PartialEq)]
pub(super) enum Found {
    /// An event with its number.
    Event(u64, Arc<Event>),
    /// Events from the requested number on are gone; this is the number of the oldest one that is kept.
    Lost { oldest: u64 },
    /// None yet; this is the number of the next one.
    None { next: u64 },
}

impl History {
    pub(super) fn new(kept_max: usize) -> Self {
        Self { kept: VecDeque::new(), kept_max, next: 1, changed: Arc::default() }
    }

    /// Adds an event; the oldest one goes if there is no room.
    pub(super) fn push(&mut self, event: Arc<Event>) {
        if self.kept.len() >= self.kept_max {
            self.kept.pop_front();
        }
        self.kept.push_back(event);
        self.next += 1;
        self.changed.notify_waiters();
    }

    /// Number of the next event.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Number of the oldest event that is kept.
    pub(super) fn oldest(&self) -> u64 {
        self.next - self.kept.len() as u64
    }

    /// The first event from number `from` on that `wanted` accepts.
    pub(super) fn find(&self, from: u64, wanted: impl Fn(&Event) -> bool) -> Found {
        let oldest = self.oldest();
        if from < oldest {
            return Found::Lost { oldest };
        }
        let skipped = usize::try_from(from - oldest).unwrap_or(usize::MAX);
        let mut numbered = (from..).zip(self.kept.iter().skip(skipped));
        match numbered.find(|(_, event)| wanted(event)) {
            Some((number, event)) => Found::Event(number, Arc::clone(event)),
            None => Found::None { next: self.next },
        }
    }

    /// True if an event of this box is kept.
    pub(super) fn has_box(&self, box_id: &str) -> bool {
        self.kept.iter().any(|event| event.box_id == box_id)
    }
}
