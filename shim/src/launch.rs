//! Starting a box: what is asked for, what comes back, and (with the feature `handle`) `iceboxd`'s side of it.
//!
//! The work is done by `icebox-launch`, a fresh single-threaded process per box: forking into namespaces is safe only
//! there. It is spawned without any code between fork and exec, talks over the socket that is its standard input, and
//! is killed when it takes too long. Leaves out: how a box is put together (`translate`, and the runtime).

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What a box is made of. Paths are the host's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BoxSpec {
    /// The box's id.
    pub id: String,
    /// The name it sees itself by.
    pub hostname: String,
    /// Its run directory, which exists; the control socket is made in it.
    pub run_dir: PathBuf,
    /// Its cgroup, relative to the hierarchies' roots.
    pub cgroup: String,
    /// Read-only layers, the topmost first.
    pub lower: Vec<PathBuf>,
    /// The block device of its volume, held open by the caller.
    pub volume_device: PathBuf,
    /// First of the 65536 host ids that are its own.
    pub uid_base: u32,
    /// CPU quota in cores.
    pub cores: f64,
    /// Memory limit.
    pub memory_bytes: u64,
    /// Most processes and threads.
    pub pids_max: u64,
    /// Go on with a warning when a limit cannot be enforced on this machine.
    pub allow_unenforced_limits: bool,
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
    /// Limits that are not enforced, and whatever else people should know.
    pub warnings: Vec<String>,
    /// How long each step took, in microseconds.
    pub steps: Vec<(String, u64)>,
}

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

/// The hard limit of open files that boxes get here: raising it takes CAP_SYS_RESOURCE, which some hosts keep from root.
#[must_use]
pub(crate) fn box_open_files() -> u64 {
    let may_raise = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::SYS_RESOURCE));
    let own = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
    if may_raise { BOX_OPEN_FILES_MAX } else { BOX_OPEN_FILES_MAX.min(own) }
}

/// What boxes get less of on this host, in words for the operator: told once by the daemon, not by every box.
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
pub use spawn::launch;

#[cfg(feature = "handle")]
mod spawn;
