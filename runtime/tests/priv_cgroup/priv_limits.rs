//! Limits are put on, kept, changed, and hold.

use super::*;

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
fn priv_cpu_quota_moves_within_the_parents() {
    let v1 = [Controller::Cpu];
    let top = Top::new(&v1);
    top.cgroup.enable_leaf_controllers().unwrap();
    let quota = |quota, period| Limits { cpu_quota_us: Some(quota), cpu_period_us: Some(period), ..Limits::default() };
    limits_of(&top, &quota(50_000, 100_000));
    let leaf = top.cgroup.leaf("run-1", &v1).unwrap();
    // Each step keeps within half a CPU, but on v1 not every mixture of the old and the new pair does.
    for (q, period) in [(40_000, 100_000), (4000, 10_000), (450_000, 1_000_000), (5000, 10_000)] {
        leaf.apply(&quota(q, period), Unenforced::Refuse).unwrap();
    }
    if top.h.layout() == Layout::Hybrid {
        // v1 refuses a child more than its parent has; v2 lets the parent's limit win.
        let error = leaf.apply(&quota(60_000, 100_000), Unenforced::Refuse).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
    }
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
        return not_here("on pure v2 all of Limits can be enforced");
    }
    let limits = Limits { pids_max: Some(5), memory_high_bytes: Some(MIB), ..Limits::default() };
    let error = top.cgroup.apply(&limits, Unenforced::Refuse).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unenforced(Controller::Memory), "{error}");
    assert!(error.to_string().contains("memory"), "{error}");
    let warnings = top.cgroup.apply(&limits, Unenforced::Allow).unwrap();
    let named: Vec<_> = warnings.iter().map(|w| (w.controller, w.value.as_str())).collect();
    assert_eq!(named, [(Controller::Memory, "memory.high=1048576"), (Controller::Pids, "pids.max=5")]);
    assert!(top.cgroup.memory().is_err());
    // An invalid value is an error in both modes.
    let nonsense = Limits { cpu_weight: Some(0), ..Limits::default() };
    assert_eq!(top.cgroup.apply(&nonsense, Unenforced::Allow).unwrap_err().kind, ErrorKind::Invalid);
}

#[test]
fn priv_every_v2_limit_is_kept() {
    let top = Top::new(&[]);
    if top.h.layout() != Layout::Unified {
        return not_here("nothing of this is on v2; the tests above cover v1");
    }
    limits_of(
        &top,
        &Limits {
            cpu_quota_us: Some(50_000),
            cpu_burst_us: Some(20_000),
            memory_max_bytes: Some(64 * MIB),
            memory_high_bytes: Some(60 * MIB),
            memory_low_bytes: Some(MIB + 5),
            oom_group: true,
            io_weight: Some(50),
            hugetlb: vec![("2MB".into(), 4 << 20)],
            unified: [("memory.min".to_owned(), "4096".to_owned())].into(),
            ..Limits::default()
        },
    );
    // A quota below the old burst, then idle, then a weight again.
    limits_of(&top, &Limits { cpu_quota_us: Some(10_000), cpu_burst_us: Some(0), ..Limits::default() });
    limits_of(&top, &Limits { cpu_idle: Some(true), ..Limits::default() });
    limits_of(&top, &Limits { cpu_idle: Some(false), cpu_weight: Some(7), ..Limits::default() });
    for (file, kept) in [
        ("cpu.max", "10000 100000"),
        ("cpu.weight", "7"),
        ("memory.high", "62914560"),
        ("memory.low", "1048576"),
        ("memory.min", "4096"),
        ("memory.oom.group", "1"),
        ("hugetlb.2MB.max", "4194304"),
    ] {
        assert_eq!(read_unified(&top.cgroup, file).trim(), kept, "{file}");
    }
}

#[test]
fn priv_an_ancestor_with_processes_hands_nothing_down_and_is_named() {
    let mut top = Top::new(&[]);
    if top.h.layout() != Layout::Unified {
        return not_here("a rule of v2 controllers");
    }
    let cgroup = Manager::Cgroupfs.open(&top.h, top.cgroup.path(), &[]).unwrap().unwrap();
    top.spawn(&cgroup, &[], SLEEPER);
    let below = Manager::Cgroupfs.create(&top.h, &top.path("x"), &[]).unwrap();
    let error = below.apply(&Limits { pids_max: Some(5), ..Limits::default() }, Unenforced::Refuse).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unenforced(Controller::Pids));
    assert!(error.to_string().contains("does not hand it down"), "{error}");
}

#[test]
fn priv_cpus_that_are_not_there_are_no_limit() {
    let top = Top::new(&[Controller::Cpuset]);
    let limits = Limits { cpuset_cpus: Some("4000".into()), ..Limits::default() };
    let error = top.cgroup.apply(&limits, Unenforced::Refuse).unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Unenforced(Controller::Cpuset) | ErrorKind::Invalid), "{error}");
}

#[test]
fn priv_unified_files_pass_through() {
    let top = Top::new(&[]);
    let unified = [("cgroup.max.depth".to_owned(), "1".to_owned())].into();
    limits_of(&top, &Limits { unified, ..Limits::default() });
    assert_eq!(read_unified(&top.cgroup, "cgroup.max.depth").trim(), "1");
    let leaf = top.cgroup.leaf("a", &[]).unwrap();
    assert!(leaf.leaf("b", &[]).is_err(), "the depth limit holds");
    let unified = [("dmem.max".to_owned(), "none".to_owned())].into();
    let error = top.cgroup.apply(&Limits { unified, ..Limits::default() }, Unenforced::Refuse).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unenforced(Controller::Dmem));
}

#[test]
fn priv_a_memory_hog_is_killed_in_its_leaf_and_reported() {
    let v1 = [Controller::Memory];
    let mut top = Top::new(&v1);
    top.cgroup.enable_leaf_controllers().unwrap();
    limits_of(&top, &Limits { memory_max_bytes: Some(48 * MIB), memory_swap_max_bytes: Some(0), ..Limits::default() });
    let (hog, calm) = (top.cgroup.leaf("run-1", &v1).unwrap(), top.cgroup.leaf("run-2", &v1).unwrap());
    let calm_child = top.spawn(&calm, &v1, "head -c 1048576 /dev/zero | tail >/dev/null");
    assert!(top.wait(calm_child).success());
    // `tail` keeps a line without an end whole: 256 MiB at most, should the limit not hold.
    let child = top.spawn(&hog, &v1, "head -c 268435456 /dev/zero | tail >/dev/null");
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
    let cgroup = Manager::Cgroupfs.open(&top.h, top.cgroup.path(), &v1).unwrap().unwrap();
    let script = "exec 2>/dev/null; for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done; exit 0";
    let child = top.spawn(&cgroup, &v1, script);
    assert!(!top.wait(child).success(), "the shell gives up when it cannot fork");
    let pids = top.cgroup.pids().unwrap();
    assert_eq!((pids.current, pids.max), (3, Some(4)));
}

fn null_only() -> Vec<DeviceRule> {
    let null = DeviceRule { allow: true, kind: DeviceKind::Char, major: Some(1), minor: Some(3), access: Access::ALL };
    let zero = DeviceRule { minor: Some(5), access: Access::READ, ..null };
    vec![DeviceRule::all(false), null, zero]
}

/// What a process in the cgroup may open.
fn devices_seen(top: &mut Top, v1: &[Controller]) -> Vec<bool> {
    let cgroup = Manager::Cgroupfs.open(&top.h, top.cgroup.path(), v1).unwrap().unwrap();
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
