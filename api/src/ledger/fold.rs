//! Conversion of samples to usage: a pure function.

use std::collections::BTreeMap;

use crate::clock::Moment;

/// Identity of a CPU counter: it starts at 0 with each new cgroup, and a cgroup's inode number is unique within a boot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation {
    /// Boot of the kernel.
    pub boot_id: String,
    /// Inode number of the box's cgroup; 0 while the box has none (only storage is sampled then).
    pub cgroup_inode: u64,
}

/// One reading of a box's counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Which counter was read.
    pub generation: Generation,
    /// Number of the sample, counted up over the whole life of the box.
    pub sequence: u64,
    /// Unix milliseconds of the reading.
    pub wall_ms: i64,
    /// Milliseconds since the boot named in `generation`.
    pub boottime_ms: u64,
    /// The counter: CPU microseconds since the cgroup was made.
    pub cpu_usec: u64,
    /// Bytes of disk in use, if they were measured.
    pub storage_bytes: Option<u64>,
}

/// The usage of a box.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU microseconds.
    pub cpu_usec: u64,
    /// Bytes times milliseconds of storage.
    pub storage_byte_ms: u128,
    /// Bytes of storage at the end.
    pub storage_bytes: u64,
}

/// The fold as a state to which samples are added in the order of their numbers.
#[derive(Debug, Clone, Default)]
pub struct Fold {
    counters: BTreeMap<Generation, u64>,
    storage: Option<StoragePoint>,
    storage_byte_ms: u128,
    next_sequence: u64,
}

#[derive(Debug, Clone)]
struct StoragePoint {
    moment: Moment,
    bytes: u64,
}

impl Fold {
    /// Adds a sample. A known one (its number is below the next expected one) changes nothing.
    pub fn push(&mut self, sample: &Sample) {
        if sample.sequence < self.next_sequence {
            return;
        }
        self.next_sequence = sample.sequence + 1;
        let counter = self.counters.entry(sample.generation.clone()).or_default();
        // A counter never runs backwards within its generation; if it seems to, the larger reading is the correct one.
        *counter = (*counter).max(sample.cpu_usec);
        if let Some(bytes) = sample.storage_bytes {
            let moment = Moment {
                boot_id: sample.generation.boot_id.clone(),
                boottime_ms: sample.boottime_ms,
                wall_ms: sample.wall_ms,
            };
            self.storage_byte_ms += self.open_storage(&moment);
            self.storage = Some(StoragePoint { moment, bytes });
        }
    }

    /// Usage so far; with `until`, the disk is counted as unchanged from its last measurement to then.
    #[must_use]
    pub fn usage(&self, until: Option<&Moment>) -> Usage {
        Usage {
            cpu_usec: self.counters.values().sum(),
            storage_byte_ms: self.storage_byte_ms + until.map_or(0, |moment| self.open_storage(moment)),
            storage_bytes: self.storage.as_ref().map_or(0, |point| point.bytes),
        }
    }

    /// The number that the next sample must have.
    #[must_use]
    pub fn next_sequence(&self) -> u64 {
        self.next_sequence
    }

    /// The last reading of the counter of `generation`.
    #[must_use]
    pub fn counter(&self, generation: &Generation) -> Option<u64> {
        self.counters.get(generation).copied()
    }

    fn open_storage(&self, until: &Moment) -> u128 {
        self.storage.as_ref().map_or(0, |point| u128::from(point.bytes) * u128::from(elapsed_ms(&point.moment, until)))
    }
}

/// Milliseconds from one moment to another: by the boot clock within a boot, by the wall clock across a reboot, never
/// negative.
fn elapsed_ms(from: &Moment, to: &Moment) -> u64 {
    if from.boot_id == to.boot_id {
        to.boottime_ms.saturating_sub(from.boottime_ms)
    } else {
        u64::try_from(to.wall_ms.saturating_sub(from.wall_ms)).unwrap_or(0)
    }
}

/// Usage of a box from any set of its samples, in any order, with any duplicates.
#[must_use]
pub fn fold(samples: &[Sample], until: Option<&Moment>) -> Usage {
    let mut ordered: Vec<&Sample> = samples.iter().collect();
    ordered.sort_by_key(|sample| sample.sequence);
    let mut state = Fold::default();
    for sample in ordered {
        state.push(sample);
    }
    state.usage(until)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample(boot: &str, inode: u64, sequence: u64, at_ms: u64, cpu_usec: u64, storage: Option<u64>) -> Sample {
        Sample {
            generation: Generation { boot_id: boot.into(), cgroup_inode: inode },
            sequence,
            wall_ms: i64::try_from(at_ms).expect("small"),
            boottime_ms: at_ms,
            cpu_usec,
            storage_bytes: storage,
        }
    }

    #[test]
    fn generations_add_up_and_restart_at_zero() {
        let samples = [
            sample("a", 7, 0, 0, 0, None),
            sample("a", 7, 1, 1000, 500, None),
            sample("a", 9, 2, 2000, 0, None),
            sample("a", 9, 3, 3000, 200, None),
            sample("b", 7, 4, 4000, 30, None),
        ];
        assert_eq!(fold(&samples, None).cpu_usec, 730);
    }

    #[test]
    fn the_first_reading_of_a_counter_counts_from_zero() {
        // Work before the first sample of a generation (the start of the box) is billed too.
        assert_eq!(fold(&[sample("a", 7, 0, 0, 1234, None)], None).cpu_usec, 1234);
    }

    #[test]
    fn storage_is_integrated_over_the_boot_clock() {
        let mut jumped = sample("a", 1, 1, 3000, 0, Some(20));
        jumped.wall_ms = -5_000_000; // the clock was set back
        let samples = [sample("a", 1, 0, 1000, 0, Some(10)), jumped];
        let until = Moment { boot_id: "a".into(), boottime_ms: 4000, wall_ms: 9_999_999 };
        assert_eq!(fold(&samples, None).storage_byte_ms, 10 * 2000);
        assert_eq!(fold(&samples, Some(&until)).storage_byte_ms, 10 * 2000 + 20 * 1000);
    }

    #[test]
    fn across_a_reboot_the_wall_clock_counts_and_never_backwards() {
        let mut after = sample("b", 1, 1, 5, 0, Some(10));
        after.wall_ms = 60_000;
        assert_eq!(fold(&[sample("a", 1, 0, 50_000, 0, Some(10)), after.clone()], None).storage_byte_ms, 10 * 10_000);
        after.wall_ms = 0;
        assert_eq!(fold(&[sample("a", 1, 0, 50_000, 0, Some(10)), after], None).storage_byte_ms, 0);
    }

    /// A realistic history of a box: counters grow, sometimes a new generation begins, time advances.
    fn history() -> impl Strategy<Value = Vec<Sample>> {
        let step = (0..5_000_u64, 0..1_000_000_u64, any::<bool>(), 0..12_u8, prop::option::of(0..10_000_000_000_u64));
        prop::collection::vec(step, 1..60).prop_map(|steps| {
            let (mut inode, mut cpu, mut now) = (1, 0, 0);
            let mut samples = Vec::new();
            for (sequence, (wait, used, idle, fresh, storage)) in steps.into_iter().enumerate() {
                now += wait;
                if fresh == 0 {
                    inode += 1;
                    cpu = 0;
                }
                cpu += if idle { 0 } else { used };
                samples.push(sample("boot", inode, sequence as u64, now, cpu, storage));
            }
            samples
        })
    }

    proptest! {
        #[test]
        fn order_and_repetition_change_nothing(samples in history(), shuffle in any::<u64>(), copies in 1..4_usize) {
            let bill = fold(&samples, None);
            let mut mixed: Vec<Sample> = samples.iter().flat_map(|s| std::iter::repeat_n(s.clone(), copies)).collect();
            // A cheap deterministic shuffle: sort by a hash of position and seed.
            let mut keyed: Vec<(u64, Sample)> = mixed.drain(..).enumerate()
                .map(|(n, s)| ((n as u64 + 1).wrapping_mul(shuffle | 1).rotate_left(17), s)).collect();
            keyed.sort_by_key(|(key, _)| *key);
            let mixed: Vec<Sample> = keyed.into_iter().map(|(_, s)| s).collect();
            prop_assert_eq!(fold(&mixed, None), bill);
        }

        #[test]
        fn cpu_is_the_sum_of_the_increments(samples in history()) {
            let mut expected = 0;
            let mut previous: Option<&Sample> = None;
            for sample in &samples {
                expected += match previous {
                    Some(before) if before.generation == sample.generation => sample.cpu_usec - before.cpu_usec,
                    _ => sample.cpu_usec,
                };
                previous = Some(sample);
            }
            prop_assert_eq!(fold(&samples, None).cpu_usec, expected);
        }

        #[test]
        fn losing_readings_that_were_not_the_last_of_their_counter_loses_nothing(
            samples in history(), keep in prop::collection::vec(any::<bool>(), 60)
        ) {
            let is_last = |n: usize| samples[n + 1..].iter().all(|s| s.generation != samples[n].generation);
            let thinned: Vec<Sample> = samples.iter().enumerate()
                .filter(|(n, _)| keep[*n] || is_last(*n)).map(|(_, s)| s.clone()).collect();
            prop_assert_eq!(fold(&thinned, None).cpu_usec, fold(&samples, None).cpu_usec);
        }

        #[test]
        fn adding_samples_one_by_one_after_a_restart_equals_folding_all(samples in history(), cut in 0..60_usize) {
            let cut = cut.min(samples.len());
            let mut state = Fold::default();
            samples[..cut].iter().for_each(|s| state.push(s));
            // The daemon died and reads everything again, then continues; some samples are delivered twice.
            let mut restarted = state.clone();
            samples[cut.saturating_sub(3)..].iter().for_each(|s| restarted.push(s));
            prop_assert_eq!(restarted.usage(None), fold(&samples, None));
        }

        #[test]
        fn a_bill_never_shrinks(samples in history()) {
            let mut state = Fold::default();
            let mut last = Usage::default();
            for sample in &samples {
                state.push(sample);
                let now = state.usage(None);
                prop_assert!(now.cpu_usec >= last.cpu_usec && now.storage_byte_ms >= last.storage_byte_ms);
                last = now;
            }
        }
    }
}
