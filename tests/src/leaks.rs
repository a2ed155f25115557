//! What a daemon holds on the machine, counted before and after.
//!
//! Tests run side by side, so everything is filtered by what belongs to one daemon: its directories, its cgroup root,
//! its processes. Only the links of the host are compared as a whole (nothing else of the tests makes links).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::daemon::Daemon;
use crate::wait::{PATIENCE, wait_until};
use crate::{machine, pool};

/// How long the kernel may take to finish what was asked for (netns and loop teardown are asynchronous).
const SETTLE_DEADLINE: Duration = PATIENCE;
/// File descriptors that `iceboxd` may hold more than before: pooled database and keep-alive client connections.
const FD_SLACK: usize = 12;

/// A picture of everything that can leak.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Lines of the host's mountinfo that name the daemon's directories.
    pub mounts: BTreeSet<String>,
    /// Cgroup directories below the daemon's root, in every hierarchy.
    pub cgroups: BTreeSet<PathBuf>,
    /// Attached loop devices with a file of the daemon.
    pub loops: BTreeSet<(String, String)>,
    /// Links of the host.
    pub links: BTreeSet<String>,
    /// Processes in the daemon's cgroups, and launchers that name its run directory.
    pub processes: BTreeSet<String>,
    /// Network namespaces of these processes and of the daemon.
    pub netns: BTreeSet<String>,
    /// Files below the data directory and in its pool, without the database's own.
    pub files: BTreeSet<PathBuf>,
    /// What is below `<run dir>/boxes`.
    pub run_files: BTreeSet<PathBuf>,
}

/// Takes a picture now and compares with it later.
#[derive(Debug)]
pub struct LeakGuard {
    before: Picture,
    fds: usize,
}

impl LeakGuard {
    /// Remembers what the daemon holds now.
    pub fn new(daemon: &Daemon) -> Self {
        Self { before: Picture::take(daemon), fds: machine::fd_count(daemon.pid()) }
    }

    /// What is more (+) or less (-) than at the start, at this moment.
    pub fn differences(&self, daemon: &Daemon) -> Vec<String> {
        self.before.difference(&Picture::take(daemon))
    }

    /// Waits until the daemon holds what it held at the start; panics with the difference if it does not come to that.
    pub fn check(&self, daemon: &Daemon) {
        let mut now = Picture::take(daemon);
        let end = std::time::Instant::now() + SETTLE_DEADLINE;
        while now != self.before && std::time::Instant::now() < end {
            std::thread::park_timeout(Duration::from_millis(20));
            now = Picture::take(daemon);
        }
        let difference = self.before.difference(&now);
        assert!(difference.is_empty(), "left behind (+) or lost (-):\n{}", difference.join("\n"));
        wait_until(SETTLE_DEADLINE, "iceboxd to close file descriptors", || {
            machine::fd_count(daemon.pid()) <= self.fds + FD_SLACK
        });
    }
}

impl Picture {
    /// Reads `/proc`, `/sys` and the daemon's directories.
    pub fn take(daemon: &Daemon) -> Self {
        let run = daemon.run_dir().to_string_lossy().into_owned();
        let data = daemon.data_dir().to_string_lossy().into_owned();
        let root = daemon.cgroup_root();
        let mut processes = BTreeSet::new();
        let mut netns = BTreeSet::new();
        for pid in all_pids() {
            let mine = pid == daemon.pid();
            if !mine && !belongs(pid, root, &run) {
                continue;
            }
            netns.extend(machine::namespace(&pid.to_string(), "net"));
            if !mine {
                processes.insert(describe(pid));
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        let mounts = mounts.lines().filter(|l| l.contains(&run) || l.contains(&data)).map(str::to_owned).collect();
        Self {
            mounts,
            cgroups: daemon.cgroups().below(root),
            loops: pool::loops_below(&daemon.data_dir()),
            links: machine::links(),
            processes,
            netns,
            files: files_of(daemon),
            run_files: machine::tree(&daemon.run_dir().join("boxes")),
        }
    }

    fn difference(&self, now: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut add = |name: &str, before: BTreeSet<String>, after: BTreeSet<String>| {
            lines.extend(after.difference(&before).map(|x| format!("+ {name} {x}")));
            lines.extend(before.difference(&after).map(|x| format!("- {name} {x}")));
        };
        let paths = |set: &BTreeSet<PathBuf>| set.iter().map(|p| p.display().to_string()).collect();
        let pairs = |set: &BTreeSet<(String, String)>| set.iter().map(|(a, b)| format!("{a} {b}")).collect();
        add("mount", self.mounts.clone(), now.mounts.clone());
        add("cgroup", paths(&self.cgroups), paths(&now.cgroups));
        add("loop", pairs(&self.loops), pairs(&now.loops));
        add("link", self.links.clone(), now.links.clone());
        add("process", self.processes.clone(), now.processes.clone());
        add("netns", self.netns.clone(), now.netns.clone());
        add("file", paths(&self.files), paths(&now.files));
        add("run file", paths(&self.run_files), paths(&now.run_files));
        lines
    }
}

/// Files of the data directory and of its pool.
fn files_of(daemon: &Daemon) -> BTreeSet<PathBuf> {
    let mut files = machine::tree(&daemon.data_dir());
    if let Some(root) = pool::root_of(daemon.pid(), &daemon.data_dir()) {
        files.extend(machine::tree(&root).into_iter().map(|path| Path::new("pool").join(path)));
    }
    // The balloon comes and goes with the space around the pool.
    files.into_iter().filter(|path| !of_database(path) && path != Path::new("pool/balloon")).collect()
}

fn of_database(path: &Path) -> bool {
    path.to_string_lossy().starts_with("icebox.db")
}

fn all_pids() -> Vec<i32> {
    let entries = fs::read_dir("/proc").expect("read /proc");
    entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

/// A process of a box (by cgroup) or a helper process of the daemon (by a run directory in its arguments).
fn belongs(pid: i32, root: &str, run_dir: &str) -> bool {
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    if cgroup.lines().any(|l| l.contains(root)) {
        return true;
    }
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&arguments).contains(run_dir)
}

fn describe(pid: i32) -> String {
    let name = machine::status_line(pid, "Name").unwrap_or_default();
    let state = machine::process_state(pid).unwrap_or('?');
    format!("{pid} {name} {state}")
}
