//! Finding, making, taking over, opening and joining.

use super::*;

#[test]
fn priv_probe_finds_what_is_mounted() {
    let h = Hierarchy::probe().unwrap();
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let v1 = |c: &str| own.lines().any(|l| l.split(':').nth(1).unwrap().split(',').any(|x| x == c));
    for c in [Controller::Cpu, Controller::Memory, Controller::Pids, Controller::Devices] {
        assert_eq!(matches!(h.backend(c), Backend::V1(_)), v1(c.name()), "{c}");
    }
    assert_eq!(h.backend(Controller::Freezer), Backend::V2, "freezing is v2's wherever v2 is mounted");
    assert_eq!(h.layout() == Layout::Unified, !v1("memory"));
}

#[test]
fn priv_paths_cannot_leave_the_hierarchy() {
    let top = Top::new(&[]);
    for bad in ["../x", "..", "a/../../x", "/x", "a//b", ""] {
        assert_eq!(CgroupPath::new(bad).unwrap_err().kind, ErrorKind::Invalid, "{bad:?}");
    }
    for bad in ["..", "a/b", "", ".", "cgroup.procs"] {
        assert_eq!(top.cgroup.leaf(bad, &[]).unwrap_err().kind, ErrorKind::Invalid, "{bad:?}");
        assert_eq!(top.cgroup.open_leaf(bad).unwrap_err().kind, ErrorKind::Invalid, "{bad:?}");
    }
}

#[test]
fn priv_an_existing_cgroup_is_taken_over_only_when_unused() {
    let v1 = [Controller::Memory, Controller::Pids];
    let mut top = Top::new(&v1);
    let path = top.path("x");
    let first = Manager::Cgroupfs.create(&top.h, &path, &v1).unwrap();
    let inode = first.inode().unwrap();
    assert_eq!(Manager::Cgroupfs.create(&top.h, &path, &v1).unwrap().inode().unwrap(), inode, "empty: taken over");

    first.freeze(DEADLINE).unwrap();
    assert_eq!(Manager::Cgroupfs.create(&top.h, &path, &v1).unwrap_err().kind, ErrorKind::Frozen);
    let error = first.leaf("run-1", &v1).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Frozen, "a process that joined a child would stop");
    assert_eq!(first.leaves().unwrap(), [""; 0], "and nothing is left of the attempt");
    if let Some(file) = top.v1_file(&first, Controller::Memory, "run-1") {
        assert!(!file.exists());
    }
    first.thaw(DEADLINE).unwrap();

    top.spawn(&first, &v1, SLEEPER);
    assert_eq!(Manager::Cgroupfs.create(&top.h, &path, &v1).unwrap_err().kind, ErrorKind::Busy);
    first.kill().unwrap();
    first.wait_empty(DEADLINE).unwrap();
    if top.h.layout() == Layout::Hybrid {
        // Populated in v1 only.
        let child = top.spawn(&first, &v1, SLEEPER);
        let pid = top.children[child].id().to_string();
        write_unified(&top.cgroup, "cgroup.procs", &pid);
        assert_eq!(Manager::Cgroupfs.create(&top.h, &path, &v1).unwrap_err().kind, ErrorKind::Busy);
        assert_eq!(first.remove(Duration::from_millis(20)).unwrap_err().kind, ErrorKind::Busy);
    }
}

#[test]
fn priv_a_thread_joins_v1_by_tasks() {
    let v1 = [Controller::Cpu, Controller::Memory, Controller::Pids, Controller::Cpuset];
    let top = Top::new(&v1);
    if top.h.layout() == Layout::Unified {
        assert!(top.cgroup.v1_tasks_fds().unwrap().is_empty());
        return;
    }
    let shown = |text: &str, c: &str| {
        text.lines().find(|l| l.split(':').nth(1) == Some(c)).map(|l| l.split(':').nth(2).unwrap().to_owned())
    };
    let inside = Some(format!("/{}", top.cgroup.path()));
    // A thread of its own, so that nothing else of this process moves; its children are born where it is.
    std::thread::scope(|s| {
        s.spawn(|| {
            top.cgroup.join_self().unwrap();
            let out = Command::new("cat").arg("/proc/self/cgroup").output().unwrap();
            let text = String::from_utf8(out.stdout).unwrap();
            for c in v1 {
                assert_eq!(shown(&text, c.name()), inside, "{text}");
            }
            assert_ne!(shown(&text, ""), inside, "v2 is clone3's work");
        });
    });
    // The same by a file handed to a process that knows no path.
    for fd in top.cgroup.v1_tasks_fds().unwrap() {
        let mut child = Command::new("/bin/sh")
            .args(["-c", "echo 0; exec cat /proc/self/cgroup >&2"])
            .stdout(Stdio::from(fd))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let text = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
        assert!(child.wait().unwrap().success());
        assert!(v1.iter().any(|c| shown(&text, c.name()) == inside), "{text}");
    }
}

#[test]
fn priv_joins_can_be_allowed_to_a_user() {
    let top = Top::new(&[]);
    top.cgroup.allow_joins_from(12_345, 23_456).unwrap();
    let stat = rustix::fs::fstat(unified_file(&top.cgroup, "cgroup.procs", OFlags::RDONLY).as_fd()).unwrap();
    assert_eq!((stat.st_uid, stat.st_gid), (12_345, 23_456));
    let freeze = rustix::fs::fstat(unified_file(&top.cgroup, "cgroup.freeze", OFlags::RDONLY).as_fd()).unwrap();
    assert_eq!(freeze.st_uid, 0, "only joining is allowed");
}
