//! What pure cgroup v2 enforces: every limit with the effect it has, on boxes of an `iceboxd` and, where these have no
//! knob for it, on containers of `icerun`.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use icebox_runtime::cgroup::{CgroupPath, Hierarchy, Manager};
use icebox_tests::api::read_until;
use icebox_tests::daemon::{scratch_dir, unique};
use icebox_tests::machine::{self, Cgroups};
use icebox_tests::oci::Bundle;
use icebox_tests::pool;
use icebox_tests::wait::let_pass;
use icebox_tests::{Daemon, wait_until};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use serde_json::json;

const MIB: u64 = 1 << 20;
/// How long a hog may take to be killed, python's start in a slow guest included.
const KILL_DEADLINE: Duration = Duration::from_secs(60);

/// A busybox line that works for ever.
const BUSY: &str = "while :; do :; done";

#[test]
fn a_box_has_all_its_limits_in_v2_files() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    let (cgroups, cgroup) = (daemon.cgroups(), daemon.cgroup(&made));
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get().min(2));
    for (file, value) in [
        ("cpu.max", format!("{} 100000", cores * 100_000)),
        ("cpu.weight", (cores * 100).to_string()),
        ("memory.swap.max", "0".to_owned()),
        ("memory.high", "max".to_owned()),
        ("memory.oom.group", "0".to_owned()),
        ("pids.max", "1120".to_owned()),
        ("cgroup.max.depth", "2".to_owned()),
        ("cgroup.max.descendants", "2048".to_owned()),
    ] {
        assert_eq!(cgroups.read(&cgroup, file), value, "{file}");
    }
    assert!(cgroups.number(&cgroup, "memory.max", "") > 1 << 30);
    // The depth holds against root on the host too.
    let second = cgroups.unified.join(&cgroup).join("init/x");
    fs::create_dir(&second).expect("the second level");
    let third = second.join("y");
    assert!(fs::create_dir(&third).is_err(), "{} could be made", third.display());
    fs::remove_dir(&second).expect("remove it");
}

#[test]
fn a_hog_ends_with_its_whole_run_and_nothing_else_does() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    let (cgroups, cgroup) = (daemon.cgroups(), daemon.cgroup(&made));
    cgroups.set(&cgroup, "memory.max", &(192 * MIB).to_string());
    let init = daemon.init_pid(&made);
    let mut other = made.stream(&["sh", "-c", "echo up; exec tail -f /dev/null"]);
    read_until(&mut other, "up");
    let began = Instant::now();
    // The direct process waits; who takes the memory is its grandchild.
    let hog = "keep=[]\nwhile True: keep.append(b'x' * (1 << 20))";
    let line = format!("sleep 1000 & sleep 1000 & python3 -c \"{hog}\"; echo survived; wait");
    let killed = made.sh(&line);
    println!("a hog in 192 MiB took {:?}", began.elapsed());
    assert!(began.elapsed() < KILL_DEADLINE);
    assert_eq!((killed.code, killed.stdout.as_str()), (137, ""), "the shell survived its hog: {killed:?}");
    // The kernel kills one after the other, and writes a line to its log for each: the answer may be quicker.
    let count = |key| {
        let events = cgroups.read(&cgroup, "memory.events");
        machine::key_value(&events, key).unwrap_or_else(|| panic!("no {key} in {events}"))
    };
    wait_until(KILL_DEADLINE, "the end of shell, sleepers and python", || count("oom_kill") >= 4);
    assert_eq!(count("oom_group_kill"), 1);
    let sleepers = || cgroups.procs(&cgroup).into_iter().filter(|pid| comm(*pid) == "sleep").count();
    wait_until(KILL_DEADLINE, "the run to have no process left", || sleepers() == 0);
    let run = made.runs().into_iter().find(|run| run["status"] == "failed").expect("a failed run");
    assert!(run["error_message"].as_str().is_some_and(|text| text.contains("memory")), "{run}");
    assert_eq!(daemon.init_pid(&made), init);
    assert!(cgroups.procs(&cgroup).into_iter().any(|pid| comm(pid) == "tail"), "the other run ended too");
    assert_eq!(made.out("echo answers"), "answers");
    let top = daemon.api().get(&format!("/v1/boxes/{}/top", made.id)).ok();
    assert!(top["memory_max_events"].as_u64().is_some_and(|n| n > 0), "{top}");
}

fn comm(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

#[test]
fn memory_high_slows_down_and_reclaims_but_does_not_kill() {
    let daemon = Daemon::start_with("[limits]\nmemory_high_percent = 60\n");
    let made = daemon.api().create_default();
    let (cgroups, cgroup) = (daemon.cgroups(), daemon.cgroup(&made));
    let max = cgroups.number(&cgroup, "memory.max", "");
    let high = cgroups.number(&cgroup, "memory.high", "");
    assert!(high.abs_diff(max / 100 * 60) < 64 << 10, "{high} of {max}");
    cgroups.set(&cgroup, "memory.high", &(96 * MIB).to_string());
    let events = |key| cgroups.number(&cgroup, "memory.events", key);
    // What can be reclaimed is: a file twice as large goes through.
    made.out("dd if=/dev/zero of=big bs=1M count=192 2>/dev/null");
    assert!(events("high") > 0);
    assert!(cgroups.number(&cgroup, "memory.current", "") < 112 * MIB);
    // What cannot is slowed down: after this time a hog without that limit is long dead or far beyond.
    let before = events("high");
    let mut hog = made.stream(&["python3", "-uc", "keep=[]\nprint('up')\nwhile True: keep.append(b'x' * (1 << 20))"]);
    read_until(&mut hog, "up");
    wait_until(KILL_DEADLINE, "the hog to be slowed down", || events("high") > before + 20);
    let_pass(Duration::from_secs(5));
    let current = cgroups.number(&cgroup, "memory.current", "");
    assert!(current < 160 * MIB, "{current} bytes with memory.high at 96 MiB");
    assert_eq!(events("oom_kill"), 0);
    assert!(cgroups.procs(&cgroup).into_iter().any(|pid| comm(pid) == "python3"), "the hog is gone");
    let top = daemon.api().get(&format!("/v1/boxes/{}/top", made.id)).ok();
    assert!(top["memory_high_events"].as_u64().is_some_and(|n| n > 20), "{top}");
    assert!(top["pressure"]["memory"]["some_usec"].as_u64().is_some_and(|n| n > 0), "{top}");
}

#[test]
fn a_fork_beyond_the_limit_fails_with_eagain() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    let (cgroups, cgroup) = (daemon.cgroups(), daemon.cgroup(&made));
    cgroups.set(&cgroup, "pids.max", "24");
    let forks = "import os,signal\nn=0\ntry:\n  while True:\n    if os.fork()==0: signal.pause()\n    n+=1\nexcept OSError as e: print(n, e.errno)\nos.killpg(0, 9)";
    let told = made.exec(&["setsid", "-w", "python3", "-uc", forks]);
    let numbers: Vec<u64> = told.stdout.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    assert!(matches!(numbers[..], [n, 11] if (4..24).contains(&n)), "{told:?}");
    assert!(cgroups.number(&cgroup, "pids.peak", "") <= 24);
    assert_eq!(made.out("echo answers"), "answers");
}

#[test]
fn the_cpu_quota_holds_and_throttling_is_counted() {
    let bundle = Bundle::new(&["sh", "-c", BUSY]);
    bundle.edit(|spec| spec["linux"]["resources"]["cpu"] = json!({ "quota": 20_000, "period": 100_000 }));
    let cgroups = Cgroups::probe();
    bundle.icerun_detached(&["run", "--detach", "a"]).ok();
    assert_eq!(cgroups.read(bundle.cgroup(), "cpu.max"), "20000 100000");
    let stat = |key| cgroups.cpu_stat(bundle.cgroup(), key);
    let (before, began) = (stat("usage_usec"), Instant::now());
    let_pass(Duration::from_secs(4));
    let (used, wall) = (stat("usage_usec") - before, began.elapsed());
    let percent = used * 100 / u64::try_from(wall.as_micros()).expect("small");
    println!("20 % of a core: {used} µs in {wall:?}, {} periods throttled", stat("nr_throttled"));
    assert!((10..=26).contains(&percent), "{percent} % of a core with a quota of 20 %");
    assert!(stat("nr_throttled") > 10 && stat("throttled_usec") > 1_000_000);
}

#[test]
fn weights_share_a_cpu() {
    let start = |cpu: serde_json::Value, unified: serde_json::Value| {
        let bundle = Bundle::new(&["sh", "-c", BUSY]);
        bundle.edit(|spec| {
            spec["linux"]["resources"]["cpu"] = cpu;
            spec["linux"]["resources"]["unified"] = unified;
        });
        bundle.icerun_detached(&["run", "--detach", "a"]).ok();
        bundle
    };
    let light = start(json!({ "shares": 1024, "cpus": "0" }), json!({}));
    let heavy = start(json!({ "cpus": "0" }), json!({ "cpu.weight": "300" }));
    let cgroups = Cgroups::probe();
    assert_eq!(cgroups.read(light.cgroup(), "cpu.weight"), "100");
    assert_eq!(cgroups.read(heavy.cgroup(), "cpu.weight"), "300");
    let used = |bundle: &Bundle| cgroups.cpu_stat(bundle.cgroup(), "usage_usec");
    let (a, b) = (used(&light), used(&heavy));
    let_pass(Duration::from_secs(6));
    let (a, b) = (used(&light) - a, used(&heavy) - b);
    println!("weights 100 and 300: {a} and {b} µs");
    assert!(b * 10 > a * 22 && b * 10 < a * 40, "{a} and {b} µs with the weights 100 and 300");
}

#[test]
fn pressure_is_told_and_grows_when_work_must_wait() {
    let daemon = Daemon::start_with("[limits]\ncpuset_cpus = \"0\"\n");
    let made = daemon.api().create_default();
    let top = || daemon.api().get(&format!("/v1/boxes/{}/top", made.id)).ok();
    let waited = || top()["pressure"]["cpu"]["some_usec"].as_u64().expect("cpu pressure");
    let before = waited();
    made.out(&format!("for i in 1 2 3; do ({BUSY}) >/dev/null 2>&1 & done"));
    let_pass(Duration::from_secs(3));
    let grown = waited() - before;
    println!("three loops on one CPU for 3 s: {grown} µs of cpu pressure");
    assert!(grown > 1_000_000, "{grown} µs");
    let kernel = daemon.cgroups().read(&daemon.cgroup(&made), "cpu.pressure");
    assert!(kernel.starts_with("some avg10="), "{kernel}");
    assert!(top()["pressure"]["io"]["full_usec"].is_u64(), "{}", top());
    let metrics = daemon.api().get("/metrics").text();
    let seconds = metrics.lines().find_map(|line| {
        line.strip_prefix("icebox_stalled_seconds_total{resource=\"cpu\",tasks=\"some\"} ")?.parse::<f64>().ok()
    });
    assert!(seconds.is_some_and(|s| s > 1.0), "{metrics}");
}

/// Binds a path of ours over a file of the box, as only the host can.
fn show(path: &Path, init: i32, inside: &str) {
    let tree = open_tree(rustix::fs::CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC);
    let tree = tree.expect("clone the mount");
    let namespace = fs::File::open(format!("/proc/{init}/ns/mnt")).expect("the box's mount namespace");
    // A thread of its own: only a thread with an unshared root may enter.
    std::thread::scope(|scope| {
        let entered = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).expect("unshare");
            nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNS).expect("enter the box's mounts");
            move_mount(&tree, "", rustix::fs::CWD, inside, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).expect("attach");
        });
        entered.join().expect("attached");
    });
}

#[test]
fn a_device_that_is_not_allowed_cannot_be_opened() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    let init = daemon.init_pid(&made);
    for line in ["mknod disk b 7 0", "sudo mknod disk b 7 0", "sudo mknod /dev/kmsg c 1 11"] {
        let refused = made.sh(line);
        assert!(refused.code != 0 && refused.stderr.contains("not permitted"), "{line}: {refused:?}");
    }
    // The raw disk of the box itself, everybody may read it, in a place that the box sees.
    let disks = pool::loops_below(&daemon.data_dir());
    let (disk, _) = disks.iter().next().expect("the box's disk");
    let number = fs::metadata(format!("/dev/{disk}")).expect("the disk").rdev();
    let node = scratch_dir().join(unique("icebox-disk"));
    let (kind, mode) = (rustix::fs::FileType::BlockDevice, rustix::fs::Mode::from_raw_mode(0o666));
    rustix::fs::mknodat(rustix::fs::CWD, &node, kind, mode, number).expect("make the node");
    fs::set_permissions(&node, fs::Permissions::from_mode(0o666)).expect("open to all");
    made.out("touch disk");
    show(&node, init, "/workspace/home/disk");
    assert_eq!(made.out("stat -c '%F %a' disk"), "block special file 666");
    let read = "head -c 512 disk | wc -c";
    let refused = made.sh(read);
    assert!(refused.stderr.contains("Operation not permitted"), "{refused:?}");
    assert_eq!(refused.stdout.trim(), "0");
    // The same user with the same mounts, but not in the box's cgroup: so it is the filter that refuses.
    let outside = Command::new("nsenter")
        .args(["--target", &init.to_string(), "--mount", "--user", "--setuid", "1000", "--setgid", "1000", "--"])
        .args(["sh", "-c", "cd /workspace/home && head -c 512 disk | wc -c"])
        .output()
        .expect("start nsenter");
    assert_eq!(String::from_utf8_lossy(&outside.stdout).trim(), "512", "{outside:?}");
    assert_eq!(made.out("echo gone > /dev/null; head -c 3 /dev/zero | wc -c"), "3");
    fs::remove_file(&node).expect("remove the node");

    let path = CgroupPath::new(daemon.cgroup(&made)).expect("a path");
    let hierarchy = Hierarchy::probe().expect("cgroups");
    let cgroup = Manager::Cgroupfs.open(&hierarchy, &path, &[]).expect("open").expect("the box's cgroup");
    assert_eq!(cgroup.device_filters().expect("bpf").len(), 1);
}

#[test]
fn a_container_opens_the_devices_of_its_rules_alone() {
    // The loop driver's control: any open works, and reading it is an error of another kind.
    let node = json!({ "path": "/dev/control", "type": "c", "major": 10, "minor": 237, "fileMode": 0o666 });
    let run = |rules: serde_json::Value| {
        let bundle = Bundle::new(&["sh", "-c", "cat /dev/control; echo x > /dev/null && echo null works"]);
        bundle.edit(|spec| {
            spec["linux"]["devices"] = json!([node]);
            spec["linux"]["resources"]["devices"] = rules;
        });
        bundle.icerun(&["run", "a"])
    };
    let deny = json!({ "allow": false, "access": "rwm" });
    let denied = run(json!([deny]));
    assert!(denied.stderr.contains("Operation not permitted"), "{denied:?}");
    assert_eq!(denied.stdout.trim(), "null works");
    let allow = json!({ "allow": true, "type": "c", "major": 10, "minor": 237, "access": "r" });
    let allowed = run(json!([deny, allow]));
    assert!(!allowed.stderr.contains("not permitted"), "{allowed:?}");
    assert!(allowed.stderr.contains("Invalid argument"), "{allowed:?}");
    let later = run(json!([allow, { "allow": false, "type": "c", "major": 10, "access": "r" }]));
    assert!(later.stderr.contains("Operation not permitted"), "the last rule decides: {later:?}");
}
