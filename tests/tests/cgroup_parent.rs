//! `cgroup_parent`: boxes below a cgroup of the operator's choice, in every hierarchy, and what happens when it changes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use icebox_tests::{Daemon, TestBox, machine};

/// A parent of this test's own; removed with what may be left in it.
struct Parent {
    name: String,
    cgroups: machine::Cgroups,
}

impl Parent {
    fn new() -> Self {
        Self { name: icebox_tests::daemon::unique("icebox-test-parent"), cgroups: machine::Cgroups::probe() }
    }

    fn config(&self) -> String {
        // A leading slash, as systemd prints it, makes no difference.
        format!("cgroup_parent = \"/{}\"", self.name)
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        self.cgroups.destroy(&self.name);
    }
}

fn again(daemon: &Daemon, made: &TestBox) -> TestBox {
    TestBox { api: daemon.api(), id: made.id.clone() }
}

/// In which hierarchies there is this cgroup.
fn hierarchies(cgroups: &machine::Cgroups, path: &str) -> BTreeSet<PathBuf> {
    cgroups.mounts().into_iter().filter(|mount| mount.join(path).is_dir()).collect()
}

#[test]
fn a_box_is_below_the_parent_in_every_hierarchy_with_its_limits() {
    let parent = Parent::new();
    // The only owner of the daemon: it is the first to be dropped.
    let daemon = Daemon::start_with(&parent.config());
    let made = daemon.api().create_default();
    assert_eq!(made.out("echo works"), "works");
    let path = format!("{}/{}", parent.name, daemon.cgroup(&made));
    let cgroups = daemon.cgroups();
    for controller in ["cpu", "memory", "pids"] {
        let dir = cgroups.controller_dir(controller, &path);
        assert!(dir.is_dir(), "{} is missing", dir.display());
    }
    let top = daemon.cgroup(&made);
    assert!(hierarchies(cgroups, &top).is_empty(), "{:?}", hierarchies(cgroups, &top));
    assert!(!cgroups.procs(&path).is_empty());
    let pids = std::fs::read_to_string(cgroups.controller_dir("pids", &path).join("pids.max")).expect("pids.max");
    assert_eq!(pids.trim(), "1120", "1024 for runs, 96 kept for the init");
    made.pause();
    assert_eq!(cgroups.event(&path, "frozen"), Some(1));
    assert_eq!(made.billed_usec(), cgroups.cpu_stat(&path, "usage_usec"));
    assert_eq!(made.out("echo woken"), "woken");
    made.delete();
    assert!(cgroups.below(&path).is_empty(), "{:?}", cgroups.below(&path));
}

#[test]
fn boxes_stay_where_they_are_when_the_parent_changes_until_they_start_anew() {
    let parent = Parent::new();
    let mut daemon = Daemon::start();
    let (busy, frozen) = (daemon.api().create_default(), daemon.api().create_default());
    busy.out("(while :; do :; done) >/dev/null 2>&1 & true");
    frozen.out("echo kept > file.txt");
    frozen.pause();
    let inits = [daemon.init_pid(&busy), daemon.init_pid(&frozen)];
    let billed = busy.billed_usec();

    daemon.kill9();
    daemon.configure(&parent.config());
    daemon.start_again();
    let (busy, frozen) = (again(&daemon, &busy), again(&daemon, &frozen));
    assert_eq!(
        [daemon.init_pid(&busy), daemon.init_pid(&frozen)],
        inits,
        "they are the same processes, in the old place"
    );
    assert_eq!(frozen.status(), "paused");
    assert_eq!(frozen.out("cat file.txt"), "kept");
    assert!(busy.billed_usec() >= billed);
    busy.pause();
    assert_eq!(busy.billed_usec(), daemon.cgroups().cpu_stat(&daemon.cgroup(&busy), "usage_usec"));
    let fresh = daemon.api().create_default();
    let below = |made: &TestBox| format!("{}/{}", parent.name, daemon.cgroup(made));
    assert!(!daemon.cgroups().procs(&below(&fresh)).is_empty(), "a new box is below the parent");

    // The end of a box's PID 1, seen or unseen by the daemon, ends its stay in the old place.
    let last = busy.billed_usec();
    let busy_at = daemon.cgroup(&busy);
    let moved = below(&busy);
    daemon.kill9();
    std::fs::write(daemon.cgroups().unified.join(&busy_at).join("cgroup.kill"), "1").expect("kill the box");
    daemon.start_again();
    let busy = again(&daemon, &busy);
    assert_eq!(busy.out("echo anew"), "anew");
    assert!(daemon.cgroups().below(&busy_at).is_empty(), "the old cgroup is left");
    assert!(!daemon.cgroups().procs(&moved).is_empty());
    assert!(busy.billed_usec() >= last, "what was used in the old place is billed");

    // Nothing of the old place is left once its last box is gone.
    again(&daemon, &frozen).delete();
    daemon.stop();
    daemon.start_again();
    assert!(
        daemon.cgroups().below(daemon.cgroup_root()).is_empty(),
        "{:?}",
        daemon.cgroups().below(daemon.cgroup_root())
    );
    assert_eq!(again(&daemon, &fresh).out("echo still"), "still");
}

#[test]
fn what_a_crash_left_in_an_earlier_place_is_removed() {
    let parent = Parent::new();
    let mut daemon = Daemon::start_with(&parent.config());
    // Ids are reserved ahead; this waits for it.
    daemon.api().create_default().delete();
    let root = format!("{}/{}", parent.name, daemon.cgroup_root());
    daemon.kill9();
    // As if the crash had come in the middle of a creation: an id that has a process, and no record.
    let database = rusqlite::Connection::open(daemon.data_dir().join("icebox.db")).expect("open the database");
    let id: String =
        database.query_row("SELECT box_id FROM reservations LIMIT 1", [], |row| row.get(0)).expect("a reserved id");
    drop(database);
    let dir = daemon.cgroups().unified.join(&root).join(&id);
    std::fs::create_dir_all(&dir).expect("make a cgroup");
    let mut left = std::process::Command::new("sleep").arg("1000").spawn().expect("a process");
    std::fs::write(dir.join("cgroup.procs"), left.id().to_string()).expect("move it");
    daemon.configure("cgroup_parent = \"\"");
    daemon.start_again();
    let ended = left.try_wait().expect("wait");
    left.kill().expect("end it");
    left.wait().expect("reap it");
    assert!(ended.is_some(), "what was left is still running");
    assert!(daemon.cgroups().below(&root).is_empty(), "{:?}", daemon.cgroups().below(&root));
    assert_eq!(daemon.api().create_default().out("echo works"), "works");
}

#[test]
fn a_unit_that_is_not_there_is_named_and_never_made_up() {
    let unit = format!("{}.service", icebox_tests::daemon::unique("icebox-test-missing"));
    let daemon = Daemon::start_with(&format!("cgroup_parent = \"system.slice/{unit}\""));
    let text = daemon.api().post("/v2/box", &serde_json::json!({})).error(503);
    assert!(text.contains(&unit), "{text}");
    for mount in daemon.cgroups().mounts() {
        assert!(!Path::new(&mount).join("system.slice").join(&unit).exists());
    }
    assert!(daemon.log().contains(&unit), "the log says so at the start");
}
