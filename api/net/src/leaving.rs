//! Detached boxes, until all their remains are gone.
//!
//! Detaching closes a box. The remaining work can wait, and would block the single network thread, which connects other
//! boxes. The kernel removes both ends of a link when the box's namespace ends, in one batch with those of other boxes;
//! a requested removal takes tens of milliseconds. Finding the connections of a box walks the whole conntrack table,
//! for some milliseconds. So a link is left to its namespace and checked later, because a socket or an unkillable
//! process may hold the namespace.
//!
//! Owns: the list of detached boxes. Leaves out: the time of their check ([`host`](super::host)).
//!
//! Invariant: no box is connected with addresses whose last box is not entirely gone. Otherwise two links would have
//! the same route, packets for one box would reach the other, and answers for the last box would reach the next. So
//! connecting a box with such addresses does the remaining work first.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::address::Pair;

#[derive(Debug)]
struct Left {
    pair: Pair,
    turn: u64,
    is_forgotten: bool,
}

/// The boxes that were detached.
#[derive(Debug, Default)]
pub(super) struct Leaving {
    boxes: BTreeMap<String, Left>,
    turns: u64,
}

impl Leaving {
    /// Adds a box. The returned number distinguishes this detachment from others of the same box.
    pub(super) fn add(&mut self, id: &str, pair: Pair) -> u64 {
        self.turns += 1;
        self.boxes.insert(id.to_owned(), Left { pair, turn: self.turns, is_forgotten: false });
        self.turns
    }

    /// Removes a box that is gone or connected again. Returns its addresses, if it was listed.
    pub(super) fn take(&mut self, id: &str) -> Option<Pair> {
        self.boxes.remove(id).map(|left| left.pair)
    }

    /// The addresses of a box, if it is listed.
    pub(super) fn pair_of(&self, id: &str) -> Option<Pair> {
        self.boxes.get(id).map(|left| left.pair)
    }

    /// True if a box is listed since the detachment with this number.
    pub(super) fn has_since(&self, id: &str, turn: u64) -> bool {
        self.boxes.get(id).is_some_and(|left| left.turn == turn)
    }

    /// The addresses of all listed boxes whose connections are not yet forgotten.
    pub(super) fn unforgotten(&self) -> BTreeSet<Ipv4Addr> {
        self.boxes.values().filter(|left| !left.is_forgotten).map(|left| left.pair.guest()).collect()
    }

    /// Marks the connections of all boxes as forgotten. The boxes are closed in, so there are no new ones.
    pub(super) fn are_forgotten(&mut self) {
        self.boxes.values_mut().for_each(|left| left.is_forgotten = true);
    }

    /// The boxes that had these addresses.
    pub(super) fn with(&self, pair: Pair) -> Vec<String> {
        self.boxes.iter().filter(|(_, left)| left.pair == pair).map(|(id, _)| id.clone()).collect()
    }

    /// All boxes.
    pub(super) fn ids(&self) -> Vec<String> {
        self.boxes.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_a_box_is_detached_is_another() {
        let (one, two) = (Pair::of([10, 88, 0, 2].into()), Pair::of([10, 88, 0, 4].into()));
        let mut leaving = Leaving::default();
        let first = leaving.add("a", one);
        leaving.add("b", two);
        assert_eq!(leaving.with(one), ["a"]);
        leaving.are_forgotten();
        let again = leaving.add("a", one);
        assert_eq!(leaving.unforgotten(), BTreeSet::from([one.guest()]), "it may have begun others since");
        assert!(!leaving.has_since("a", first) && leaving.has_since("a", again) && leaving.pair_of("a") == Some(one));
        assert_eq!(leaving.take("a"), Some(one));
        assert!(!leaving.has_since("a", again) && leaving.take("a").is_none() && leaving.with(one).is_empty());
        assert_eq!(leaving.ids(), ["b"]);
    }
}
