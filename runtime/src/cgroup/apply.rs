//! Applies [`Limits`] to a cgroup: one limit after the other, each in the hierarchy of its controller.
//!
//! Owns the order and the rule that nothing is skipped in silence. The writes themselves are in `v1.rs` and `v2.rs`.

use rustix::io::Errno;

use super::controller::Controller;
use super::devices::DeviceRule;
use super::error::{Error, ErrorKind, Result};
use super::file::Dir;
use super::hierarchy::Backend;
use super::limits::{Limits, Unenforced, Warning};
use super::tree::enable;
use super::{Cgroup, Refusal, device_bpf, v1, v2};

/// The directory of a controller's files, and their dialect.
pub(super) enum Place<'a> {
    V1(&'a Dir),
    V2(&'a Dir),
}

impl Cgroup {
    /// Enforces these limits. Safe to call again with other values, also on a cgroup with processes.
    ///
    /// # Errors
    /// `Unenforced(controller)` (with [`Unenforced::Refuse`]) when the controller is not here, lacks this limit, or
    /// did not take the value; `Invalid` for values that no kernel takes; `Busy` when v1 memory cannot shrink below
    /// what is in use. Limits before the failing one are in force then.
    pub fn apply(&self, limits: &Limits, unenforced: Unenforced) -> Result<Vec<Warning>> {
        let subject = self.main()?.path();
        limits.check(subject)?;
        let mut refused = self.refused.clone();
        // cpu, memory and pids were handed down at creation; the other controllers are enabled when needed.
        let late: Vec<_> = limits.controllers().into_iter().filter(|c| self.needs_handing_down(*c)).collect();
        if !late.is_empty() {
            refused.extend(enable(&self.hierarchy, &self.path, &late)?);
        }
        let mut run = Run { cgroup: self, unenforced, refused, warnings: Vec::new() };
        run.cpuset(limits)?;
        run.cpu(limits)?;
        run.memory(limits)?;
        run.pids_and_io(limits)?;
        run.unified(limits)?;
        run.devices(&limits.devices)?;
        Ok(run.warnings)
    }

    fn needs_handing_down(&self, c: Controller) -> bool {
        matches!(c, Controller::Cpuset | Controller::Io | Controller::Hugetlb)
            && self.v1_dir(c).is_none()
            && self.hierarchy.backend(c) == Backend::V2
    }

    fn place(&self, c: Controller) -> Option<Place<'_>> {
        if let Some(dir) = self.v1_dir(c) {
            return Some(Place::V1(dir));
        }
        let dir = self.unified.as_ref()?;
        if c == Controller::Devices {
            // The eBPF filter needs no controller, so it also works if this cgroup is not in v1's devices hierarchy.
            return Some(Place::V2(dir));
        }
        (self.hierarchy.backend(c) == Backend::V2).then_some(Place::V2(dir))
    }
}

struct Run<'a> {
    cgroup: &'a Cgroup,
    unenforced: Unenforced,
    refused: Vec<Refusal>,
    warnings: Vec<Warning>,
}

impl Run<'_> {
    /// One limit: `set` it where `c` is; if that cannot be, fail or warn.
    fn limit(&mut self, c: Controller, value: String, set: impl FnOnce(&Place<'_>) -> Result<()>) -> Result<()> {
        let error = match self.cgroup.place(c) {
            None => Error::new("limit", self.cgroup.path.as_str(), ErrorKind::Unenforced(c)).detail(self.absence(c)),
            Some(place) => match set(&place) {
                Ok(()) => return Ok(()),
                Err(e) if e.is(Errno::NOENT) || e.kind == ErrorKind::Unsupported => {
                    let why = self.refusal(c).unwrap_or_else(|| format!("the kernel has no {value} here"));
                    e.with_kind(ErrorKind::Unenforced(c)).detail(why)
                }
                Err(e) => e,
            },
        };
        match (error.kind, self.unenforced) {
            (ErrorKind::Unenforced(controller), Unenforced::Allow) => {
                self.warnings.push(Warning { controller, value, reason: error.to_string() });
                Ok(())
            }
            _ => Err(error),
        }
    }

    fn absence(&self, c: Controller) -> String {
        match self.cgroup.hierarchy.backend(c) {
            Backend::V1(path) => format!("the cgroup was not opened in the v1 hierarchy {}", path.display()),
            Backend::V2 => "the cgroup is not open in the v2 tree".to_owned(),
            Backend::None => "no hierarchy has this controller".to_owned(),
        }
    }

    fn refusal(&self, c: Controller) -> Option<String> {
        let refusal = self.refused.iter().find(|r| r.controller == c)?;
        Some(format!("{} does not hand it down: {}", refusal.ancestor.display(), refusal.errno))
    }

    fn cpuset(&mut self, l: &Limits) -> Result<()> {
        for (file, list) in [("cpuset.cpus", &l.cpuset_cpus), ("cpuset.mems", &l.cpuset_mems)] {
            if let Some(list) = list {
                // Both versions name and write these files alike.
                self.limit(Controller::Cpuset, format!("{file}={list}"), |place| match place {
                    Place::V1(dir) | Place::V2(dir) => v2::number_list(dir, file, list),
                })?;
            }
        }
        Ok(())
    }

    fn cpu(&mut self, l: &Limits) -> Result<()> {
        if l.cpu_quota_us.is_some() || l.cpu_period_us.is_some() {
            let shown = |v: Option<String>| v.unwrap_or_else(|| "-".to_owned());
            let quota = shown(l.cpu_quota_us.map(|v| v.to_string()));
            let period = shown(l.cpu_period_us.map(|v| v.to_string()));
            self.limit(Controller::Cpu, format!("cpu.max={quota} {period}"), |place| match place {
                Place::V1(dir) => v1::cpu_max(dir, l.cpu_quota_us, l.cpu_period_us, l.cpu_burst_us.is_some()),
                Place::V2(dir) => v2::cpu_max(dir, l.cpu_quota_us, l.cpu_period_us, l.cpu_burst_us.is_some()),
            })?;
        }
        if let Some(burst) = l.cpu_burst_us {
            self.limit(Controller::Cpu, format!("cpu.max.burst={burst}"), |place| match place {
                Place::V1(dir) => v2::exact(dir, Controller::Cpu, "cpu.cfs_burst_us", burst),
                Place::V2(dir) => v2::exact(dir, Controller::Cpu, "cpu.max.burst", burst),
            })?;
        }
        // Leaving SCHED_IDLE must come before a weight, which the kernel refuses for an idle group; entering it after.
        if l.cpu_idle == Some(false) {
            self.cpu_idle(false)?;
        }
        if let Some(weight) = l.cpu_weight {
            self.limit(Controller::Cpu, format!("cpu.weight={weight}"), |place| match place {
                Place::V1(dir) => v1::cpu_weight(dir, weight),
                Place::V2(dir) => v2::exact(dir, Controller::Cpu, "cpu.weight", weight),
            })?;
        }
        if l.cpu_idle == Some(true) { self.cpu_idle(true) } else { Ok(()) }
    }

    fn cpu_idle(&mut self, idle: bool) -> Result<()> {
        self.limit(Controller::Cpu, format!("cpu.idle={idle}"), |place| match place {
            Place::V1(dir) | Place::V2(dir) => v2::exact(dir, Controller::Cpu, "cpu.idle", u64::from(idle)),
        })
    }

    fn memory(&mut self, l: &Limits) -> Result<()> {
        let c = Controller::Memory;
        let v1_pair = self.cgroup.v1_dir(c).is_some() && l.memory_swap_max_bytes.is_some();
        if let (Some(max), false) = (l.memory_max_bytes, v1_pair) {
            self.limit(c, format!("memory.max={max}"), |place| match place {
                Place::V1(dir) => v1::memory_max(dir, max),
                Place::V2(dir) => v2::bytes(dir, "memory.max", max),
            })?;
        }
        if let Some(swap) = l.memory_swap_max_bytes {
            let label = match l.memory_max_bytes.filter(|_| v1_pair) {
                Some(max) => format!("memory.max={max} memory.swap.max={swap}"),
                None => format!("memory.swap.max={swap}"),
            };
            self.limit(c, label, |place| match place {
                Place::V1(dir) => v1::memory_and_swap(dir, l.memory_max_bytes, swap),
                Place::V2(dir) => v2::bytes(dir, "memory.swap.max", swap),
            })?;
        }
        if let Some(high) = l.memory_high_bytes {
            self.limit(c, format!("memory.high={high}"), |place| match place {
                Place::V1(dir) => Err(v1::lacks(dir, c, "v1 has no throttling limit")),
                Place::V2(dir) => v2::bytes(dir, "memory.high", high),
            })?;
        }
        if let Some(low) = l.memory_low_bytes {
            self.limit(c, format!("memory.low={low}"), |place| match place {
                Place::V1(dir) => v1::bytes(dir, "memory.soft_limit_in_bytes", low),
                Place::V2(dir) => v2::bytes(dir, "memory.low", low),
            })?;
        }
        if let Some(max) = l.socket_memory_max_bytes {
            self.limit(c, format!("{}={max}", v1::SOCKETS), |place| match place {
                Place::V1(dir) => v1::bytes(dir, v1::SOCKETS, max),
                Place::V2(_) => Ok(()),
            })?;
        }
        if l.oom_group {
            self.limit(c, "memory.oom.group=1".to_owned(), |place| match place {
                Place::V1(dir) => Err(v1::lacks(dir, c, "v1 kills one process, never the group")),
                Place::V2(dir) => v2::exact(dir, c, "memory.oom.group", 1),
            })?;
        }
        Ok(())
    }

    fn pids_and_io(&mut self, l: &Limits) -> Result<()> {
        if let Some(max) = l.pids_max {
            self.limit(Controller::Pids, format!("pids.max={max}"), |place| match place {
                Place::V1(dir) | Place::V2(dir) => v2::max_or(dir, Controller::Pids, "pids.max", max),
            })?;
        }
        if let Some(weight) = l.io_weight {
            self.limit(Controller::Io, format!("io.weight={weight}"), |place| match place {
                Place::V1(dir) => v1::io_weight(dir, weight),
                Place::V2(dir) => v2::io_weight(dir, weight),
            })?;
        }
        for io in &l.io_max {
            self.limit(Controller::Io, format!("io.max={}", v2::io_max_line(io)), |place| match place {
                Place::V1(dir) => v1::io_max(dir, io),
                Place::V2(dir) => v2::io_max(dir, io),
            })?;
        }
        for (size, bytes) in &l.hugetlb {
            self.limit(Controller::Hugetlb, format!("hugetlb.{size}.max={bytes}"), |place| match place {
                Place::V1(dir) => v2::hugetlb(dir, &format!("hugetlb.{size}.limit_in_bytes"), *bytes),
                Place::V2(dir) => v2::hugetlb(dir, &format!("hugetlb.{size}.max"), *bytes),
            })?;
        }
        Ok(())
    }

    fn unified(&mut self, l: &Limits) -> Result<()> {
        for (file, value) in &l.unified {
            // `check` let through only names that begin with a controller's.
            let prefix = file.split('.').next().unwrap_or_default();
            let c = Controller::from_name(prefix).unwrap_or(Controller::Core);
            let late = enable(&self.cgroup.hierarchy, &self.cgroup.path, &[c])?;
            self.refused.extend(late);
            self.limit(c, format!("{file}={value}"), |place| match place {
                Place::V1(dir) => Err(v1::lacks(dir, c, "a v2 file, and the controller is on v1")),
                Place::V2(dir) => value.lines().try_for_each(|line| dir.write(file, line)),
            })?;
        }
        Ok(())
    }

    fn devices(&mut self, rules: &[DeviceRule]) -> Result<()> {
        if rules.is_empty() {
            return Ok(());
        }
        let c = Controller::Devices;
        self.limit(c, format!("devices ({} rules)", rules.len()), |place| match place {
            Place::V1(dir) => v1::devices(dir, rules),
            Place::V2(dir) => device_bpf::apply(dir, rules).map_err(|e| match e.kind {
                // EINVAL of bpf(2): a kernel built without this program type. EPERM: not from this user namespace.
                ErrorKind::Invalid | ErrorKind::Denied => e.with_kind(ErrorKind::Unenforced(c)),
                _ => e,
            }),
        })
    }
}
