//! The names that a box has resolved, with their addresses.
//!
//! Owns: the names that one box has asked for, the addresses of the answers, and their validity. Under `custom` an
//! answer is a permission, so only answers of our own DNS proxy enter.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::firewall::{PINS_MAX, Pin};

/// Names kept per box.
pub(crate) const NAMES_MAX: usize = 4096;
/// Addresses kept per box, for all its names.
pub(crate) const ADDRESSES_MAX: usize = 8192;
/// Without room, one name in this many is evicted.
const EVICTED_SHARE: usize = 8;

/// The names of one box.
#[derive(Debug, Default)]
pub struct Names {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    names: HashMap<String, HashMap<Ipv4Addr, Instant>>,
    /// Number of addresses of all names.
    count: usize,
}

impl Known {
    /// Evicts expired names, then those that expire first. Their addresses stay pinned in the firewall for the promised
    /// time; a check that needs the name resolves it again.
    fn make_room(&mut self, now: Instant) {
        let last = |ends: &HashMap<Ipv4Addr, Instant>| ends.values().max().copied().unwrap_or(now);
        self.names.retain(|_, ends| {
            ends.retain(|_, end| *end > now);
            !ends.is_empty()
        });
        let mut ends: Vec<(Instant, String)> = self.names.iter().map(|(n, e)| (last(e), n.clone())).collect();
        ends.sort_unstable();
        for (_, name) in ends.into_iter().take((self.names.len() / EVICTED_SHARE).max(1)) {
            self.names.remove(&name);
        }
        self.count = self.names.values().map(HashMap::len).sum();
    }
}

impl Names {
    /// Stores an answer: `name` has `addresses` for `time`.
    pub fn answered(&self, name: &str, addresses: &[Ipv4Addr], time: Duration) {
        let now = Instant::now();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = !known.names.contains_key(name);
        if known.count + addresses.len() > ADDRESSES_MAX || is_new && known.names.len() >= NAMES_MAX {
            known.make_room(now);
        }
        let ends = known.names.entry(name.to_owned()).or_default();
        let before = ends.len();
        ends.retain(|_, end| *end > now);
        for address in addresses {
            let end = ends.entry(*address).or_insert(now + time);
            *end = (*end).max(now + time);
        }
        let after = ends.len();
        known.count = known.count + after - before;
    }

    /// True if `name` was answered with `address`, and the answer is still valid.
    #[must_use]
    pub(crate) fn stands_for(&self, name: &str, address: Ipv4Addr) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.names.get(name).and_then(|ends| ends.get(&address)).is_some_and(|end| *end > Instant::now())
    }

    /// True if any name was answered with `address`.
    #[must_use]
    pub fn knows(&self, address: Ipv4Addr) -> bool {
        let now = Instant::now();
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.names.values().any(|ends| ends.get(&address).is_some_and(|end| *end > now))
    }

    /// All addresses of names that `allowed` accepts: the pins that a new policy keeps. Above the limit of pins, those
    /// that are valid longest.
    #[must_use]
    pub fn pins(&self, allowed: impl Fn(&str) -> bool) -> Vec<Pin> {
        let now = Instant::now();
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut good: HashMap<Ipv4Addr, Instant> = HashMap::new();
        for (address, end) in known.names.iter().filter(|(name, _)| allowed(name)).flat_map(|(_, ends)| ends) {
            let kept = good.entry(*address).or_insert(*end);
            *kept = (*kept).max(*end);
        }
        let mut good: Vec<(Ipv4Addr, Instant)> = good.into_iter().filter(|(_, end)| *end > now).collect();
        good.sort_unstable_by_key(|(_, end)| std::cmp::Reverse(*end));
        good.truncate(PINS_MAX);
        good.into_iter().map(|(address, end)| Pin { address, time: end.duration_since(now) }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const TWO: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

    #[test]
    fn an_answer_is_good_for_its_time_and_its_name() {
        let names = Names::default();
        names.answered("a.example", &[ONE], Duration::from_secs(60));
        names.answered("b.example", &[TWO], Duration::ZERO);
        assert!(names.stands_for("a.example", ONE));
        assert!(!names.stands_for("a.example", TWO) && !names.stands_for("b.example", TWO));
        assert_eq!(names.pins(|_| true).len(), 1);
        assert!(names.pins(|name| name != "a.example").is_empty());
    }

    #[test]
    fn the_number_of_names_is_bounded() {
        let names = Names::default();
        for n in 0..=NAMES_MAX {
            names.answered(&format!("n{n}.example"), &[ONE], Duration::from_secs(60 + n as u64));
        }
        assert_eq!(names.known.lock().unwrap().names.len(), NAMES_MAX - NAMES_MAX / EVICTED_SHARE + 1);
        assert!(!names.stands_for("n0.example", ONE) && names.stands_for(&format!("n{NAMES_MAX}.example"), ONE));
        assert_eq!(names.pins(|_| true).len(), 1, "an address is pinned once");
    }

    #[test]
    fn the_number_of_addresses_is_bounded_and_so_are_the_pins() {
        let names = Names::default();
        let nth = |n: usize| Ipv4Addr::from(ONE.to_bits() + n as u32);
        for n in 0..3 * ADDRESSES_MAX / 50 {
            let addresses: Vec<Ipv4Addr> = (50 * n..50 * (n + 1)).map(nth).collect();
            // One name with ever more addresses, as an attacker's may have.
            let name = if n % 2 == 0 { "a.example".to_owned() } else { format!("n{n}.example") };
            names.answered(&name, &addresses, Duration::from_secs(60));
            let known = names.known.lock().unwrap();
            assert!(known.count <= ADDRESSES_MAX);
            assert_eq!(known.count, known.names.values().map(HashMap::len).sum::<usize>());
        }
        assert_eq!(names.pins(|_| true).len(), PINS_MAX);
        assert!(!names.knows(ONE), "the first went");
    }
}
