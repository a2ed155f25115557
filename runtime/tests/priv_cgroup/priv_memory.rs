//! Memory is counted, taken back, and its pressure told.

use icebox_runtime::cgroup::Resource;

use super::*;

/// Fills the page cache through a file that is already unlinked, then waits. The file is on a real disk: a tmpfs has
/// nothing that can be dropped.
fn cache_filler(mib: i64) -> String {
    let dir = std::env::current_exe().expect("this executable");
    let dir =
        std::env::var("ICEBOX_TEST_DIR").unwrap_or_else(|_| dir.parent().expect("its directory").display().to_string());
    format!(
        "cd '{dir}'; exec 9<>cached.$$; rm cached.$$; dd if=/dev/zero bs=1048576 count={mib} conv=fsync >&9 2>/dev/null; exec sleep 1000"
    )
}

#[test]
fn priv_reclaim_takes_cached_files_of_a_frozen_cgroup() {
    let v1 = [Controller::Memory];
    let mut top = Top::new(&v1);
    let cgroup = Manager::Cgroupfs.open(&top.h, top.cgroup.path(), &v1).unwrap().unwrap();
    top.spawn(&cgroup, &v1, &cache_filler(32));
    eventually("the cache fills", || cgroup.memory().unwrap().current > 32 << 20);
    eventually("the child has written it all", || {
        let pid = cgroup.procs().unwrap()[0];
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == "sleep")
    });
    cgroup.freeze(DEADLINE).unwrap();
    let used = cgroup.cpu().unwrap().usage_usec;
    let reclaimed = cgroup.reclaim(24 << 20).unwrap();
    assert!(reclaimed.before > 32 << 20, "{reclaimed:?}");
    assert!(reclaimed.after + (20 << 20) < reclaimed.before, "{reclaimed:?}");
    assert!(reclaimed.after.abs_diff(cgroup.memory().unwrap().current) < 1 << 20);
    assert!(cgroup.events().unwrap().frozen, "a reclaim thaws nothing");
    assert_eq!(cgroup.cpu().unwrap().usage_usec, used, "the reclaimed pay for it");
    // There is no such amount: less than asked for is no error.
    let rest = cgroup.reclaim(1 << 40).unwrap();
    assert!(rest.after <= reclaimed.after + (1 << 20), "{rest:?}");
    if top.h.layout() == Layout::Unified {
        assert!(!rest.complete, "{rest:?}");
    }
    assert!(cgroup.swap().unwrap().is_some());
}

#[test]
fn priv_reclaim_without_a_memory_controller_is_an_error_that_names_it() {
    let mut top = Top::new(&[]);
    if top.h.layout() == Layout::Unified {
        // On v2 a leaf has what its parent hands down, here nothing.
        let leaf = top.cgroup.leaf("a", &[]).unwrap();
        top.spawn(&leaf, &[], SLEEPER);
        let error = leaf.reclaim(4096).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unenforced(Controller::Memory));
    } else {
        assert_eq!(top.cgroup.reclaim(4096).unwrap_err().kind, ErrorKind::Unenforced(Controller::Memory));
    }
}

#[test]
fn priv_meeting_the_memory_limit_is_counted() {
    let v1 = [Controller::Memory];
    let mut top = Top::new(&v1);
    let limits = Limits { memory_max_bytes: Some(16 * MIB), memory_swap_max_bytes: Some(0), ..Limits::default() };
    limits_of(&top, &limits);
    let cgroup = Manager::Cgroupfs.open(&top.h, top.cgroup.path(), &v1).unwrap().unwrap();
    assert_eq!(cgroup.memory_events().unwrap(), Default::default());
    let hog = top.spawn(&cgroup, &v1, "x=x; while :; do x=$x$x; done");
    assert!(!top.wait(hog).success());
    let events = cgroup.memory_events().unwrap();
    assert_eq!(events.oom_kill, 1, "{events:?}");
    if top.h.layout() == Layout::Unified {
        assert!(events.max > 0 && events.oom > 0, "{events:?}");
    }
    assert_eq!(events.oom_group_kill, 0);
}

#[test]
fn priv_pressure_grows_when_tasks_must_wait() {
    let mut top = Top::new(&[]);
    let cgroup = Manager::Cgroupfs.open(&top.h, top.cgroup.path(), &[]).unwrap().unwrap();
    if !std::path::Path::new("/proc/pressure").exists() {
        assert_eq!(cgroup.pressure(Resource::Cpu).unwrap_err().kind, ErrorKind::Unsupported);
        return;
    }
    for resource in [Resource::Cpu, Resource::Memory, Resource::Io] {
        assert!(cgroup.pressure(resource).unwrap().some.total_usec < 1000, "{resource:?}");
    }
    let busy = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) + 1;
    for _ in 0..busy {
        top.spawn(&cgroup, &[], SPINNER);
    }
    eventually("one more task than CPUs is pressure", || {
        cgroup.pressure(Resource::Cpu).unwrap().some.total_usec > 100_000
    });
}
