//! Icebox as a service of systemd: the units that users get, installed as they install them.
//!
//! Only in a guest with systemd; see `icebox_tests::systemd`.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use icebox_tests::systemd::{BOXES, DAEMON, DEADLINE, Service, is_active, run, show, systemctl, wait_property};
use icebox_tests::{TestBox, machine, pool, wait_until};
use serde_json::Value;

/// A whole machine's shutdown waits for this.
const BOXES_END_MAX: Duration = Duration::from_secs(10);

fn start() -> Service {
    let service = Service::install();
    systemctl(&["start", DAEMON]);
    service
}

fn environment(pid: i32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/environ")).expect("environ");
    String::from_utf8_lossy(&bytes).replace('\0', "\n")
}

/// Boxes do not inherit the variables by which systemd tells a service about itself.
fn assert_no_news_of_systemd(environment: &str) {
    for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "JOURNAL_STREAM", "INVOCATION_ID", "LISTEN_FDS"] {
        assert!(!environment.contains(name), "{name} has leaked: {environment}");
    }
}

fn cgroup_of(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("cgroup").trim().to_owned()
}

#[test]
fn a_start_is_over_when_it_serves_and_the_journal_has_its_log() {
    let service = Service::install();
    let verdict = Command::new("systemd-analyze").args(["verify", DAEMON, BOXES]).output().expect("systemd-analyze");
    let said = String::from_utf8_lossy(&verdict.stderr).into_owned() + &String::from_utf8_lossy(&verdict.stdout);
    assert!(verdict.status.success() && said.trim().is_empty(), "systemd-analyze verify: {said}");
    let began = Instant::now();
    systemctl(&["start", DAEMON]);
    println!("systemctl start took {:?}", began.elapsed());
    // At the first try: that is what Type=notify is for.
    assert_eq!(service.api().get("/healthz").status, 200);
    let status = show(DAEMON, "StatusText");
    assert!(status.starts_with("serving 0 boxes on 127.0.0.1:7070"), "{status}");
    let journal = service.journal();
    let entry = journal.iter().find(|(_, text)| text.starts_with("serving ")).unwrap_or_else(|| panic!("{journal:?}"));
    assert_eq!(entry.0, 6, "info");
    assert!(!entry.1.contains('\u{1b}'), "colours: {entry:?}");

    // In the pool: its path is another one after a restart.
    let disk = || pool::volumes_of(service.pid(), Path::new("/var/lib/icebox")).join("unowned-disk-1.img");
    fs::write(disk(), "").expect("a disk without a record");
    systemctl(&["restart", DAEMON]);
    let journal = service.journal();
    let warned = journal.iter().find(|(_, text)| text.contains("unowned-disk-1"));
    assert_eq!(warned.unwrap_or_else(|| panic!("{journal:?}")).0, 4, "a warning");
    fs::remove_file(disk()).expect("remove the disk");

    service.configure("idle_seconds = 0");
    let refused = Command::new("systemctl").args(["restart", DAEMON]).output().expect("systemctl");
    assert!(!refused.status.success(), "systemctl restart must fail when iceboxd does");
    let journal = service.journal();
    let failed = journal.iter().find(|(_, text)| text.contains("idle_seconds"));
    assert_eq!(failed.unwrap_or_else(|| panic!("{journal:?}")).0, 3, "an error");
    service.configure("");
    // It goes on trying, so mending the settings is enough.
    wait_property(DAEMON, "ActiveState", "active");
    assert_eq!(service.api().get("/healthz").status, 200);
}

#[test]
fn boxes_are_where_systemd_lets_them_be() {
    let service = start();
    let made = service.api().create_default();
    assert_eq!(made.out("echo works"), "works");
    wait_property(DAEMON, "StatusText", "serving 1 box on 127.0.0.1:7070");
    let (daemon, init) = (service.pid(), service.init_pid(&made));
    assert_eq!(cgroup_of(daemon), format!("0::/system.slice/{DAEMON}"));
    assert_eq!(cgroup_of(init), format!("0::/{}/init", service.cgroup(&made)));
    let top = fs::read_dir(&service.cgroups().unified).expect("the top of the tree");
    let ours: Vec<_> = top.flatten().filter(|e| e.file_name().to_string_lossy().starts_with("icebox")).collect();
    assert!(ours.is_empty(), "the top of the tree is systemd's: {ours:?}");
    let score = |pid: i32| fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("score").trim().to_owned();
    assert_eq!((score(daemon), show(DAEMON, "OOMScoreAdjust")), ("-900".into(), "-900".into()));
    assert_eq!((score(init), made.out("cat /proc/self/oom_score_adj")), ("200".into(), "200".into()));
    assert_no_news_of_systemd(&environment(init));
    assert_no_news_of_systemd(&made.out("env"));

    // Limits hold, in the box and for all boxes together; systemd has not changed them.
    let dir = service.cgroups().unified.join(service.cgroup(&made));
    let read =
        |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_else(|e| panic!("{name}: {e}")).trim().to_owned();
    let before = (read("memory.max"), read("cpu.max"), read("pids.max"));
    // A small box has two cores, or all that there are.
    let cores = std::thread::available_parallelism().expect("processors").get().min(2);
    assert!(before.0 != "max" && before.1 == format!("{cores}00000 100000") && before.2 == "1120", "{before:?}");
    systemctl(&["set-property", "--runtime", BOXES, "MemoryMax=3G", "CPUWeight=50"]);
    systemctl(&["daemon-reload"]);
    systemctl(&["daemon-reexec"]);
    let unit = service.cgroups().unified.join("system.slice").join(BOXES);
    let of_unit = |name: &str| fs::read_to_string(unit.join(name)).expect(name).trim().to_owned();
    assert_eq!((of_unit("memory.max"), of_unit("cpu.weight")), ((3_u64 << 30).to_string(), "50".into()));
    assert_eq!((read("memory.max"), read("cpu.max"), read("pids.max")), before);
    assert_eq!(service.init_pid(&made), init);
    assert_eq!(made.out("echo works"), "works");
}

/// What must not change while iceboxd comes and goes.
#[derive(Debug, PartialEq, Eq)]
struct Facts {
    init: i32,
    started: Option<u64>,
    socket: u64,
    cgroup: u64,
}

fn facts(service: &Service, made: &TestBox) -> Facts {
    let init = service.init_pid(made);
    let cgroup = service.cgroups().unified.join(service.cgroup(made));
    Facts {
        init,
        started: machine::start_time(init),
        socket: fs::metadata(service.run_dir(made).join("ctl.sock")).expect("the control socket").ino(),
        cgroup: fs::metadata(cgroup).expect("the cgroup").ino(),
    }
}

fn run_of(made: &TestBox, needle: &str) -> Value {
    let runs = made.runs();
    let found = runs.iter().find(|r| r["prompt"].as_str().is_some_and(|p| p.contains(needle)));
    found.unwrap_or_else(|| panic!("no run {needle} in {runs:?}")).clone()
}

/// Does something to the daemon, and checks that its process is another one afterwards and everything else is the same.
fn through(service: &Service, busy: &TestBox, frozen: &TestBox, what: &str, change: impl FnOnce()) {
    let before = (facts(service, busy), facts(service, frozen));
    let (pid, billed, slept) = (service.pid(), service.again(busy).billed_usec(), service.again(frozen).billed_usec());
    let began = Instant::now();
    change();
    println!("{what} took {:?}", began.elapsed());
    assert_ne!(service.pid(), pid, "{what}: the daemon is the old one");
    assert_eq!((facts(service, busy), facts(service, frozen)), before, "{what}");
    let (busy, frozen) = (service.again(busy), service.again(frozen));
    assert_eq!(run_of(&busy, "before")["status"], "running", "{what}");
    assert!(busy.billed_usec() >= billed, "{what}: the bill went back");
    assert_eq!((frozen.status(), frozen.billed_usec()), ("paused".to_owned(), slept), "{what}");
}

#[test]
fn boxes_and_runs_outlive_restart_kill_reload_and_upgrade() {
    let service = start();
    let (busy, frozen) = (service.api().create_default(), service.api().create_default());
    frozen.out("nohup sleep 9999 >/dev/null 2>&1 & echo kept > file.txt");
    frozen.pause();
    busy.out("mkfifo gate; (while :; do :; done) >/dev/null 2>&1 & true");
    let line = "echo before; read x < gate; echo after $x; exit 23";
    let mut stream = busy.stream(&["sh", "-c", line]);
    icebox_tests::api::read_until(&mut stream, "before");

    through(&service, &busy, &frozen, "systemctl restart", || {
        systemctl(&["restart", DAEMON]);
    });
    through(&service, &busy, &frozen, "kill -9", || {
        let pid = service.pid();
        systemctl(&["kill", "--signal=KILL", "--kill-who=main", DAEMON]);
        service.wait_replaced(pid, "systemd to restart iceboxd");
    });
    through(&service, &busy, &frozen, "a changed unit", || {
        service.drop_in("[Service]\nOOMScoreAdjust=-800\nWatchdogSec=10s\n");
        systemctl(&["restart", DAEMON]);
        let score = fs::read_to_string(format!("/proc/{}/oom_score_adj", service.pid())).expect("score");
        assert_eq!(score.trim(), "-800");
    });
    through(&service, &busy, &frozen, "a hang", || {
        let pid = service.pid();
        systemctl(&["kill", "--signal=STOP", "--kill-who=main", DAEMON]);
        service.wait_replaced(pid, "the watchdog to replace iceboxd");
    });
    let newer = newer_binaries();
    through(&service, &busy, &frozen, "an upgrade", || {
        let said = service.install_from(&newer);
        assert!(said.contains("restarted"), "{said}");
    });
    fs::remove_dir_all(&newer).expect("remove the newer binaries");

    let busy = service.again(&busy);
    busy.out("echo now > gate");
    wait_until(DEADLINE, "the run to end", || run_of(&busy, "before")["status"] != "running");
    let run = run_of(&busy, "before");
    assert_eq!(run["exit_code"], 23, "{run}");
    assert!(run["output"].as_str().is_some_and(|o| o.contains("before\n") && o.contains("after now")), "{run}");
    busy.pause();
    let kernel = service.cgroups().cpu_stat(&service.cgroup(&busy), "usage_usec");
    assert_eq!(busy.billed_usec(), kernel, "the bill is the kernel's count over all lives of the daemon");
    let frozen = service.again(&frozen);
    assert_eq!(frozen.out("cat file.txt; pgrep -c sleep"), "kept\n1");
    // The new init and launcher work beside the old ones.
    assert_eq!(service.api().create_default().out("echo new"), "new");
}

#[test]
fn a_start_that_takes_long_is_given_time_while_it_gets_on() {
    let service = start();
    let made = service.api().create_default();
    let init = nix::unistd::Pid::from_raw(service.init_pid(&made));
    // Shorter than the daemon waits for the answer of a box, longer than it takes to get there.
    service.drop_in("[Service]\nTimeoutStartSec=4s\n");
    nix::sys::signal::kill(init, nix::sys::signal::Signal::SIGSTOP).expect("stop the init");
    systemctl(&["restart", "--no-block", DAEMON]);
    wait_until(DEADLINE, "the start to tell how far it is", || show(DAEMON, "StatusText").starts_with("starting: "));
    println!("{}", show(DAEMON, "StatusText"));
    wait_property(DAEMON, "ActiveState", "active");
    nix::sys::signal::kill(init, nix::sys::signal::Signal::SIGCONT).expect("continue the init");
    assert_eq!(show(DAEMON, "NRestarts"), "0", "the first try must succeed");
    let took = |name: &str| show(DAEMON, name).parse::<u64>().expect("microseconds");
    let took = took("ActiveEnterTimestampMonotonic") - took("ExecMainStartTimestampMonotonic");
    println!("the start took {took} µs");
    assert!(took > 4_000_000, "this start was too quick to show anything: {took} µs");
    assert_eq!(service.again(&made).out("echo works"), "works");
}

/// What looks like a later build: the same programs, with something appended to each.
fn newer_binaries() -> std::path::PathBuf {
    let dir = icebox_tests::daemon::scratch_dir().join(icebox_tests::daemon::unique("newer"));
    fs::create_dir_all(&dir).expect("make a directory");
    for name in ["iceboxd", "icebox", "icerun", "icebox-init", "icebox-launch"] {
        let to = dir.join(name);
        fs::copy(icebox_tests::daemon::binary(name), &to).expect("copy");
        let mut bytes = fs::read(&to).expect("read");
        bytes.extend_from_slice(b"newer");
        fs::write(&to, bytes).expect("write");
    }
    dir
}

#[test]
fn stopping_the_daemon_leaves_boxes_and_stopping_the_boxes_leaves_nothing() {
    let service = start();
    let (busy, frozen) = (service.api().create_default(), service.api().create_default());
    for made in [&busy, &frozen] {
        // Not synced by the program.
        made.out("nohup sleep 9999 >/dev/null 2>&1 & echo data > file.txt");
    }
    busy.out("(while :; do :; done) >/dev/null 2>&1 & true");
    frozen.pause();
    let before = (facts(&service, &busy), facts(&service, &frozen));
    let began = Instant::now();
    systemctl(&["stop", DAEMON]);
    println!("systemctl stop took {:?}", began.elapsed());
    assert_eq!((is_active(DAEMON), is_active(BOXES)), (false, true));
    assert_eq!((facts(&service, &busy), facts(&service, &frozen)), before);
    assert_eq!(service.cgroups().event(&service.cgroup(&frozen), "frozen"), Some(1));
    let used = || service.cgroups().cpu_stat(&service.cgroup(&busy), "usage_usec");
    let then = used();
    wait_until(DEADLINE, "the busy box to go on without a daemon", || used() > then);
    systemctl(&["start", DAEMON]);
    assert_eq!((facts(&service, &busy), facts(&service, &frozen)), before);
    assert_eq!(service.again(&frozen).status(), "paused");

    let began = Instant::now();
    systemctl(&["stop", BOXES]);
    let took = began.elapsed();
    println!("stopping everything, one box busy and one frozen, took {took:?}");
    assert!(took < BOXES_END_MAX, "stopping everything took {took:?}");
    assert_eq!((is_active(DAEMON), is_active(BOXES)), (false, false));
    for init in [before.0.init, before.1.init] {
        assert!(!std::path::Path::new(&format!("/proc/{init}")).exists(), "process {init} is left");
    }
    assert!(!service.cgroups().unified.join("system.slice").join(BOXES).exists());
    wait_until(DEADLINE, "the disks to be released", || pool::loops_below(Path::new("/var/lib/icebox")).is_empty());
    systemctl(&["start", DAEMON]);
    for made in [&busy, &frozen] {
        assert_eq!(service.again(made).out("cat file.txt; pgrep -c sleep || true"), "data\n0");
    }
}

#[test]
fn the_hardening_is_in_force_and_boxes_do_not_inherit_it() {
    let service = start();
    println!("{}", run(Command::new("systemd-analyze").args(["security", "--no-pager", DAEMON])));
    let claimed = [
        ("Type", "notify"),
        ("NotifyAccess", "main"),
        ("KillMode", "process"),
        ("Delegate", "yes"),
        ("Restart", "always"),
        ("OOMPolicy", "continue"),
        ("LimitNOFILE", "1048576"),
        ("TasksMax", "infinity"),
        ("ProtectSystem", "full"),
        ("ProtectHome", "yes"),
        ("PrivateTmp", "yes"),
        ("DevicePolicy", "closed"),
        ("RuntimeDirectoryPreserve", "yes"),
        ("NoNewPrivileges", "yes"),
        ("StateDirectoryMode", "0700"),
        ("WatchdogUSec", "2min"),
        // What would reach into boxes.
        ("SystemCallFilter", "~"),
        ("RestrictNamespaces", "no"),
    ];
    for (property, value) in claimed {
        assert_eq!(show(DAEMON, property), value, "{property}");
    }
    for (property, value) in [("Delegate", "yes"), ("KillSignal", "9"), ("TasksMax", "infinity")] {
        assert_eq!(show(BOXES, property), value, "{property} of {BOXES}");
    }
    let daemon = service.pid();
    let status = |name: &str| machine::status_line(daemon, name).unwrap_or_else(|| panic!("no {name}"));
    assert_eq!((status("Seccomp"), status("NoNewPrivs")), ("0".into(), "1".into()));
    let bounding = u64::from_str_radix(&status("CapBnd"), 16).expect("a set");
    // Modules, raw I/O, reboot, clock, kernel log; mounts and ownership are needed.
    for (capability, has) in [(16, false), (17, false), (22, false), (25, false), (34, false), (21, true), (0, true)] {
        assert_eq!(bounding & (1 << capability) != 0, has, "capability {capability} in {bounding:x}");
    }
    let mounts = fs::read_to_string(format!("/proc/{daemon}/mountinfo")).expect("mountinfo");
    let options = |point: &str| {
        let line = mounts.lines().rfind(|line| line.split(' ').nth(4) == Some(point));
        line.unwrap_or_else(|| panic!("{point} is no mount: {mounts}")).split(' ').nth(5).expect("options").to_owned()
    };
    for point in ["/usr", "/etc"] {
        assert!(options(point).split(',').any(|option| option == "ro"), "{point}: {}", options(point));
    }
    let seen = |path: &str| -> BTreeSet<_> {
        let dir = fs::read_dir(format!("/proc/{daemon}/root{path}")).expect(path);
        dir.flatten().map(|entry| entry.file_name()).collect()
    };
    assert!(seen("/root").is_empty() && seen("/tmp").is_empty(), "the daemon sees {:?}", (seen("/root"), seen("/tmp")));

    // None of it is felt in a box: it may do what a filter of the daemon's would forbid.
    let made = service.api().create_default();
    let script = "sudo id -u; cp /bin/cat x; chmod u+s x; stat -c %A x; uname -n; touch /usr/mine 2>&1 | grep -c denied; \
                  sudo touch /usr/mine && ls /usr/mine";
    assert_eq!(made.out(script), format!("0\n-rwsr-xr-x\n{}\n1\n/usr/mine", made.id));
    // Its user namespace has all capabilities, also those that the daemon lacks.
    let init = machine::status_line(service.init_pid(&made), "CapBnd").expect("CapBnd");
    println!("bounding set of the daemon {bounding:x}, of an init {init}");
}
