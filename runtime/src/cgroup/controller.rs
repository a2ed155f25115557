//! The resource controllers of the kernel, by name.

use std::fmt;

macro_rules! controllers {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)+) => {
        /// A kernel resource controller. `Display` is the kernel's name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Controller { $($(#[$doc])* $variant,)+ }

        impl Controller {
            /// The kernel's name of it.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// The controller of this kernel name, if we know it.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

controllers! {
    /// CPU time: quota, weight.
    Cpu = "cpu",
    /// v1 CPU accounting; v2 always accounts.
    Cpuacct = "cpuacct",
    /// CPUs and memory nodes that may be used.
    Cpuset = "cpuset",
    /// Memory and swap.
    Memory = "memory",
    /// Number of tasks.
    Pids = "pids",
    /// Access to device nodes. On v2 this is an eBPF program, not a controller.
    Devices = "devices",
    /// v1 block IO.
    Blkio = "blkio",
    /// v2 block IO. Wherever a controller is looked up, `Io` and `Blkio` are one.
    Io = "io",
    /// Huge pages.
    Hugetlb = "hugetlb",
    /// v1 freezer; we always freeze by v2.
    Freezer = "freezer",
    /// RDMA resources.
    Rdma = "rdma",
    /// Scalar resources without a controller of their own.
    Misc = "misc",
    /// Device memory.
    Dmem = "dmem",
    /// Performance events.
    PerfEvent = "perf_event",
    /// v1 packet class.
    NetCls = "net_cls",
    /// v1 packet priority.
    NetPrio = "net_prio",
    /// Not a controller: what every v2 cgroup has (`cgroup.max.depth`, …).
    Core = "cgroup",
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// `io` and `blkio` are the two names of one controller.
pub(super) fn same(a: Controller, b: Controller) -> bool {
    let canonical = |c| {
        if c == Controller::Blkio { Controller::Io } else { c }
    };
    canonical(a) == canonical(b)
}

/// The controllers we know in a space-separated list.
pub(super) fn controllers_of(text: &str) -> Vec<Controller> {
    text.split_ascii_whitespace().filter_map(Controller::from_name).collect()
}
