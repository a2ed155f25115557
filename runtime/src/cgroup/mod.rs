//! Control groups: make, limit, enter, measure, freeze, kill and remove them, on cgroup v2 and on v1 beside it.
//!
//! Owns: one [`Cgroup`] is one path, held open by directory fd in the v2 tree and in those v1 hierarchies that were
//! asked for. Everything is done relative to these fds, so a path can be renamed or reused under us without our
//! touching what took its place.
//!
//! Invariants:
//! - Accounting, freezing and killing are v2's. Limits use v2 where the controller is on v2, else v1.
//! - A limit that cannot be enforced is an error that names the controller, or, when the caller insists, a warning;
//!   it is never skipped in silence. What was written is read back.
//! - No process is ever moved, except the caller itself by [`Cgroup::join_self`].
//! - Waits are polls of `cgroup.events` or of pidfds, and all have a deadline.
//!
//! Left out: v1's freezer; systemd as a [`Manager`] (the caller gives a path that it may use); who owns which cgroup.

mod apply;
mod controller;
mod device_bpf;
mod devices;
mod error;
mod file;
mod freeze;
mod gauges;
mod hierarchy;
mod kill;
mod leaf;
mod limits;
mod manager;
mod parse;
mod path;
mod pressure;
mod procs;
mod reclaim;
mod remove;
mod stats;
mod tree;
mod v1;
mod v2;
mod wait;

pub use controller::Controller;
pub use devices::{Access, AccessError, DeviceKind, DeviceRule};
pub use error::{Error, ErrorKind, Result};
pub use gauges::{Gauges, LeafGauges, LeafReading};
pub use hierarchy::{Backend, Hierarchy, Layout};
pub use leaf::{LeafUsage, set_leaf_note};
pub use limits::{
    DEVICE_RULES_MAX, IoMax, Limits, UNIFIED_ENTRIES_MAX, Unenforced, Warning, io_weight_from_blkio,
    shares_from_weight, weight_from_shares,
};
pub use manager::Manager;
pub use parse::{is_number_list, number_list};
pub use path::CgroupPath;
pub use pressure::{Pressure, Resource, Stall};
pub use reclaim::Reclaimed;
pub use stats::{CpuUsage, Events, MemoryEvents, MemoryUsage, PidsUsage};

use file::Dir;

/// One cgroup, held open.
#[derive(Debug)]
pub struct Cgroup {
    hierarchy: Hierarchy,
    path: CgroupPath,
    unified: Option<Dir>,
    v1: Vec<V1Dir>,
    /// Controllers that an ancestor would not hand down when this cgroup was made, and why: the cause to name when a
    /// limit later turns out not to be enforceable.
    refused: Vec<Refusal>,
}

/// This cgroup in one v1 hierarchy.
#[derive(Debug)]
struct V1Dir {
    /// Index into the hierarchy's v1 mounts.
    mount: usize,
    dir: Dir,
}

/// An ancestor did not enable a controller for its children.
#[derive(Debug, Clone)]
struct Refusal {
    controller: Controller,
    ancestor: std::path::PathBuf,
    errno: rustix::io::Errno,
}
