//! The resource usage of a cgroup. Reading only; every number is the kernel's own.

use super::Cgroup;
use super::controller::Controller;
use super::error::{Error, ErrorKind, Result};
use super::file::Dir;
use super::hierarchy::Backend;
use super::parse::{keyed, single};
use super::procs::{DEPTH_MAX, procs_below};

/// CPU time used here and below, removed children included. Throttling is of this cgroup alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuUsage {
    /// All of it, in µs.
    pub usage_usec: u64,
    /// In user mode.
    pub user_usec: u64,
    /// In the kernel.
    pub system_usec: u64,
    /// Periods in which the quota ran out.
    pub nr_throttled: u64,
    /// Time spent throttled, in µs.
    pub throttled_usec: u64,
}

/// Memory, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryUsage {
    /// Now.
    pub current: u64,
    /// The maximum so far. `None` where the kernel does not report it (v2 before 5.19).
    pub peak: Option<u64>,
    /// Processes killed for want of memory, here and below. v1 counts each in the victim's own cgroup, so there what
    /// happened in children that have been removed is not in it: read a leaf before you remove it.
    pub oom_kills: u64,
}

/// How often a limit of memory was met, here and below. Since the cgroup was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryEvents {
    /// Tasks were throttled and made to reclaim because usage was above `memory.high`. v1 has no such limit: 0.
    pub high: u64,
    /// Usage was about to exceed `memory.max`. v1: the fail counts of this cgroup alone, which newer kernels leave at 0
    /// (seen with 6.18).
    pub max: u64,
    /// The limit was reached and nothing could be reclaimed. v1 does not count it: 0.
    pub oom: u64,
    /// Processes killed. v1: see [`MemoryUsage::oom_kills`].
    pub oom_kill: u64,
    /// Times a whole group was killed (`memory.oom.group`; Linux 5.17). v1 has no such thing: 0.
    pub oom_group_kill: u64,
}

/// Tasks, threads included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PidsUsage {
    /// Now.
    pub current: u64,
    /// The limit, `None` for none.
    pub max: Option<u64>,
}

/// The state of a v2 cgroup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Events {
    /// There are processes here or below.
    pub populated: bool,
    /// Everything here and below is frozen.
    pub frozen: bool,
}

pub(super) fn parse_events(text: &str) -> Events {
    let is_set = |key| keyed(text, key) == Some(1);
    Events { populated: is_set("populated"), frozen: is_set("frozen") }
}

/// `cpu.stat` of v2. `None` without the three times.
pub(super) fn parse_cpu_stat(text: &str) -> Option<CpuUsage> {
    Some(CpuUsage {
        usage_usec: keyed(text, "usage_usec")?,
        user_usec: keyed(text, "user_usec")?,
        system_usec: keyed(text, "system_usec")?,
        // Only there with the cpu controller.
        nr_throttled: keyed(text, "nr_throttled").unwrap_or(0),
        throttled_usec: keyed(text, "throttled_usec").unwrap_or(0),
    })
}

impl Cgroup {
    /// CPU time used: v2's `cpu.stat`, on a legacy layout cpuacct. Throttling is read from v1 where the cpu controller
    /// is there.
    ///
    /// # Errors
    /// `Unenforced(Cpuacct)` when nothing here counts CPU time.
    pub fn cpu(&self) -> Result<CpuUsage> {
        let mut usage = match (&self.unified, self.v1_dir(Controller::Cpuacct)) {
            (Some(dir), _) => {
                let text = dir.read("cpu.stat")?;
                parse_cpu_stat(&text).ok_or_else(|| unreadable(dir, "cpu.stat"))?
            }
            (None, Some(dir)) => CpuUsage {
                usage_usec: number(dir, "cpuacct.usage")? / 1000,
                user_usec: number(dir, "cpuacct.usage_user")? / 1000,
                system_usec: number(dir, "cpuacct.usage_sys")? / 1000,
                ..CpuUsage::default()
            },
            (None, None) => return Err(self.lacks("read cpu", Controller::Cpuacct)),
        };
        if let Some(dir) = self.v1_dir(Controller::Cpu) {
            let text = dir.read("cpu.stat")?;
            usage.nr_throttled = keyed(&text, "nr_throttled").unwrap_or(0);
            usage.throttled_usec = keyed(&text, "throttled_time").unwrap_or(0) / 1000;
        }
        Ok(usage)
    }

    /// The inode number: with the boot id, the generation of the counters. A cgroup made anew under the same name has
    /// another one and counts from 0.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn inode(&self) -> Result<u64> {
        self.main()?.inode()
    }

    /// Memory used.
    ///
    /// # Errors
    /// `Unenforced(Memory)` when no memory controller is on this cgroup.
    pub fn memory(&self) -> Result<MemoryUsage> {
        if let Some(dir) = self.v1_dir(Controller::Memory) {
            return Ok(MemoryUsage {
                current: number(dir, "memory.usage_in_bytes")?,
                peak: number(dir, "memory.max_usage_in_bytes").ok(),
                oom_kills: v1_oom_kills(dir, DEPTH_MAX)?,
            });
        }
        let dir = self.v2_dir(Controller::Memory, "memory.current", "read memory")?;
        Ok(MemoryUsage {
            current: number(dir, "memory.current")?,
            peak: number(dir, "memory.peak").ok(),
            oom_kills: keyed(&dir.read("memory.events")?, "oom_kill").unwrap_or(0),
        })
    }

    /// Memory used now, in bytes, and nothing else: one file, however much is below.
    ///
    /// # Errors
    /// `Unenforced(Memory)` when no memory controller is on this cgroup.
    pub fn memory_current(&self) -> Result<u64> {
        match self.v1_dir(Controller::Memory) {
            Some(dir) => number(dir, "memory.usage_in_bytes"),
            None => number(self.v2_dir(Controller::Memory, "memory.current", "read memory")?, "memory.current"),
        }
    }

    /// Bytes swapped out now; `None` where the kernel does not account swap.
    ///
    /// # Errors
    /// `Unenforced(Memory)` when no memory controller is on this cgroup.
    pub fn swap(&self) -> Result<Option<u64>> {
        if let Some(dir) = self.v1_dir(Controller::Memory) {
            // v1 has no file for swap alone; the counters that begin with `total_` include the children.
            return Ok(keyed(&dir.read("memory.stat")?, "total_swap"));
        }
        let dir = self.v2_dir(Controller::Memory, "memory.current", "read memory")?;
        Ok(number(dir, "memory.swap.current").ok())
    }

    /// How often memory limits were met.
    ///
    /// # Errors
    /// `Unenforced(Memory)` when no memory controller is on this cgroup.
    pub fn memory_events(&self) -> Result<MemoryEvents> {
        if let Some(dir) = self.v1_dir(Controller::Memory) {
            return Ok(MemoryEvents {
                // Where memory and swap together have the same limit, that one is met first.
                max: number(dir, "memory.failcnt")? + number(dir, "memory.memsw.failcnt").unwrap_or(0),
                oom_kill: v1_oom_kills(dir, DEPTH_MAX)?,
                ..MemoryEvents::default()
            });
        }
        let text = self.v2_dir(Controller::Memory, "memory.events", "read memory")?.read("memory.events")?;
        let count = |key| keyed(&text, key).unwrap_or(0);
        Ok(MemoryEvents {
            high: count("high"),
            max: count("max"),
            oom: count("oom"),
            oom_kill: count("oom_kill"),
            oom_group_kill: count("oom_group_kill"),
        })
    }

    /// Tasks.
    ///
    /// # Errors
    /// `Unenforced(Pids)` when no pids controller is on this cgroup.
    pub fn pids(&self) -> Result<PidsUsage> {
        let dir = match self.v1_dir(Controller::Pids) {
            Some(dir) => dir,
            None => self.v2_dir(Controller::Pids, "pids.current", "read pids")?,
        };
        let max = single(&dir.read("pids.max")?).ok_or_else(|| unreadable(dir, "pids.max"))?;
        Ok(PidsUsage { current: number(dir, "pids.current")?, max })
    }

    /// The processes here and below, by pid in our own pid namespace (those outside of it are left out).
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn procs(&self) -> Result<Vec<i32>> {
        procs_below(self.main()?)
    }

    /// The v2 directory, if `c` is on v2 and on this cgroup, which is told by its having `file`.
    pub(super) fn v2_dir(&self, c: Controller, file: &str, operation: &'static str) -> Result<&Dir> {
        let dir = self.unified.as_ref().filter(|_| self.hierarchy.backend(c) == Backend::V2);
        dir.filter(|d| d.has(file)).ok_or_else(|| self.lacks(operation, c))
    }

    fn lacks(&self, operation: &'static str, c: Controller) -> Error {
        Error::new(operation, self.path.as_str(), ErrorKind::Unenforced(c)).detail("not on this cgroup")
    }
}

/// Its own and those of the children that exist.
fn v1_oom_kills(dir: &Dir, depth: usize) -> Result<u64> {
    let mut kills = keyed(&dir.read("memory.oom_control")?, "oom_kill").unwrap_or(0);
    if depth == 0 {
        return Ok(kills);
    }
    for child in dir.children()? {
        if let Ok(child) = dir.below(&child) {
            match v1_oom_kills(&child, depth - 1) {
                Err(e) if e.kind == ErrorKind::NotFound => {} // removed while we looked
                other => kills += other?,
            }
        }
    }
    Ok(kills)
}

fn number(dir: &Dir, file: &str) -> Result<u64> {
    single(&dir.read(file)?).flatten().ok_or_else(|| unreadable(dir, file))
}

fn unreadable(dir: &Dir, file: &str) -> Error {
    Error::new("read", dir.path().join(file), ErrorKind::Io).detail("unexpected content")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn events_of_the_kernel() {
        assert_eq!(parse_events("populated 1\nfrozen 0\n"), Events { populated: true, frozen: false });
        assert_eq!(parse_events("populated 0\nfrozen 1\n"), Events { populated: false, frozen: true });
        assert_eq!(parse_events(""), Events::default());
    }

    proptest! {
        #[test]
        fn cpu_stat_round_trip(n in any::<[u64; 5]>(), extra in "[a-z_]{1,9}", throttling: bool) {
            let mut text = format!("usage_usec {}\nuser_usec {}\nsystem_usec {}\nx{extra} 3\n", n[0], n[1], n[2]);
            if throttling {
                text += &format!("nr_periods 9\nnr_throttled {}\nthrottled_usec {}\n", n[3], n[4]);
            }
            let usage = parse_cpu_stat(&text).unwrap();
            prop_assert_eq!((usage.usage_usec, usage.user_usec, usage.system_usec), (n[0], n[1], n[2]));
            let expected = if throttling { (n[3], n[4]) } else { (0, 0) };
            prop_assert_eq!((usage.nr_throttled, usage.throttled_usec), expected);
        }

        #[test]
        fn cpu_stat_without_a_time_is_refused(text in "(user_usec [0-9]{1,3}\n|system_usec x\n|\\PC{0,9}\n){0,4}") {
            prop_assert_eq!(parse_cpu_stat(&text), None);
        }
    }
}
