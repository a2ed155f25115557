//! Links of boxes that were detached, until they are gone.
//!
//! The kernel takes both ends of a link away when the box's namespace ends, together with those of other boxes that end
//! then. To be asked for it costs the thread of the network tens of milliseconds, in which no other box is connected, so a
//! link is left to its namespace. A namespace may be held by somebody, though: by a socket, by a process that does not end.
//!
//! Owns: which links were left, and when somebody looks after them.
//!
//! Invariant: nobody is connected with the addresses of a link that is still there. Both ends would have the same route,
//! and packets for the one would go to the other. So whoever is connected with such addresses has the old link removed first.

use std::collections::BTreeMap;
use std::time::Duration;

use super::State;
use super::address::Pair;
use super::namespace::Remote;

/// What the kernel needs to end a namespace, and more. A link that is there for longer is removed.
const LINGER: Duration = Duration::from_secs(2);
/// Times a link is tried to be removed that cannot be. The next start tries again.
const TRIES_MAX: u32 = 30;

#[derive(Debug)]
struct Left {
    pair: Pair,
    turn: u64,
}

/// The links that were left, by their boxes.
#[derive(Debug, Default)]
pub(super) struct Leaving {
    links: BTreeMap<String, Left>,
    turns: u64,
}

impl Leaving {
    /// Notes a link. The number tells this time from others that the same box is detached.
    pub(super) fn add(&mut self, id: &str, pair: Pair) -> u64 {
        self.turns += 1;
        self.links.insert(id.to_owned(), Left { pair, turn: self.turns });
        self.turns
    }

    /// The link is gone, or its box is connected again.
    pub(super) fn forget(&mut self, id: &str) {
        self.links.remove(id);
    }

    /// Whether the link that was left then is still looked after.
    pub(super) fn has(&self, id: &str, turn: u64) -> bool {
        self.links.get(id).is_some_and(|left| left.turn == turn)
    }

    /// Boxes whose link has these addresses.
    pub(super) fn with(&self, pair: Pair) -> Vec<String> {
        self.links.iter().filter(|(_, left)| left.pair == pair).map(|(id, _)| id.clone()).collect()
    }

    /// All boxes.
    pub(super) fn ids(&self) -> Vec<String> {
        self.links.keys().cloned().collect()
    }
}

/// Removes a link that was left if it is still there after a while, unless its box is connected again meanwhile. Ends with
/// the thread of the network.
pub(super) async fn look_after(network: Remote<State>, id: String, turn: u64) {
    for _ in 0..TRIES_MAX {
        tokio::time::sleep(LINGER).await;
        let of = id.clone();
        match network.call(move |state| state.see_off(&of, turn)).await {
            None | Some(Ok(())) => return,
            Some(Err(error)) => {
                tracing::error!(box_id = id, error = error.chain(), "a link of a box that is no more stays");
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
        let again = leaving.add("a", one);
        assert!(!leaving.has("a", first) && leaving.has("a", again));
        leaving.forget("a");
        assert!(!leaving.has("a", again) && leaving.with(one).is_empty());
        assert_eq!(leaving.ids(), ["b"]);
    }
}
