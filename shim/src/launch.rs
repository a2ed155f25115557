//! Starting a box: the request, the result, and (with the feature `handle`) `iceboxd`'s side of a launch.
//!
//! The work is done by `icebox-launch`, which is single-threaded, as forking into namespaces is safe only there. One process
//! of it stays and forks for each box; the new process talks over a socket of its own, and is killed when it takes too
//! long. Leaves out: the set-up of a box (`translate`, and the runtime).

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The specification of a box. Paths are the host's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BoxSpec {
    /// The box's id.
    pub id: String,
    /// Its host name.
    pub hostname: String,
    /// Its run directory, which exists; the control socket is made in it.
    pub run_dir: PathBuf,
    /// Its cgroup, relative to the hierarchies' roots.
    pub cgroup: String,
    /// Read-only layers, the topmost first.
    pub lower: Vec<PathBuf>,
    /// The block device of its volume, held open by the caller.
    pub volume_device: PathBuf,
    /// Volumes beside it.
    #[serde(default)]
    pub volumes: Vec<VolumeMount>,
    /// First of the 65536 host ids that are its own.
    pub uid_base: u32,
    /// The DNS server it asks; none if it has no network.
    pub nameserver: Option<Ipv4Addr>,
    /// CPU quota in cores.
    pub cores: f64,
    /// Memory limit.
    pub memory_bytes: u64,
    /// Most processes and threads of all its runs together.
    pub pids_max: u64,
    /// Files over those of its `/proc`.
    pub proc_files: Vec<ProcFile>,
    /// The operator's limits for every box.
    pub limits: HostLimits,
    /// Go on with a warning when a limit cannot be enforced on this machine.
    pub allow_unenforced_limits: bool,
}

/// A volume of files that outlives the box. Ids in it are those in the box.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    /// Its block device, held open by the caller.
    pub device: PathBuf,
    /// The directory in it that is mounted.
    pub directory: String,
    /// Absolute path in the box.
    pub target: PathBuf,
    /// The box can only read it. All mounts of one device must agree.
    pub readonly: bool,
}

/// A file over one of the box's `/proc`. The box cannot write it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcFile {
    /// Name in `/proc`.
    pub name: String,
    /// Contents at the start.
    pub text: String,
    /// The init's descriptor of it. Who holds the init's pidfd takes it from there to write the file.
    pub kept_as: Option<i32>,
}

/// Limits that are the operator's choice and the same for every box. `None` is no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HostLimits {
    /// `memory.high` in percent of the box's memory. Off by default: without swap there is nothing to reclaim from a
    /// program that only grows, so it is not killed at its limit but throttled below it, for minutes and longer
    /// (measured: killed after 6 s without, still crawling after 90 s with 90 %).
    pub memory_high_percent: Option<u8>,
    /// The CPUs that boxes may use, e.g. `2-7`.
    pub cpuset_cpus: Option<String>,
    /// Bytes per second that a box may read from its disk.
    pub io_read_bytes_per_second: Option<u64>,
    /// Bytes per second that it may write.
    pub io_write_bytes_per_second: Option<u64>,
    /// Reads per second.
    pub io_reads_per_second: Option<u64>,
    /// Writes per second.
    pub io_writes_per_second: Option<u64>,
}

/// Lowest disk rate. With a lower one a box could not start: its own mount would take minutes.
const IO_BYTES_PER_SECOND_MIN: u64 = 64 << 10;
/// As above, for the number of reads or writes.
const IO_PER_SECOND_MIN: u64 = 10;

impl HostLimits {
    /// Checks the values.
    ///
    /// # Errors
    /// The key, and what is expected of it.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        if self.memory_high_percent.is_some_and(|percent| !(50..=99).contains(&percent)) {
            return Err(("limits.memory_high_percent", "must be 50 to 99"));
        }
        if self.cpuset_cpus.as_deref().is_some_and(|list| !icebox_runtime::cgroup::is_number_list(list)) {
            return Err(("limits.cpuset_cpus", "must be a list of CPUs like 0-3,7"));
        }
        for (key, value) in [
            ("limits.io_read_bytes_per_second", self.io_read_bytes_per_second),
            ("limits.io_write_bytes_per_second", self.io_write_bytes_per_second),
        ] {
            if value.is_some_and(|value| value < IO_BYTES_PER_SECOND_MIN) {
                return Err((key, "must be at least 65536"));
            }
        }
        for (key, value) in [
            ("limits.io_reads_per_second", self.io_reads_per_second),
            ("limits.io_writes_per_second", self.io_writes_per_second),
        ] {
            if value.is_some_and(|value| value < IO_PER_SECOND_MIN) {
                return Err((key, "must be at least 10"));
            }
        }
        Ok(())
    }

    /// Some rate of the box's disk is limited.
    #[must_use]
    pub fn limits_io(&self) -> bool {
        self.io_read_bytes_per_second.is_some()
            || self.io_write_bytes_per_second.is_some()
            || self.io_reads_per_second.is_some()
            || self.io_writes_per_second.is_some()
    }
}

/// A launched box.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launched {
    /// Host pid of its init.
    pub pid: i32,
    /// Start time of that process in clock ticks, the guard against pid reuse.
    pub start_time_ticks: u64,
    /// The boot it lives in.
    pub boot_id: String,
    /// Inode of its unified cgroup: the generation of its counters.
    pub cgroup_inode: u64,
    /// Limits that are not enforced, and other notes for the operator.
    pub warnings: Vec<String>,
    /// The duration of each step, in microseconds.
    pub steps: Vec<(String, u64)>,
}

/// The cgroup of all runs of a box, which limits their processes, so that some are kept for the init. Where pids is a
/// v1 controller it is in that hierarchy only; else the leaves of the runs are in it.
pub(crate) const RUNS_GROUP: &str = "runs";
/// Processes of a box that runs cannot use: the init, its file workers, and children being started.
pub(crate) const PIDS_RESERVE: u64 = 96;

/// The programs a launch needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tools {
    /// The resident init.
    pub init: PathBuf,
    /// The launcher.
    pub launch: PathBuf,
}

/// Names another directory for the tools.
pub const LIBEXEC_ENV: &str = "ICEBOX_LIBEXEC";

impl Tools {
    /// The tools beside the running program, or in the directory that [`LIBEXEC_ENV`] names.
    ///
    /// # Errors
    /// The running program's path is not known.
    pub fn beside_current_exe() -> Result<Self, crate::Error> {
        let directory = match std::env::var_os(LIBEXEC_ENV) {
            Some(directory) if !directory.is_empty() => PathBuf::from(directory),
            _ => {
                let program =
                    std::env::current_exe().map_err(|e| crate::Error::io("find own program", "/proc/self/exe", e))?;
                program.parent().map(PathBuf::from).unwrap_or_default()
            }
        };
        Ok(Self { init: directory.join("icebox-init"), launch: directory.join("icebox-launch") })
    }
}

/// Most files that a program of a box may have open, after raising its own limit (systemd's value).
const BOX_OPEN_FILES_MAX: u64 = 524_288;

/// The hard limit of open files that boxes get here. Raising it takes CAP_SYS_RESOURCE, which root lacks on some hosts.
#[must_use]
pub(crate) fn box_open_files() -> u64 {
    let may_raise = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::SYS_RESOURCE));
    let own = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
    if may_raise { BOX_OPEN_FILES_MAX } else { BOX_OPEN_FILES_MAX.min(own) }
}

/// The resources that boxes get less of on this host, as text for the operator: the daemon reports it once.
#[must_use]
pub fn shortfalls() -> Vec<String> {
    let files = box_open_files();
    let mut list = Vec::new();
    if files < BOX_OPEN_FILES_MAX {
        list.push(format!(
            "programs in boxes may have {files} files open, not {BOX_OPEN_FILES_MAX}: this process has no CAP_SYS_RESOURCE to \
             raise its limit; start it with LimitNOFILE={BOX_OPEN_FILES_MAX} or with that capability"
        ));
    }
    list
}

#[cfg(feature = "handle")]
pub use disk::{UPPER, open_disk, open_new_disk};
#[cfg(feature = "handle")]
pub use spawn::Launcher;

#[cfg(feature = "handle")]
mod disk;
#[cfg(feature = "handle")]
mod forks;
#[cfg(feature = "handle")]
mod spawn;
