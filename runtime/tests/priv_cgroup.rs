//! Cgroups against the kernel of this machine. Needs root. Every test works in a cgroup of its own, which is removed
//! with all that is in it, also after a panic.

use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use icebox_runtime::cgroup::{
    Access, Backend, Cgroup, CgroupPath, Controller, DeviceKind, DeviceRule, ErrorKind, Hierarchy, Layout, Limits,
    Unenforced,
};
use rustix::fs::{Mode, OFlags};

const DEADLINE: Duration = Duration::from_secs(10);
const MIB: i64 = 1 << 20;
const SLEEPER: &str = "exec sleep 1000";
const SPINNER: &str = "while :; do :; done";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A cgroup for one test, and the processes started in it.
struct Top {
    h: Hierarchy,
    cgroup: Cgroup,
    children: Vec<Child>,
}

impl Top {
    fn new(v1: &[Controller]) -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test needs root: it makes cgroups");
        let h = Hierarchy::probe().expect("probe");
        let name = format!("icebox-test.{}.{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = CgroupPath::new(name).expect("path");
        let cgroup = Cgroup::create(&h, &path, v1).expect("create");
        Self { h, cgroup, children: Vec::new() }
    }

    fn path(&self, name: &str) -> CgroupPath {
        self.cgroup.path().join(name).expect("path")
    }

    /// Starts a shell, puts it into `cgroup` in v2 and in the given v1 hierarchies, and only then lets it run.
    fn spawn(&mut self, cgroup: &Cgroup, v1: &[Controller], script: &str) -> usize {
        let script = format!("read go; {script}");
        let mut child = Command::new("/bin/sh").args(["-c", &script]).stdin(Stdio::piped()).spawn().expect("spawn");
        let pid = child.id().to_string();
        let mut stdin = child.stdin.take().expect("stdin");
        self.children.push(child);
        for c in v1 {
            if let Some(file) = self.v1_file(cgroup, *c, "cgroup.procs") {
                std::fs::write(file, &pid).expect("join v1");
            }
        }
        write_unified(cgroup, "cgroup.procs", &pid);
        stdin.write_all(b"go\n").expect("go");
        self.children.len() - 1
    }

    fn v1_file(&self, cgroup: &Cgroup, c: Controller, file: &str) -> Option<PathBuf> {
        match self.h.backend(c) {
            Backend::V1(mount) => Some(mount.join(cgroup.path().as_str()).join(file)),
            _ => None,
        }
    }

    /// The content of a v1 or v2 control file, by where the controller is.
    fn read(&self, c: Controller, v1: &str, v2: &str) -> String {
        let text = match self.v1_file(&self.cgroup, c, v1) {
            Some(file) => std::fs::read_to_string(file).expect("read v1"),
            None => read_unified(&self.cgroup, v2),
        };
        text.trim().to_owned()
    }

    fn wait(&mut self, child: usize) -> std::process::ExitStatus {
        self.children[child].wait().expect("wait")
    }
}

impl Drop for Top {
    fn drop(&mut self) {
        let _ = self.cgroup.kill();
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        let removed = self.cgroup.remove(DEADLINE);
        if !std::thread::panicking() {
            removed.expect("remove");
            assert!(Cgroup::open(&self.h, self.cgroup.path(), &[]).expect("open").is_none());
        }
    }
}

fn unified_file(cgroup: &Cgroup, file: &str, flags: OFlags) -> std::fs::File {
    let dir = cgroup.unified_fd().expect("these tests need cgroup v2 mounted");
    rustix::fs::openat(dir, file, flags | OFlags::CLOEXEC, Mode::empty()).expect(file).into()
}

fn write_unified(cgroup: &Cgroup, file: &str, value: &str) {
    unified_file(cgroup, file, OFlags::WRONLY).write_all(value.as_bytes()).expect(file);
}

fn read_unified(cgroup: &Cgroup, file: &str) -> String {
    std::io::read_to_string(unified_file(cgroup, file, OFlags::RDONLY)).expect(file)
}

/// Looks again and again, until `done` or a deadline.
fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < until, "{what}");
        std::thread::yield_now();
    }
}

fn limits_of(top: &Top, limits: &Limits) {
    let warnings = top.cgroup.apply(limits, Unenforced::Refuse).expect("apply");
    assert_eq!(warnings, []);
}

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
fn priv_limits_are_kept_and_can_change() {
    let all = [Controller::Cpu, Controller::Memory, Controller::Pids, Controller::Cpuset];
    let top = Top::new(&all);
    for (memory, swap) in [(64, 0), (128, 64), (32, 16), (32, 0), (-1, -1), (64, 0)] {
        let bytes = |mib: i64| if mib < 0 { -1 } else { mib * MIB };
        limits_of(
            &top,
            &Limits {
                memory_max_bytes: Some(bytes(memory)),
                memory_swap_max_bytes: Some(bytes(swap)),
                ..Limits::default()
            },
        );
        let kept = top.read(Controller::Memory, "memory.limit_in_bytes", "memory.max");
        if memory > 0 {
            assert_eq!(kept, bytes(memory).to_string());
        } else {
            assert!(kept == "max" || kept.parse::<i64>().unwrap() > i64::MAX / 2, "{kept}");
        }
    }
    assert_eq!(
        top.read(Controller::Memory, "memory.memsw.limit_in_bytes", "memory.swap.max"),
        if top.h.layout() == Layout::Unified { "0".to_owned() } else { (64 * MIB).to_string() }
    );
    for (quota, period) in [(150_000, 100_000), (10_000, 10_000), (500_000, 1_000_000), (20_000, 20_000)] {
        limits_of(&top, &Limits { cpu_quota_us: Some(quota), cpu_period_us: Some(period), ..Limits::default() });
        let v2 = format!("{quota} {period}");
        let kept = top.read(Controller::Cpu, "cpu.cfs_quota_us", "cpu.max");
        assert!(kept == v2 || kept == quota.to_string(), "{kept}");
    }
    limits_of(
        &top,
        &Limits {
            cpu_weight: Some(100),
            pids_max: Some(77),
            cpuset_cpus: Some("0".into()),
            cpuset_mems: Some("0-0".into()),
            ..Limits::default()
        },
    );
    assert!(["1024", "100"].contains(&top.read(Controller::Cpu, "cpu.shares", "cpu.weight").as_str()));
    assert_eq!(top.cgroup.pids().unwrap().max, Some(77));
    assert_eq!(top.read(Controller::Cpuset, "cpuset.cpus", "cpuset.cpus"), "0");
    limits_of(&top, &Limits { pids_max: Some(-1), cpu_quota_us: Some(-1), ..Limits::default() });
    assert_eq!(top.cgroup.pids().unwrap().max, None);
}

#[test]
fn priv_memory_limit_is_rounded_to_pages_and_still_accepted() {
    let top = Top::new(&[Controller::Memory]);
    limits_of(&top, &Limits { memory_max_bytes: Some(32 * MIB + 1), ..Limits::default() });
    let kept = top.read(Controller::Memory, "memory.limit_in_bytes", "memory.max");
    assert_eq!(kept, (32 * MIB).to_string());
}

#[test]
fn priv_what_cannot_be_enforced_is_named() {
    let top = Top::new(&[]);
    if top.h.layout() != Layout::Hybrid {
        return; // everything that Limits can say is enforceable on a pure v2 machine
    }
    let limits = Limits { pids_max: Some(5), memory_high_bytes: Some(MIB), ..Limits::default() };
    let error = top.cgroup.apply(&limits, Unenforced::Refuse).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unenforced(Controller::Memory), "{error}");
    assert!(error.to_string().contains("memory"), "{error}");
    let warnings = top.cgroup.apply(&limits, Unenforced::Allow).unwrap();
    let named: Vec<_> = warnings.iter().map(|w| (w.controller, w.value.as_str())).collect();
    assert_eq!(named, [(Controller::Memory, "memory.high=1048576"), (Controller::Pids, "pids.max=5")]);
    assert!(top.cgroup.memory().is_err());
    // An invalid value is an error whatever the mode.
    let nonsense = Limits { cpu_weight: Some(0), ..Limits::default() };
    assert_eq!(top.cgroup.apply(&nonsense, Unenforced::Allow).unwrap_err().kind, ErrorKind::Invalid);
}

#[test]
fn priv_unified_files_pass_through() {
    let top = Top::new(&[]);
    let unified = [("cgroup.max.depth".to_owned(), "1".to_owned())].into();
    limits_of(&top, &Limits { unified, ..Limits::default() });
    assert_eq!(read_unified(&top.cgroup, "cgroup.max.depth").trim(), "1");
    let leaf = top.cgroup.leaf("a", &[]).unwrap();
    assert!(leaf.leaf("b", &[]).is_err(), "the depth limit holds");
    let unified = [("misc.max".to_owned(), "res_a 1".to_owned())].into();
    let error = top.cgroup.apply(&Limits { unified, ..Limits::default() }, Unenforced::Refuse).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unenforced(Controller::Misc));
}

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
    let mut top = Top::new(&[]);
    let cgroup = Cgroup::open(&top.h, top.cgroup.path(), &[]).unwrap().unwrap();
    for _ in 0..12 {
        top.spawn(&cgroup, &[], SPINNER);
    }
    // More busy processes than CPUs: they cannot all have stopped by the first look.
    let error = cgroup.freeze(Duration::ZERO).unwrap_err();
    assert_eq!(error.kind, ErrorKind::FreezeTimeout, "{error}");
    assert_eq!(read_unified(&cgroup, "cgroup.freeze").trim(), "0");
    cgroup.thaw(DEADLINE).unwrap();
    let before = cgroup.cpu().unwrap().usage_usec;
    eventually("they go on", || cgroup.cpu().unwrap().usage_usec > before);
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
    assert_eq!(top.cgroup.signal_all(0).unwrap_err().kind, ErrorKind::Invalid);
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
fn priv_a_memory_hog_is_killed_in_its_leaf_and_reported() {
    let v1 = [Controller::Memory];
    let mut top = Top::new(&v1);
    top.cgroup.enable_leaf_controllers().unwrap();
    limits_of(&top, &Limits { memory_max_bytes: Some(48 * MIB), memory_swap_max_bytes: Some(0), ..Limits::default() });
    let (hog, calm) = (top.cgroup.leaf("run-1", &v1).unwrap(), top.cgroup.leaf("run-2", &v1).unwrap());
    let calm_child = top.spawn(&calm, &v1, "head -c 1M /dev/zero | tail >/dev/null");
    assert!(top.wait(calm_child).success());
    // `tail` keeps a line without an end whole: 256 MiB at most, should the limit not hold.
    let child = top.spawn(&hog, &v1, "head -c 256M /dev/zero | tail >/dev/null");
    assert_eq!(top.wait(child).code(), Some(128 + 9), "tail was killed");
    assert_eq!(hog.memory().unwrap().oom_kills, 1);
    assert_eq!(calm.memory().unwrap().oom_kills, 0);
    let box_level = top.cgroup.memory().unwrap();
    assert_eq!(box_level.oom_kills, 1);
    assert!(box_level.peak.is_some_and(|p| p <= 48 << 20 && p > 40 << 20), "{box_level:?}");
}

#[test]
fn priv_the_pids_limit_stops_forks() {
    let v1 = [Controller::Pids];
    let mut top = Top::new(&v1);
    limits_of(&top, &Limits { pids_max: Some(4), ..Limits::default() });
    let cgroup = Cgroup::open(&top.h, top.cgroup.path(), &v1).unwrap().unwrap();
    let script = "exec 2>/dev/null; for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done; exit 0";
    let child = top.spawn(&cgroup, &v1, script);
    assert!(!top.wait(child).success(), "the shell gives up when it cannot fork");
    let pids = top.cgroup.pids().unwrap();
    assert_eq!((pids.current, pids.max), (3, Some(4)));
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
    let first = Cgroup::create(&top.h, &path, &v1).unwrap();
    let inode = first.inode().unwrap();
    assert_eq!(Cgroup::create(&top.h, &path, &v1).unwrap().inode().unwrap(), inode, "empty: taken over");

    first.freeze(DEADLINE).unwrap();
    assert_eq!(Cgroup::create(&top.h, &path, &v1).unwrap_err().kind, ErrorKind::Frozen);
    let error = first.leaf("run-1", &v1).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Frozen, "whoever joined a child would stop");
    assert_eq!(first.leaves().unwrap(), [""; 0], "and nothing is left of the attempt");
    if let Some(file) = top.v1_file(&first, Controller::Memory, "run-1") {
        assert!(!file.exists());
    }
    first.thaw(DEADLINE).unwrap();

    top.spawn(&first, &v1, SLEEPER);
    assert_eq!(Cgroup::create(&top.h, &path, &v1).unwrap_err().kind, ErrorKind::Busy);
    first.kill().unwrap();
    first.wait_empty(DEADLINE).unwrap();
    if top.h.layout() == Layout::Hybrid {
        // Populated in v1 only.
        let child = top.spawn(&first, &v1, SLEEPER);
        let pid = top.children[child].id().to_string();
        write_unified(&top.cgroup, "cgroup.procs", &pid);
        assert_eq!(Cgroup::create(&top.h, &path, &v1).unwrap_err().kind, ErrorKind::Busy);
        assert_eq!(first.remove(Duration::from_millis(20)).unwrap_err().kind, ErrorKind::Busy);
    }
}

#[test]
fn priv_removal_is_recursive_and_repeatable() {
    let v1 = [Controller::Memory, Controller::Pids];
    let top = Top::new(&v1);
    let path = top.path("a");
    let a = Cgroup::create(&top.h, &path, &v1).unwrap();
    let b = a.leaf("b", &v1).unwrap();
    b.leaf("c", &[Controller::Memory]).unwrap();
    a.leaf("d", &[]).unwrap();
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
    let new = Cgroup::create(&top.h, &path, &v1).unwrap();
    a.remove(DEADLINE).unwrap();
    assert_eq!(new.leaves().unwrap(), [""; 0]);
    assert!(Cgroup::open(&top.h, &path, &v1).unwrap().is_some());
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

fn null_only() -> Vec<DeviceRule> {
    let null = DeviceRule { allow: true, kind: DeviceKind::Char, major: Some(1), minor: Some(3), access: Access::ALL };
    let zero = DeviceRule { minor: Some(5), access: Access::READ, ..null };
    vec![DeviceRule::all(false), null, zero]
}

/// What a process in the cgroup may open.
fn devices_seen(top: &mut Top, v1: &[Controller]) -> Vec<bool> {
    let cgroup = Cgroup::open(&top.h, top.cgroup.path(), v1).unwrap().unwrap();
    let tests = ["true >/dev/null", "true </dev/zero", "true >/dev/zero", "true </dev/random", "true <>/dev/null"];
    let mut run = |test: &&str| {
        let child = top.spawn(&cgroup, v1, &format!("({test}) 2>&-; exit"));
        top.wait(child).success()
    };
    tests.iter().map(&mut run).collect()
}

#[test]
fn priv_device_rules_hold() {
    let v1 = [Controller::Devices];
    let mut top = Top::new(&v1);
    assert_eq!(devices_seen(&mut top, &v1), [true; 5]);
    limits_of(&top, &Limits { devices: null_only(), ..Limits::default() });
    assert_eq!(devices_seen(&mut top, &v1), [true, true, false, false, true]);
    let allow_all = vec![DeviceRule::all(true), DeviceRule { allow: false, ..null_only()[2] }];
    limits_of(&top, &Limits { devices: allow_all, ..Limits::default() });
    assert_eq!(devices_seen(&mut top, &v1), [true, false, true, true, true]);
}

#[test]
fn priv_device_rules_hold_by_ebpf() {
    // Without the v1 controller the filter goes to the v2 cgroup, also on a hybrid machine.
    let mut top = Top::new(&[]);
    for _ in 0..2 {
        limits_of(&top, &Limits { devices: null_only(), ..Limits::default() });
        assert_eq!(devices_seen(&mut top, &[]), [true, true, false, false, true]);
    }
    let allow_all = vec![DeviceRule::all(true), DeviceRule { allow: false, ..null_only()[2] }];
    limits_of(&top, &Limits { devices: allow_all, ..Limits::default() });
    assert_eq!(devices_seen(&mut top, &[]), [true, false, true, true, true], "the old filter is gone");
}
