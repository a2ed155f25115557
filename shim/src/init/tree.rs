//! Signals to every process of a run.
//!
//! A run's cgroup says exactly which processes these are, however they were forked, and the kernel kills it as a whole.
//! Without one (an init outside a box) it is the descendants and the session of the direct process, which a double fork
//! with a new session leaves.
//! Invariant: a process is signalled by pidfd, after a check that the pidfd refers to the intended process.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;

use icebox_runtime::process::pidfd_signal;
use rustix::process::{Pid, PidfdFlags};

use super::leaf::Leaf;

/// Most rounds of a kill, which is repeated until no process is left: processes may fork meanwhile.
const KILL_ROUNDS_MAX: usize = 32;
/// Longest file of /proc that is read here.
const PROC_FILE_BYTES_MAX: u64 = 64 * 1024;

/// The processes of a run, also after its direct process has ended.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) leaf: Option<Leaf>,
    /// Pid of the direct process. Not reused while a process of its session lives.
    pub(crate) leader: i32,
}

/// Sends a signal to every process of a run; SIGKILL until none is left.
pub(crate) fn signal_tree(tree: &Tree, signal: i32) {
    if signal == libc::SIGKILL
        && let Some(leaf) = &tree.leaf
        && leaf.kill().is_ok()
    {
        return;
    }
    let rounds = if signal == libc::SIGKILL { KILL_ROUNDS_MAX } else { 1 };
    for _ in 0..rounds {
        let members = members(tree);
        if members.is_empty() {
            return;
        }
        let mut hit = false;
        for (pid, start) in members {
            hit |= signal_process(pid, start, signal);
        }
        if !hit {
            return;
        }
    }
}

/// The members' pids and start times.
fn members(tree: &Tree) -> Vec<(i32, u64)> {
    let own = std::process::id().cast_signed();
    let pids = match &tree.leaf {
        Some(leaf) => leaf.pids(),
        None => descendants(tree.leader),
    };
    pids.into_iter()
        .filter(|pid| *pid > 0 && *pid != own)
        .filter_map(|pid| read_stat(pid).map(|stat| (pid, stat)))
        // A zombie has nothing left to signal; it is reaped in its time.
        .filter(|(_, stat)| stat.state != 'Z')
        .map(|(pid, stat)| (pid, stat.start))
        .collect()
}

fn signal_process(pid: i32, start: u64, signal: i32) -> bool {
    let Some(id) = Pid::from_raw(pid) else {
        return false;
    };
    let Ok(pidfd) = rustix::process::pidfd_open(id, PidfdFlags::empty()) else {
        return false;
    };
    // The pid could have been reused before the pidfd was there, not after.
    let same = read_stat(pid).is_some_and(|stat| stat.start == start);
    same && pidfd_signal(pidfd.as_fd(), signal).is_ok()
}

fn read_limited(file: File) -> String {
    let mut bytes = Vec::new();
    // A partial answer is used: the next round sees the rest.
    let _ = file.take(PROC_FILE_BYTES_MAX).read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    state: char,
    parent: i32,
    session: i32,
    start: u64,
}

fn read_stat(pid: i32) -> Option<Stat> {
    parse_stat(&read_limited(File::open(format!("/proc/{pid}/stat")).ok()?))
}

/// The name in field 2 may hold anything: fields are counted after its closing parenthesis.
fn parse_stat(text: &str) -> Option<Stat> {
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    let start = fields.nth(15)?.parse().ok()?;
    Some(Stat { state, parent, session, start })
}

fn descendants(leader: i32) -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let all: BTreeMap<i32, Stat> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| read_stat(pid).map(|stat| (pid, stat)))
        .collect();
    family(&all, leader)
}

/// The leader, its session, and everything below them.
fn family(all: &BTreeMap<i32, Stat>, leader: i32) -> Vec<i32> {
    let mut found: Vec<i32> =
        all.iter().filter(|(pid, stat)| **pid == leader || stat.session == leader).map(|(pid, _)| *pid).collect();
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        next += 1;
        for (pid, stat) in all {
            if stat.parent == parent && !found.contains(pid) {
                found.push(*pid);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines_are_read_behind_the_name() {
        let line = "42 (a) S 9 (x)) R 7 42 41 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1000 1";
        let stat = parse_stat(line).unwrap();
        assert_eq!((stat.state, stat.parent), ('R', 7));
        assert_eq!((stat.session, stat.start), (41, 98765));
        assert_eq!(parse_stat("1 (x"), None);
    }

    #[test]
    fn a_family_is_session_and_descendants() {
        let stat = |parent, session| Stat { state: 'S', parent, session, start: 1 };
        let all = BTreeMap::from([
            (1, stat(0, 1)),
            (10, stat(1, 10)),
            (11, stat(10, 10)),
            (12, stat(11, 12)),
            (13, stat(1, 10)),
            (20, stat(1, 20)),
            (21, stat(12, 21)),
        ]);
        let mut found = family(&all, 10);
        found.sort_unstable();
        assert_eq!(found, [10, 11, 12, 13, 21]);
    }
}
