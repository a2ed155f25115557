//! Freezing, signalling, killing and removal of cgroups.

use super::*;

#[test]
fn priv_freeze_stops_a_sleeper_and_thaw_wakes_it() {
    let mut top = Top::new(&[]);
    let leaf = top.cgroup.leaf("run-1", &[]).unwrap();
    top.spawn(&leaf, &[], SLEEPER);
    top.cgroup.freeze(DEADLINE).unwrap();
    assert!(top.cgroup.events().unwrap().frozen);
    assert!(leaf.events().unwrap().frozen, "children freeze too");
    // Thawing the child alone does not help: the parent's freeze holds.
    assert_eq!(leaf.thaw(Duration::from_millis(20)).unwrap_err().kind, ErrorKind::Timeout);
    top.cgroup.thaw(DEADLINE).unwrap();
    assert!(!leaf.events().unwrap().frozen);
    assert!(leaf.events().unwrap().populated);
}

#[test]
fn priv_a_frozen_busy_process_uses_no_cpu() {
    let mut top = Top::new(&[]);
    let leaf = top.cgroup.leaf("run-1", &[]).unwrap();
    top.spawn(&leaf, &[], SPINNER);
    eventually("the spinner runs", || leaf.cpu().unwrap().usage_usec > 20_000);
    top.cgroup.freeze(DEADLINE).unwrap();
    let before = top.cgroup.cpu().unwrap();
    std::thread::sleep(Duration::from_millis(100)); // time in which it would run
    assert_eq!(top.cgroup.cpu().unwrap(), before);
    top.cgroup.thaw(DEADLINE).unwrap();
    eventually("it goes on", || top.cgroup.cpu().unwrap().usage_usec > before.usage_usec);
}

#[test]
fn priv_a_freeze_that_takes_too_long_is_undone() {
    let v1 = [Controller::Cpu];
    let mut top = Top::new(&v1);
    // A process out of quota does not run until the next period, and so cannot stop by itself before.
    let quota = Limits { cpu_quota_us: Some(1000), cpu_period_us: Some(1_000_000), ..Limits::default() };
    limits_of(&top, &quota);
    let cgroup = Manager::Cgroupfs.open(&top.h, top.cgroup.path(), &v1).unwrap().unwrap();
    top.spawn(&cgroup, &v1, SPINNER);
    eventually("it has used its quota", || cgroup.cpu().unwrap().usage_usec >= 1000);
    // On a busy machine it may be about to get the rest of its quota just now: then it does stop, so try again.
    let attempt = |_| match cgroup.freeze(Duration::from_millis(50)) {
        Ok(()) => {
            cgroup.thaw(DEADLINE).unwrap();
            None
        }
        Err(error) => Some(error),
    };
    let error = (0..50).find_map(attempt).expect("one of the attempts meets it out of quota");
    assert_eq!(error.kind, ErrorKind::FreezeTimeout, "{error}");
    assert_eq!(read_unified(&cgroup, "cgroup.freeze").trim(), "0");
    cgroup.thaw(DEADLINE).unwrap();
    let before = cgroup.cpu().unwrap().usage_usec;
    eventually("it goes on", || cgroup.cpu().unwrap().usage_usec > before);
}

#[test]
fn priv_kill_works_on_a_frozen_cgroup() {
    let mut top = Top::new(&[]);
    let leaf = top.cgroup.leaf("run-1", &[]).unwrap();
    let child = top.spawn(&leaf, &[], "sleep 1000 & sleep 1000 & wait");
    eventually("three processes", || top.cgroup.procs().unwrap().len() == 3);
    top.cgroup.freeze(DEADLINE).unwrap();
    assert_eq!(top.cgroup.remove(Duration::ZERO).unwrap_err().kind, ErrorKind::Busy);
    assert_eq!(top.cgroup.wait_empty(Duration::from_millis(20)).unwrap_err().kind, ErrorKind::Timeout);
    top.cgroup.kill().unwrap();
    top.cgroup.wait_empty(DEADLINE).unwrap();
    assert_eq!(top.wait(child).signal(), Some(9));
    assert_eq!(top.cgroup.procs().unwrap(), [0_i32; 0]);
}

#[test]
fn priv_signals_reach_every_process() {
    let mut top = Top::new(&[]);
    let leaf = top.cgroup.leaf("run-1", &[]).unwrap();
    let child = top.spawn(&leaf, &[], "sleep 1000 & exec sleep 1000");
    eventually("two processes", || top.cgroup.procs().unwrap().len() == 2);
    top.cgroup.signal_all(15).unwrap();
    assert_eq!(top.wait(child).signal(), Some(15));
    top.cgroup.wait_empty(DEADLINE).unwrap();
    assert_eq!(top.cgroup.signal_all(65).unwrap_err().kind, ErrorKind::Invalid);
}

#[test]
fn priv_a_leafs_cpu_time_stays_with_the_parent() {
    let mut top = Top::new(&[]);
    let leaf = top.cgroup.leaf("run-1", &[]).unwrap();
    top.spawn(&leaf, &[], SPINNER);
    eventually("the spinner runs", || leaf.cpu().unwrap().usage_usec > 50_000);
    leaf.kill().unwrap();
    leaf.wait_empty(DEADLINE).unwrap();
    let (used, inode) = (leaf.cpu().unwrap().usage_usec, leaf.inode().unwrap());
    leaf.remove(DEADLINE).unwrap();
    assert_eq!(top.cgroup.leaves().unwrap(), [""; 0]);
    assert!(top.cgroup.cpu().unwrap().usage_usec >= used);
    let again = top.cgroup.leaf("run-1", &[]).unwrap();
    assert_ne!(again.inode().unwrap(), inode, "a new generation");
    assert_eq!(again.cpu().unwrap().usage_usec, 0);
}

#[test]
fn priv_removal_is_recursive_and_repeatable() {
    let v1 = [Controller::Memory, Controller::Pids];
    let top = Top::new(&v1);
    let path = top.path("a");
    let a = Manager::Cgroupfs.create(&top.h, &path, &v1).unwrap();
    let b = a.leaf("b", &v1).unwrap();
    b.leaf("c", &[Controller::Memory]).unwrap();
    a.leaf("d", &[]).unwrap();
    let bare = Manager::Cgroupfs.open(&top.h, &path, &[]).unwrap().unwrap();
    assert_eq!(a.leaves().unwrap(), ["b", "d"]);
    assert!(a.open_leaf("b").unwrap().is_some());
    a.remove(DEADLINE).unwrap();
    assert_eq!(top.cgroup.leaves().unwrap(), [""; 0]);
    if let Some(file) = top.v1_file(&top.cgroup, Controller::Memory, "a") {
        assert!(!file.exists());
    }
    a.remove(DEADLINE).unwrap();
    a.kill().unwrap();
    a.wait_empty(DEADLINE).unwrap();
    assert!(a.leaf("x", &v1).is_err(), "a removed cgroup does not come back by its child");
    assert!(a.cpu().is_err());
    // A new one of the same name does not belong to the old handle.
    let new = Manager::Cgroupfs.create(&top.h, &path, &v1).unwrap();
    a.remove(DEADLINE).unwrap();
    bare.remove(DEADLINE).unwrap();
    assert_eq!(new.leaves().unwrap(), [""; 0]);
    new.memory().unwrap();
    assert!(Manager::Cgroupfs.open(&top.h, &path, &v1).unwrap().is_some());
}

#[test]
fn priv_removal_waits_for_the_dying() {
    let v1 = [Controller::Memory, Controller::Cpu];
    let mut top = Top::new(&v1);
    for round in 0..10 {
        let leaf = top.cgroup.leaf(&format!("run-{round}"), &v1).unwrap();
        top.spawn(&leaf, &v1, SLEEPER);
        leaf.kill().unwrap();
        leaf.remove(DEADLINE).unwrap(); // without wait_empty
    }
    assert_eq!(top.cgroup.leaves().unwrap(), [""; 0]);
}

#[test]
fn priv_removal_waits_for_a_thread_of_a_process_that_goes_on() {
    let v1 = [Controller::Pids];
    let top = Top::new(&v1);
    if top.h.layout() == Layout::Unified {
        return not_here("a thread alone can be in a v1 cgroup only");
    }
    let leaf = top.cgroup.leaf("run-1", &v1).unwrap();
    let (joined, is_in) = std::sync::mpsc::channel();
    let (leave, may_leave) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|s| {
        let leaf = &leaf;
        s.spawn(move || {
            joined.send(leaf.join_self().is_ok()).unwrap();
            may_leave.recv().unwrap();
            std::thread::sleep(Duration::from_millis(50)); // so that the removal has begun
        });
        assert!(is_in.recv().unwrap());
        let error = leaf.remove(Duration::from_millis(20)).unwrap_err();
        leave.send(()).unwrap();
        assert_eq!(error.kind, ErrorKind::Busy, "{error}");
        let before = Instant::now();
        leaf.remove(DEADLINE).unwrap();
        // The process lives on, so waiting for its exit would take the whole deadline.
        assert!(before.elapsed() < DEADLINE / 2);
    });
    assert!(top.cgroup.open_leaf("run-1").unwrap().is_none());
}
