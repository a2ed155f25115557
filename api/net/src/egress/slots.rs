//! Slots: how many connections the proxy has open, of all boxes, of each account and of each box.
//!
//! Invariant: no box and no account takes all of them. The last eighth is for accounts with few connections, so that an
//! account can begin to work while others have all that they may have.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::table::BoxNet;

/// The part of all slots that is kept for accounts with few connections: one eighth.
const RESERVE_PART: usize = 8;
/// Few connections: below this part of all slots.
const LITTLE_PART: usize = 64;

/// Connections at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotLimits {
    /// Of all boxes.
    pub all: usize,
    /// Of all boxes of one account.
    pub per_account: usize,
    /// Of one box.
    pub per_box: usize,
}

impl Default for SlotLimits {
    fn default() -> Self {
        Self { all: 16_384, per_account: 8192, per_box: 2048 }
    }
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    accounts: HashMap<Arc<str>, usize>,
    boxes: HashMap<Ipv4Addr, usize>,
}

/// All slots. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Slots {
    limits: SlotLimits,
    taken: Arc<Mutex<Taken>>,
}

/// A taken slot, until it is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Slots,
    account: Arc<str>,
    guest: Ipv4Addr,
}

impl Slots {
    pub(super) fn new(limits: SlotLimits) -> Self {
        Self { limits, taken: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of open connections.
    pub(super) fn taken(&self) -> usize {
        self.lock().all
    }

    /// A slot for a connection of this box; otherwise the limit that refuses it.
    pub(super) fn take(&self, box_: &BoxNet) -> Result<Slot, &'static str> {
        let (account, guest) = (Arc::clone(&box_.account), box_.pair.guest());
        let mut taken = self.lock();
        let of_account = taken.accounts.get(&account).copied().unwrap_or_default();
        let of_box = taken.boxes.get(&guest).copied().unwrap_or_default();
        let SlotLimits { all, per_account, per_box } = self.limits;
        if of_box >= per_box {
            return Err("connection limit of the proxy for a box");
        }
        if of_account >= per_account {
            return Err("connection limit of the proxy for an account");
        }
        let has_little = of_account < (all / LITTLE_PART).max(1);
        let most = if has_little { all } else { all - all / RESERVE_PART };
        if taken.all >= most {
            return Err("connection limit of the proxy");
        }
        taken.all += 1;
        taken.accounts.insert(Arc::clone(&account), of_account + 1);
        taken.boxes.insert(guest, of_box + 1);
        Ok(Slot { slots: self.clone(), account, guest })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.slots.lock();
        taken.all -= 1;
        one_less(&mut taken.accounts, &self.account);
        one_less(&mut taken.boxes, &self.guest);
    }
}

/// Counts down, and forgets what has none.
fn one_less<K: Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Pair;
    use crate::policy::BoxPolicy;

    fn box_of(account: &str, number: u32) -> BoxNet {
        let first = Ipv4Addr::new(10, 88, 0, 0).to_bits();
        let pair = Pair::of((first + 2 * number).into());
        BoxNet::new(&format!("box-{number}"), account, pair, BoxPolicy::AllowAll, None)
    }

    #[test]
    fn boxes_of_one_account_leave_slots_for_others() {
        let limits = SlotLimits::default();
        let slots = Slots::new(limits);
        let mut held = Vec::new();
        let mut refusals = Vec::new();
        for number in 0..9 {
            let box_ = box_of("greedy", number);
            for _ in 0..=limits.per_box {
                match slots.take(&box_) {
                    Ok(slot) => held.push(slot),
                    Err(why) => refusals.push(why),
                }
            }
        }
        assert_eq!(held.len(), limits.per_account, "{refusals:?}");
        assert!(refusals.contains(&"connection limit of the proxy for a box"));
        assert!(refusals.contains(&"connection limit of the proxy for an account"));
        let other = box_of("other", 100);
        let slot = slots.take(&other).expect("a slot for another account");
        drop(slot);
        held.clear();
        assert_eq!(slots.taken(), 0);
        let left = slots.lock();
        assert!(left.accounts.is_empty() && left.boxes.is_empty());
    }

    #[test]
    fn the_last_eighth_is_for_accounts_with_few_connections() {
        let slots = Slots::new(SlotLimits { all: 128, per_account: 100, per_box: 100 });
        let (one, two) = (box_of("one", 1), box_of("two", 2));
        let held: Vec<_> = (0..100).map(|_| slots.take(&one).expect("one")).collect();
        let more: Vec<_> = std::iter::from_fn(|| slots.take(&two).ok()).collect();
        assert_eq!(held.len() + more.len(), 112, "seven eighths");
        let newcomer = box_of("three", 3);
        let few: Vec<_> = std::iter::from_fn(|| slots.take(&newcomer).ok()).collect();
        assert_eq!(few.len(), 2, "less than a sixty-fourth, each time");
    }
}
