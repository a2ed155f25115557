//! The undo points of one box, in memory.

use std::sync::{Mutex, PoisonError};

use crate::domain::{Undo, UndoPoint};

/// The points of one box, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Points {
    list: Mutex<Vec<UndoPoint>>,
    /// Held while the box is taken back, so that two requests go back two steps.
    pub(super) busy: tokio::sync::Mutex<()>,
}

impl Points {
    /// Looks at them, or changes them.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Vec<UndoPoint>) -> T) -> T {
        change(&mut self.list.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Bytes that they occupy.
    pub(super) fn bytes(&self) -> u64 {
        self.change(|list| list.iter().map(|point| point.size_bytes).sum())
    }

    /// Takes all of them out.
    pub(super) fn take(&self) -> Vec<String> {
        self.change(|list| list.drain(..).map(|point| point.id).collect())
    }

    /// Takes out what is too old, or too much.
    pub(super) fn take_surplus(&self, undo: Undo, now_ms: i64) -> Vec<String> {
        let oldest_ms = now_ms - i64::try_from(undo.max_age_seconds).unwrap_or(i64::MAX / 2000) * 1000;
        self.change(|list| {
            let over = list.len().saturating_sub(undo.steps as usize);
            let old = list.iter().take_while(|point| point.taken_ms < oldest_ms).count();
            list.drain(..over.max(old)).map(|point| point.id).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(taken_ms: &[i64]) -> Points {
        let points = Points::default();
        let point = |taken_ms: &i64| UndoPoint {
            id: taken_ms.to_string(),
            command: String::new(),
            taken_ms: *taken_ms,
            size_bytes: 10,
            inode: 1,
            length: 1,
            changed: (0, 0),
            signature: Vec::new(),
        };
        points.change(|list| *list = taken_ms.iter().map(point).collect());
        points
    }

    #[test]
    fn points_are_bounded_in_number_and_age() {
        let undo = Undo { steps: 2, max_age_seconds: 10 };
        let all = points(&[1000, 2000, 3000]);
        assert_eq!(all.take_surplus(undo, 3000), ["1000"]);
        assert_eq!((all.take_surplus(undo, 12_500), all.bytes()), (vec!["2000".to_owned()], 10));
        // A clock that was set back removes nothing.
        assert!(all.take_surplus(undo, 0).is_empty());
        assert_eq!(all.take_surplus(undo, i64::MAX / 2), ["3000"]);
    }
}
