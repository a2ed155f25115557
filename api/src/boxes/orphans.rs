//! Unreaped children of the daemon.
//!
//! The daemon is the reaper of its launchers' orphans. The init of a box has a watcher that waits for it; the orphans
//! of a launcher that was killed half-way have none. Dead children that are seen twice, a minute apart, are therefore
//! reaped here: by then, every task that waits for its own child has done so.

use std::collections::BTreeSet;

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

/// Reaps children that were dead at the last check and still are. Returns the ones to pass to the next check.
pub(super) fn reap(dead_before: &BTreeSet<i32>) -> BTreeSet<i32> {
    let dead = dead_children();
    for pid in dead.intersection(dead_before) {
        let Some(pid) = Pid::from_raw(*pid) else { continue };
        // Another task may have reaped it already.
        if waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG).is_ok_and(|status| status.is_some())
        {
            tracing::debug!(pid = pid.as_raw_nonzero().get(), "reaped a child that no task waited for");
        }
    }
    dead.difference(dead_before).copied().collect()
}

fn dead_children() -> BTreeSet<i32> {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return BTreeSet::new() };
    let lists = threads.flatten().filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    let children: Vec<i32> = lists
        .flat_map(|list| list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect();
    children.into_iter().filter(|pid| is_dead(*pid)).collect()
}

/// The state is the first field after the command's name, which may itself contain any character.
fn is_dead(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::zombie_processes, reason = "the test needs a child that no task waits for")]
    fn a_dead_child_is_reaped_at_the_second_look() {
        let child = std::process::Command::new("/bin/true").spawn().expect("a child");
        let pid = i32::try_from(child.id()).expect("a pid");
        while !is_dead(pid) {
            std::thread::yield_now();
        }
        let first = reap(&BTreeSet::new());
        assert!(first.contains(&pid) && is_dead(pid), "one look reaps nothing");
        let second = reap(&BTreeSet::from([pid]));
        assert!(!second.contains(&pid) && !is_dead(pid));
    }
}
