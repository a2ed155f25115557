//! What names stand for, as a box was told.
//!
//! Owns: the names that one box has asked for, with the addresses it was answered, and how long they are good. An
//! answer is a permission under the policy `custom`, so nothing gets in here but what our own DNS proxy has answered.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::firewall::Pin;

/// Names kept per box.
pub const NAMES_MAX: usize = 4096;

/// The names of one box.
#[derive(Debug, Default)]
pub struct Names {
    addresses: Mutex<HashMap<String, HashMap<Ipv4Addr, Instant>>>,
}

impl Names {
    /// Keeps an answer: `name` stands for `addresses` for `time`.
    pub fn answered(&self, name: &str, addresses: &[Ipv4Addr], time: Duration) {
        let now = Instant::now();
        let mut all = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= NAMES_MAX && !all.contains_key(name) {
            all.retain(|_, ends| ends.values().any(|end| *end > now));
            if all.len() >= NAMES_MAX {
                // All of them are good: the one that ends first goes. Its addresses stay pinned in the firewall as long
                // as was promised; what needs the name asks again.
                let last = |ends: &HashMap<Ipv4Addr, Instant>| ends.values().max().copied().unwrap_or(now);
                let first = all.iter().min_by_key(|(_, ends)| last(ends)).map(|(name, _)| name.clone());
                first.map(|name| all.remove(&name));
            }
        }
        let ends = all.entry(name.to_owned()).or_default();
        ends.retain(|_, end| *end > now);
        for address in addresses {
            let end = ends.entry(*address).or_insert(now + time);
            *end = (*end).max(now + time);
        }
    }

    /// Whether `name` was answered with `address`, and the answer is good still.
    #[must_use]
    pub fn stands_for(&self, name: &str, address: Ipv4Addr) -> bool {
        let all = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(name).and_then(|ends| ends.get(&address)).is_some_and(|end| *end > Instant::now())
    }

    /// Everything that stands for names which `allowed` lets through: what a new policy may keep.
    #[must_use]
    pub fn pins(&self, allowed: impl Fn(&str) -> bool) -> Vec<Pin> {
        let now = Instant::now();
        let all = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let good = all.iter().filter(|(name, _)| allowed(name)).flat_map(|(_, ends)| ends);
        let pin = |(address, end): (&Ipv4Addr, &Instant)| {
            (*end > now).then(|| Pin { address: *address, time: end.duration_since(now) })
        };
        good.filter_map(pin).collect()
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
        let kept = names.addresses.lock().unwrap();
        assert_eq!(kept.len(), NAMES_MAX);
        assert!(!kept.contains_key("n0.example"));
    }
}
