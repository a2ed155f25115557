//! Boxes that were detached, until everything of theirs is gone.
//!
//! Detaching closes a box. What else there is to do takes the one thread of the network long, in which no other box can be
//! connected, and can wait. The kernel takes both ends of a link away when the box's namespace ends, together with those of
//! other boxes that end then; asked to do it, it needs tens of milliseconds. To find the connections of a box it walks its
//! whole table, for some milliseconds. So a link is left to its namespace, and later somebody looks after it: the namespace
//! may be held by a socket, or by a process that does not end.
//!
//! Owns: which boxes were detached, and when they are looked after.
//!
//! Invariant: nobody is connected with addresses whose last box is not gone in every part. Two links would have the same
//! route, and packets for the one box would go to the other; answers to the questions of the last box would reach the next.
//! So whoever is connected with such addresses has the rest done first.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use super::State;
use super::address::Pair;
use super::namespace::Remote;

/// What the kernel needs to end a namespace, and more.
const LINGER: Duration = Duration::from_secs(2);
/// Times it is tried to remove what cannot be removed. The next start tries again.
const TRIES_MAX: u32 = 30;

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
    /// Notes a box. The number tells this time from others that the same box is detached.
    pub(super) fn add(&mut self, id: &str, pair: Pair) -> u64 {
        self.turns += 1;
        self.boxes.insert(id.to_owned(), Left { pair, turn: self.turns, is_forgotten: false });
        self.turns
    }

    /// All is gone, or the box is connected again. Its addresses, if it was there.
    pub(super) fn take(&mut self, id: &str) -> Option<Pair> {
        self.boxes.remove(id).map(|left| left.pair)
    }

    /// The addresses that a box had, if it is looked after.
    pub(super) fn pair_of(&self, id: &str) -> Option<Pair> {
        self.boxes.get(id).map(|left| left.pair)
    }

    /// Whether a box is looked after since it was detached that time.
    pub(super) fn has_since(&self, id: &str, turn: u64) -> bool {
        self.boxes.get(id).is_some_and(|left| left.turn == turn)
    }

    /// The addresses of all boxes whose connections nobody has forgotten since they were detached.
    pub(super) fn unforgotten(&self) -> BTreeSet<Ipv4Addr> {
        self.boxes.values().filter(|left| !left.is_forgotten).map(|left| left.pair.guest()).collect()
    }

    /// The connections of all boxes were forgotten. They are closed in, so there are no new ones.
    pub(super) fn are_forgotten(&mut self) {
        self.boxes.values_mut().for_each(|left| left.is_forgotten = true);
    }

    /// Boxes that had these addresses.
    pub(super) fn with(&self, pair: Pair) -> Vec<String> {
        self.boxes.iter().filter(|(_, left)| left.pair == pair).map(|(id, _)| id.clone()).collect()
    }

    /// All boxes.
    pub(super) fn ids(&self) -> Vec<String> {
        self.boxes.keys().cloned().collect()
    }
}

/// Removes what is still there of a box after a while, unless it is connected again meanwhile. Ends with the thread of the
/// network.
pub(super) async fn look_after(network: Remote<State>, id: String, turn: u64) {
    for _ in 0..TRIES_MAX {
        tokio::time::sleep(LINGER).await;
        let of = id.clone();
        match network.call(move |state| state.see_off(&of, turn)).await {
            None | Some(Ok(())) => return,
            Some(Err(error)) => {
                tracing::error!(
                    box_id = id,
                    error = error.chain(),
                    "something of the network of a box that is no more stays"
                );
            }
        }
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
