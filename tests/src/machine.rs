//! What the kernel says: cgroups, processes, mounts. Read only, except for [`Cgroups::destroy`], which clears what a
//! failed test left below a root of its own, and [`Cgroups::set`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::wait::{PATIENCE, wait_for, wait_until};

/// Clock ticks per second of `/proc/<pid>/stat` on Linux user space.
const TICKS_PER_SECOND: u64 = 100;

/// Panics unless the test runs as root: boxes need namespaces, mounts and cgroups.
pub fn require_root() {
    // The kernel's own word about this process.
    let status = fs::read_to_string("/proc/self/status").expect("read /proc/self/status");
    let uid = status.lines().find_map(|l| l.strip_prefix("Uid:")).expect("a Uid line");
    assert!(
        uid.split_whitespace().nth(1) == Some("0"),
        "this test makes boxes and needs root; run `cargo xtask test` as root"
    );
}

/// The mounted cgroup hierarchies of this machine.
#[derive(Debug, Clone)]
pub struct Cgroups {
    /// Mount point of cgroup2.
    pub unified: PathBuf,
    /// Mount points of the v1 hierarchies, by controller (or by name, as `name=systemd`).
    pub v1: BTreeMap<String, PathBuf>,
}

impl Cgroups {
    /// Reads `/proc/self/mountinfo`.
    pub fn probe() -> Self {
        let mut unified = None;
        let mut v1 = BTreeMap::new();
        for line in fs::read_to_string("/proc/self/mountinfo").expect("mountinfo").lines() {
            let Some((left, right)) = line.split_once(" - ") else {
                continue;
            };
            let point = PathBuf::from(left.split(' ').nth(4).unwrap_or_default());
            let mut right = right.split(' ');
            match right.next() {
                Some("cgroup2") => unified = Some(point),
                Some("cgroup") => {
                    for option in right.nth(1).unwrap_or_default().split(',').filter(|o| *o != "rw") {
                        v1.insert(option.to_owned(), point.clone());
                    }
                }
                _ => {}
            }
        }
        let unified = unified.expect("cgroup2 is mounted on this machine");
        Self { unified, v1 }
    }

    /// Every mount point, without repeats.
    pub fn mounts(&self) -> BTreeSet<PathBuf> {
        self.v1.values().chain([&self.unified]).cloned().collect()
    }

    /// The directories of cgroups at and below `root` (a path relative to the mount points), in every hierarchy.
    pub fn below(&self, root: &str) -> BTreeSet<PathBuf> {
        let mut found = BTreeSet::new();
        for mount in self.mounts() {
            collect_dirs(&mount.join(root), &mut found);
        }
        found
    }

    /// The pids in the unified cgroup `path` and below it.
    pub fn procs(&self, path: &str) -> Vec<i32> {
        let mut dirs = BTreeSet::new();
        collect_dirs(&self.unified.join(path), &mut dirs);
        let mut pids = Vec::new();
        for dir in dirs {
            let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            pids.extend(text.lines().filter_map(|l| l.parse::<i32>().ok()));
        }
        pids
    }

    /// A number of the unified cgroup's `cpu.stat`, in microseconds (`usage_usec`, `user_usec`, …).
    pub fn cpu_stat(&self, path: &str, key: &str) -> u64 {
        let file = self.unified.join(path).join("cpu.stat");
        let text = fs::read_to_string(&file).unwrap_or_else(|e| panic!("read {}: {e}", file.display()));
        key_value(&text, key).unwrap_or_else(|| panic!("{} has no {key}: {text}", file.display()))
    }

    /// A number of the unified cgroup's `cgroup.events` (`populated`, `frozen`).
    pub fn event(&self, path: &str, key: &str) -> Option<u64> {
        let text = fs::read_to_string(self.unified.join(path).join("cgroup.events")).ok()?;
        key_value(&text, key)
    }

    /// The directory where `controller` governs `path`: the v1 hierarchy when it has the controller, else cgroup2.
    pub fn controller_dir(&self, controller: &str, path: &str) -> PathBuf {
        self.v1.get(controller).unwrap_or(&self.unified).join(path)
    }

    /// A file of the unified cgroup `path`, trimmed.
    pub fn read(&self, path: &str, file: &str) -> String {
        let file = self.unified.join(path).join(file);
        std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("read {}: {e}", file.display())).trim().to_owned()
    }

    /// A number of such a file: of the line that begins with `key`, or the only one if `key` is empty.
    pub fn number(&self, path: &str, file: &str, key: &str) -> u64 {
        let text = self.read(path, file);
        let number = if key.is_empty() { text.parse().ok() } else { key_value(&text, key) };
        number.unwrap_or_else(|| panic!("no number {key:?} in {file} of {path}: {text}"))
    }

    /// Sets a limit by hand, where a test needs one smaller than any box has.
    pub fn set(&self, path: &str, file: &str, value: &str) {
        let file = self.unified.join(path).join(file);
        fs::write(&file, value).unwrap_or_else(|e| panic!("write {value:?} to {}: {e}", file.display()));
    }

    /// Kills and removes everything below `root`. The last resort of a test that failed; `root` is unique to it.
    pub fn destroy(&self, root: &str) {
        assert!(root.starts_with("icebox"), "refuses to destroy the cgroup {root:?}");
        let top = self.unified.join(root);
        if !self.below(root).is_empty() {
            let _ = fs::write(top.join("cgroup.kill"), "1");
            for pid in self.v1_procs(root) {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            }
            wait_until(PATIENCE, &format!("the cgroup {root} to be removable"), || {
                for dir in self.below(root).into_iter().rev() {
                    let _ = fs::remove_dir(dir);
                }
                self.below(root).is_empty()
            });
        }
    }

    fn v1_procs(&self, root: &str) -> Vec<i32> {
        let mut pids = Vec::new();
        for dir in self.below(root) {
            let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            pids.extend(text.lines().filter_map(|l| l.parse::<i32>().ok()));
        }
        pids
    }
}

fn collect_dirs(dir: &Path, found: &mut BTreeSet<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    found.insert(dir.to_owned());
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            collect_dirs(&entry.path(), found);
        }
    }
}

/// The number behind `key` in a file of `key value` lines.
pub fn key_value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// A line of `/proc/<pid>/status` without its name, trimmed.
pub fn status_line(pid: i32, name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    text.lines().find_map(|l| Some(l.strip_prefix(name)?.strip_prefix(':')?.trim().to_owned()))
}

/// Resident memory of a process in kilobytes.
pub fn rss_kb(pid: i32) -> u64 {
    let line = status_line(pid, "VmRSS").unwrap_or_else(|| panic!("process {pid} has no VmRSS line"));
    line.split(' ').next().and_then(|n| n.parse().ok()).expect("a number of kB")
}

/// Fields of `/proc/<pid>/stat` after the command name; index 0 is the state (field 3 of proc(5)).
fn stat_fields(pid: i32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(") ")?;
    Some(rest.split(' ').map(str::to_owned).collect())
}

/// Start time of a process in clock ticks since boot; with the pid it names a process for ever.
pub fn start_time(pid: i32) -> Option<u64> {
    stat_fields(pid)?.get(19)?.parse().ok()
}

/// One letter: R, S, D, Z, T …
pub fn process_state(pid: i32) -> Option<char> {
    stat_fields(pid)?.first()?.chars().next()
}

/// CPU time (user and system) of a process, its threads included, in milliseconds.
pub fn cpu_ms(pid: i32) -> u64 {
    let fields = stat_fields(pid).unwrap_or_else(|| panic!("process {pid} is gone"));
    let ticks: u64 = [11, 12].iter().map(|i| fields[*i].parse::<u64>().expect("ticks")).sum();
    ticks * 1000 / TICKS_PER_SECOND
}

/// How many file descriptors a process holds.
pub fn fd_count(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map(|d| d.count()).unwrap_or(0)
}

/// The inode number of a namespace of a process (`kind` as in `/proc/<pid>/ns`).
pub fn namespace(pid: &str, kind: &str) -> Option<String> {
    let link = fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()?;
    Some(link.to_string_lossy().into_owned())
}

/// The host pid of a box's PID 1: the process below the cgroup whose innermost pid is 1.
pub fn init_pid(cgroups: &Cgroups, cgroup: &str) -> i32 {
    wait_for(PATIENCE, &format!("an init process in the cgroup {cgroup}"), || {
        cgroups.procs(cgroup).into_iter().find(|pid| {
            status_line(*pid, "NSpid").is_some_and(|l| {
                let pids: Vec<&str> = l.split_whitespace().collect();
                pids.len() > 1 && pids.last() == Some(&"1")
            })
        })
    })
}

/// Names of the network links of the host's network namespace.
pub fn links() -> BTreeSet<String> {
    let entries = fs::read_dir("/sys/class/net").expect("read /sys/class/net");
    entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

/// Every file and directory below `dir`, relative, sorted.
pub fn tree(dir: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(next) = todo.pop() {
        let Ok(entries) = fs::read_dir(&next) else {
            continue;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                todo.push(path.clone());
            }
            found.insert(path.strip_prefix(dir).expect("below dir").to_owned());
        }
    }
    found
}
