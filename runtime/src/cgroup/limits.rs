//! Limits as plain data, in v2's units and scales, and the conversions between v1's and v2's.
//!
//! Knows no file and no hierarchy; `v1.rs` and `v2.rs` turn this into writes.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::controller::Controller;
use super::devices::DeviceRule;
use super::error::{Error, Result};
use super::parse::number_list;

/// The most device rules in one list; the eBPF program stays far below the verifier's limits.
pub const DEVICE_RULES_MAX: usize = 1024;
/// The most `unified` entries.
pub const UNIFIED_ENTRIES_MAX: usize = 256;

/// The limits of a cgroup. `None` leaves a value as it is; -1 means "max".
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// CPU time per period, in µs; -1 for no quota.
    pub cpu_quota_us: Option<i64>,
    /// The period, in µs (the kernel's default is 100 000).
    pub cpu_period_us: Option<u64>,
    /// Unused quota that may be saved up, in µs.
    pub cpu_burst_us: Option<u64>,
    /// Share under contention, 1..=10000, default 100. On v1 see [`shares_from_weight`].
    pub cpu_weight: Option<u64>,
    /// SCHED_IDLE for the whole group.
    pub cpu_idle: Option<bool>,
    /// Hard memory limit, in bytes.
    pub memory_max_bytes: Option<i64>,
    /// Throttling limit, in bytes. v2 only: v1 has nothing like it.
    pub memory_high_bytes: Option<i64>,
    /// Protected amount, in bytes. On v1 the soft limit, which is the nearest thing.
    pub memory_low_bytes: Option<i64>,
    /// Swap ALONE, in bytes. On v1 `memsw` is computed from it and the memory limit.
    pub memory_swap_max_bytes: Option<i64>,
    /// Buffers of sockets, in bytes; -1 charges them to the cgroups above and sets no limit here. v1 only: it counts
    /// them apart from other memory, and only in cgroups where this is set. v2 counts them as memory.
    pub socket_memory_max_bytes: Option<i64>,
    /// On out of memory kill all of the cgroup. v2 only.
    pub oom_group: bool,
    /// Most tasks.
    pub pids_max: Option<i64>,
    /// CPUs, e.g. `0-1,3`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes.
    pub cpuset_mems: Option<String>,
    /// Block IO share, 1..=10000, default 100. On v1 and with the scheduler BFQ see [`io_weight_from_blkio`].
    pub io_weight: Option<u64>,
    /// Block IO rates by device.
    pub io_max: Vec<IoMax>,
    /// Huge page limits: (page size as the kernel names it, e.g. `2MB`; bytes).
    pub hugetlb: Vec<(String, u64)>,
    /// Device rules, in order: for each kind of access the last one that matches decides; none matching denies.
    /// An empty list leaves everything as it is.
    pub devices: Vec<DeviceRule>,
    /// v2 files written as they are, after everything else; not read back, as each file has a form of its own.
    pub unified: BTreeMap<String, String>,
}

/// Block IO rate limits of one device. `None` leaves a rate as it is, `u64::MAX` means "max".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoMax {
    /// Device number, major.
    pub major: u32,
    /// Device number, minor.
    pub minor: u32,
    /// Bytes read per second.
    pub rbps: Option<u64>,
    /// Bytes written per second.
    pub wbps: Option<u64>,
    /// Reads per second.
    pub riops: Option<u64>,
    /// Writes per second.
    pub wiops: Option<u64>,
}

/// The treatment of a limit that cannot be enforced here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unenforced {
    /// Fail, naming the controller.
    Refuse,
    /// Go on, and return a warning.
    Allow,
}

/// A limit that is not enforced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The controller that is missing or lacks this.
    pub controller: Controller,
    /// The requested value, e.g. `memory.high=1048576`.
    pub value: String,
    /// The reason that it is not enforced.
    pub reason: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "limit {} is not enforced (controller {}): {}", self.value, self.controller, self.reason)
    }
}

impl Limits {
    /// The controllers that these limits need: what to pass to [`super::Manager::create`] as `v1`.
    #[must_use]
    pub fn controllers(&self) -> Vec<Controller> {
        let cpu = self.cpu_quota_us.is_some()
            || self.cpu_period_us.is_some()
            || self.cpu_burst_us.is_some()
            || self.cpu_weight.is_some()
            || self.cpu_idle.is_some();
        let memory = self.memory_max_bytes.is_some()
            || self.memory_high_bytes.is_some()
            || self.memory_low_bytes.is_some()
            || self.memory_swap_max_bytes.is_some()
            || self.socket_memory_max_bytes.is_some()
            || self.oom_group;
        let all = [
            (Controller::Cpu, cpu),
            (Controller::Memory, memory),
            (Controller::Pids, self.pids_max.is_some()),
            (Controller::Cpuset, self.cpuset_cpus.is_some() || self.cpuset_mems.is_some()),
            (Controller::Io, self.io_weight.is_some() || !self.io_max.is_empty()),
            (Controller::Hugetlb, !self.hugetlb.is_empty()),
            (Controller::Devices, !self.devices.is_empty()),
        ];
        all.into_iter().filter_map(|(c, wanted)| wanted.then_some(c)).collect()
    }

    /// Refuses values that no kernel accepts, before anything is written.
    pub(super) fn check(&self, subject: &Path) -> Result<()> {
        let refuse = |why: &'static str| Err(Error::invalid("check limits", subject, why));
        let signed = [
            self.cpu_quota_us,
            self.memory_max_bytes,
            self.memory_high_bytes,
            self.memory_low_bytes,
            self.memory_swap_max_bytes,
            self.socket_memory_max_bytes,
            self.pids_max,
        ];
        if signed.into_iter().flatten().any(|v| v < -1) {
            return refuse("a limit is below -1");
        }
        if self.cpu_quota_us == Some(0) || self.cpu_period_us == Some(0) {
            return refuse("cpu quota or period of 0");
        }
        if [self.cpu_weight, self.io_weight].into_iter().flatten().any(|w| !(1..=10_000).contains(&w)) {
            return refuse("weight outside 1..=10000");
        }
        let lists = [&self.cpuset_cpus, &self.cpuset_mems];
        if lists.into_iter().flatten().any(|l| number_list(l).is_none_or(|s| s.is_empty())) {
            return refuse("cpuset list");
        }
        let page_size = |s: &str| !s.is_empty() && s.len() <= 16 && s.bytes().all(|b| b.is_ascii_alphanumeric());
        if !self.hugetlb.iter().all(|(size, _)| page_size(size)) {
            return refuse("huge page size");
        }
        if self.devices.len() > DEVICE_RULES_MAX || self.unified.len() > UNIFIED_ENTRIES_MAX {
            return refuse("too many entries");
        }
        if self.unified.values().any(|v| v.trim().is_empty()) {
            return refuse("empty unified value"); // it would be written nowhere
        }
        self.unified.keys().try_for_each(|key| check_unified_key(key, subject))
    }
}

/// `unified` may set resources. It may not move processes, freeze, kill or delegate: of the core files only the two
/// limits are let through.
fn check_unified_key(key: &str, subject: &Path) -> Result<()> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let core = key.starts_with("cgroup.") && !matches!(key, "cgroup.max.depth" | "cgroup.max.descendants");
    let known = key.split_once('.').and_then(|(prefix, _)| Controller::from_name(prefix)).is_some();
    if key.len() > 64 || !key.bytes().all(plain) || core || !known {
        return Err(Error::invalid("check limits", subject, format!("unified key {key:?}")));
    }
    Ok(())
}

/// v1 `cpu.shares` (2..=262144) as a v2 weight: weight = ⌈10^((l² + 125 l) / 612 − 7/34)⌉ with l = log2(shares).
///
/// This is the newer formula of crun and runc, which maps 2 → 1, 1024 → 100 and 262144 → 10000, so the default of
/// one version is the default of the other. The older linear one made 39 of the default 1024.
#[must_use]
pub fn weight_from_shares(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let l = (shares as f64).log2();
            let weight = 10_f64.powf((l * l + 125.0 * l) / 612.0 - 7.0 / 34.0);
            // Without the small step back 1024 would become 101 by a rounding error in the last bit.
            (weight - 1e-9).ceil().clamp(1.0, 10_000.0) as u64
        }
    }
}

/// The inverse of [`weight_from_shares`], to the nearest share.
#[must_use]
pub fn shares_from_weight(weight: u64) -> u64 {
    let weight = weight.clamp(1, 10_000) as f64;
    let l = (-125.0 + (125.0 * 125.0 + 4.0 * 612.0 * (weight.log10() + 7.0 / 34.0)).sqrt()) / 2.0;
    l.exp2().round().clamp(2.0, 262_144.0) as u64
}

/// v1's `blkio.weight` (10..=1000) as a v2 `io.weight`, linear from end to end as runc and crun have it.
#[must_use]
pub fn io_weight_from_blkio(weight: u64) -> u64 {
    1 + (weight.clamp(10, 1000) - 10) * 9_999 / 990
}

/// The inverse, to the nearest weight: a value from v1's scale is unchanged on v1 (and with BFQ, which has the same).
#[must_use]
pub(super) fn blkio_weight(io_weight: u64) -> u64 {
    10 + ((io_weight.clamp(1, 10_000) - 1) * 990 + 9_999 / 2) / 9_999
}

/// v1 memory+swap from v2's swap alone. `None` for a swap limit without a memory limit, which v1 cannot express.
pub(super) fn memsw(memory_max: i64, swap_max: i64) -> Option<i64> {
    match (memory_max, swap_max) {
        (_, -1) => Some(-1),
        (-1, _) => None,
        (memory, swap) => memory.checked_add(swap),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_fixed_points_of_the_cpu_scale() {
        for (shares, weight) in [(2, 1), (1024, 100), (262_144, 10_000)] {
            assert_eq!(weight_from_shares(shares), weight);
            assert_eq!(shares_from_weight(weight), shares);
        }
        assert_eq!(weight_from_shares(0), 1);
        assert_eq!(weight_from_shares(u64::MAX), 10_000);
    }

    #[test]
    fn a_blkio_weight_is_the_same_on_v1_after_the_round_trip() {
        for (blkio, io) in [(10, 1), (1000, 10_000)] {
            assert_eq!(io_weight_from_blkio(blkio), io);
        }
        for weight in 10..=1000 {
            assert_eq!(blkio_weight(io_weight_from_blkio(weight)), weight);
        }
    }

    #[test]
    fn memsw_is_the_sum() {
        assert_eq!(memsw(100, 0), Some(100));
        assert_eq!(memsw(100, 50), Some(150));
        assert_eq!(memsw(100, -1), Some(-1));
        assert_eq!(memsw(-1, -1), Some(-1));
        assert_eq!(memsw(-1, 50), None);
        assert_eq!(memsw(i64::MAX, 1), None);
    }

    #[test]
    fn refuses_nonsense() {
        let bad = [
            Limits { memory_max_bytes: Some(-2), ..Limits::default() },
            Limits { cpu_quota_us: Some(0), ..Limits::default() },
            Limits { cpu_weight: Some(10_001), ..Limits::default() },
            Limits { cpuset_cpus: Some("0\n".repeat(2)), ..Limits::default() },
            Limits { cpuset_cpus: Some(String::new()), ..Limits::default() },
            Limits { hugetlb: vec![("../2MB".into(), 1)], ..Limits::default() },
        ];
        for limits in bad {
            assert!(limits.check(Path::new("x")).is_err(), "{limits:?}");
        }
        for key in ["cgroup.procs", "cgroup.freeze", "../x", "memory/max", "memory", "nonsense.max", "", "."] {
            let unified = BTreeMap::from([(key.to_owned(), "1".to_owned())]);
            assert!(Limits { unified, ..Limits::default() }.check(Path::new("x")).is_err(), "{key}");
        }
        for key in ["cgroup.max.depth", "memory.oom.group", "hugetlb.2MB.max", "misc.max"] {
            let unified = BTreeMap::from([(key.to_owned(), "1".to_owned())]);
            assert!(Limits { unified, ..Limits::default() }.check(Path::new("x")).is_ok(), "{key}");
        }
    }

    #[test]
    fn controllers_follow_the_limits() {
        assert!(Limits::default().controllers().is_empty());
        let limits = Limits { pids_max: Some(3), oom_group: true, ..Limits::default() };
        assert_eq!(limits.controllers(), [Controller::Memory, Controller::Pids]);
    }

    proptest! {
        #[test]
        fn cpu_scale_is_monotone(a in 0_u64..300_000, b in 0_u64..300_000) {
            let (low, high) = (a.min(b), a.max(b));
            prop_assert!(weight_from_shares(low) <= weight_from_shares(high));
        }

        #[test]
        fn weights_survive_the_round_trip(weight in 1_u64..=10_000) {
            let back = weight_from_shares(shares_from_weight(weight));
            // One share is a coarse step at the low end only.
            prop_assert!(back.abs_diff(weight) <= 1, "{weight} -> {back}");
        }
    }
}
