//! What is left to chance, from a seed: the way and the moment of each cut.

use std::time::Duration;

/// The cut comes so long after the first acknowledgements, at most.
const DELAY_MAX: Duration = Duration::from_secs(8);

/// And so many more writes and flushes of the disk, at most.
const WRITES_MAX: u64 = 64;

/// SplitMix64: small, and the same everywhere.
#[derive(Debug, Clone)]
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

/// The moment at which the power goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    /// So many writes and flushes are still done.
    pub(super) after: u32,
    /// Then not at the next one, but at the next flush: the cache is as full as it gets.
    pub(super) at_flush: bool,
}

/// How the power is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// The guest resets itself.
    Reset,
    /// QEMU is killed.
    Kill,
    /// The disk loses what was not flushed, or part of it; see `disk`.
    Forget,
}

impl Way {
    pub(super) fn name(self) -> &'static str {
        match self {
            Way::Reset => "sysrq-b",
            Way::Kill => "SIGKILL of QEMU",
            Way::Forget => "loss of the disk's cache",
        }
    }
}

/// What a round does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) way: Way,
    /// From the first acknowledgements to the cut.
    pub(super) delay: Duration,
    /// And how far the disk goes on from there, where it decides.
    pub(super) end: End,
    /// For the guest's work.
    pub(super) guest_seed: u64,
    /// For what becomes of writes that were not flushed.
    pub(super) disk_seed: u64,
}

/// The choices of one round; they depend on nothing but seed and round.
pub(super) fn choose(seed: u64, round: u32, strict: bool) -> Choice {
    let mut random = Random(seed ^ u64::from(round).wrapping_mul(0xD134_2543_DE82_EF95));
    let way = match random.next() % 3 {
        _ if strict => Way::Forget,
        0 => Way::Reset,
        1 => Way::Kill,
        _ => Way::Forget,
    };
    let limit = u64::try_from(DELAY_MAX.as_millis()).unwrap_or(u64::MAX);
    let delay = Duration::from_millis(random.next() % limit);
    let after = u32::try_from(random.next() % WRITES_MAX).unwrap_or(0);
    let end = End { after, at_flush: random.next().is_multiple_of(2) };
    Choice { way, delay, end, guest_seed: random.next(), disk_seed: random.next() }
}

/// A random seed.
pub(super) fn new_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    // Short enough to be typed.
    Random(u64::from(now.subsec_nanos()) ^ now.as_secs()).next() % 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_is_the_same_again_and_different_from_others() {
        assert_eq!(choose(7, 3, false), choose(7, 3, false));
        assert_ne!(choose(7, 3, false), choose(7, 4, false));
        assert_ne!(choose(7, 3, false), choose(8, 3, false));
        let ways: Vec<Way> = (0..32).map(|round| choose(1, round, false).way).collect();
        assert!([Way::Reset, Way::Kill, Way::Forget].iter().all(|way| ways.contains(way)));
        assert!((0..100).all(|round| choose(5, round, false).delay < DELAY_MAX));
        assert!((0..100).all(|round| choose(5, round, true).way == Way::Forget));
    }
}
