//! Files of `/proc` that tell of the box: what programs make of them, and what holds when `iceboxd` is not there.

use std::fs;
use std::path::PathBuf;

use icebox_tests::leaks::LeakGuard;
use icebox_tests::{Daemon, PATIENCE, TestBox, wait_until};
use serde_json::json;

/// Memory of the size `small`, in MiB.
const SMALL_MEMORY_MIB: u64 = 4096;
/// Processors of the size `small`.
const SMALL_CORES: u64 = 2;
/// Programs that read without an end.
const READERS: usize = 8;
/// Memory in use, in KiB.
const USED: &str = "awk '/^MemTotal/{t=$2}/^MemFree/{print t-$2}' /proc/meminfo";

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or_else(|e| panic!("{e}: {text}"))
}

fn again(daemon: &Daemon, made: &TestBox) -> TestBox {
    TestBox { api: daemon.api(), id: made.id.clone() }
}

/// Files that a process of the daemon watches.
fn watched(daemon: &Daemon) -> usize {
    let infos = fs::read_dir(format!("/proc/{}/fdinfo", daemon.pid())).expect("list fdinfo").flatten();
    let texts = infos.filter_map(|info| fs::read_to_string(info.path()).ok());
    texts.map(|text| text.lines().filter(|line| line.starts_with("fanotify ino:")).count()).sum()
}

#[test]
fn programs_read_the_numbers_of_their_box() {
    let daemon = Daemon::start();
    let made = daemon.api().create(&json!({ "size": "small" }));
    let host = std::thread::available_parallelism().expect("processors").get() as u64;
    let cores = SMALL_CORES.min(host);
    let total = number(&made.out("free -m | awk '/^Mem:/{print $2}'"));
    let limit = fs::read_to_string("/proc/meminfo").expect("the host's memory");
    let host_kib = number(limit.lines().next().and_then(|line| line.split_whitespace().nth(1)).expect("MemTotal"));
    assert_eq!(total, SMALL_MEMORY_MIB.min(host_kib / 1024));
    assert_eq!(number(&made.out("free -k | awk '/^Swap:/{print $2+$3+$4}'")), 0);
    assert_eq!(number(&made.out("grep -c ^processor /proc/cpuinfo")), cores);
    assert_eq!(number(&made.out("grep -c '^cpu[0-9]' /proc/stat")), cores);
    assert_eq!(number(&made.out("getconf _NPROCESSORS_ONLN")), cores);
    assert_eq!(
        made.sh("uptime && w && vmstat && ps aux && top -b -n1 && df && lscpu && findmnt /proc/meminfo").code,
        0
    );
    // As psutil does it.
    let python = "import time,os\n\
        d=dict((l.split(':')[0],int(l.split()[1])*1024) for l in open('/proc/meminfo'))\n\
        assert d['MemFree']<=d['MemAvailable']<=d['MemTotal'], d\n\
        t=[int(x) for x in open('/proc/stat').readline().split()[1:]]\n\
        assert len(t)==10 and t[3]>0, t\n\
        b=[int(l.split()[1]) for l in open('/proc/stat') if l.startswith('btime')][0]\n\
        s=int(open('/proc/self/stat').read().rsplit(')',1)[1].split()[19])/os.sysconf('SC_CLK_TCK')\n\
        assert abs(b+s-time.time())<5, (b,s,time.time())\n\
        print(len(os.getloadavg()))";
    let output = made.python(python);
    assert_eq!((output.code, output.stdout.trim()), (0, "3"), "{output:?}");
    let node = "const o=require(\"os\");console.log(Math.floor(o.totalmem()/1048576),o.cpus().length,o.freemem()>0)";
    assert_eq!(made.out(&format!("node -e '{node}'")), format!("{total} {cores} true"), "node");
    // sendfile(2) into the pipe of the run's output, as cat of busybox does it.
    let sendfile = "import os\nf=os.open('/proc/meminfo',os.O_RDONLY)\nwhile os.sendfile(1,f,None,65536): pass";
    assert!(made.python_out(sendfile).starts_with("MemTotal:"));
}

#[test]
fn work_shows_in_the_load_and_in_memory() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    assert!(number(&made.out(USED)) < 300_000);
    made.out("head -c 300M /dev/zero >/dev/shm/x");
    wait_until(PATIENCE, "memory in use to show", || number(&made.out(USED)) > 300_000);
    made.out("rm /dev/shm/x; (while :; do :; done) >/dev/null 2>&1 &");
    wait_until(PATIENCE, "memory to be free again", || number(&made.out(USED)) < 300_000);
    wait_until(PATIENCE, "the load to show", || made.out("awk '{print ($1>0)}' /proc/loadavg") == "1");
}

/// Starts readers in the box; each counts its readings in a file, and ends when one fails.
fn start_readers(made: &TestBox) {
    let one = "n=0; while read -r a b c </proc/meminfo && [ \"$a\" = MemTotal: ] && cat /proc/stat /proc/loadavg \
               >/dev/null; do n=$((n+1)); echo $n >/dev/shm/reader.$i; done; echo failed >/dev/shm/reader.$i";
    made.out(&format!("for i in $(seq {READERS}); do ({one}) </dev/null >/dev/null 2>&1 & done"));
}

/// Waits until each reader has read some times more. Asks no `iceboxd`.
fn readers_go_on(init: i32) {
    let shm = PathBuf::from(format!("/proc/{init}/root/dev/shm"));
    let count = |reader: usize| {
        let text = fs::read_to_string(shm.join(format!("reader.{reader}"))).unwrap_or_default();
        assert!(!text.starts_with("failed"), "reader {reader} could not read");
        text.trim().parse::<u64>().unwrap_or(0)
    };
    let before: Vec<u64> = (1..=READERS).map(count).collect();
    wait_until(PATIENCE, "all readers to go on", || {
        before.iter().zip(1..=READERS).all(|(before, reader)| count(reader) > before + 3)
    });
}

#[test]
fn readers_go_on_without_iceboxd_and_files_are_fresh_after_its_start() {
    let mut daemon = Daemon::start();
    let made = daemon.api().create_default();
    let init = daemon.init_pid(&made);
    start_readers(&made);
    readers_go_on(init);
    for end in [Daemon::kill9, Daemon::stop, Daemon::kill9] {
        end(&mut daemon);
        readers_go_on(init);
        daemon.start_again();
        let made = again(&daemon, &made);
        assert_eq!(watched(&daemon), 3, "the files are watched again");
        let before = number(&made.out(USED));
        made.out("head -c 100M /dev/zero >/dev/shm/x");
        wait_until(PATIENCE, "memory in use to show", || number(&made.out(USED)) > before + 90_000);
        made.out("rm /dev/shm/x");
        readers_go_on(init);
    }
    assert_eq!(daemon.init_pid(&again(&daemon, &made)), init, "the box was started anew");
}

#[test]
fn files_are_watched_as_long_as_the_box_lives() {
    let daemon = Daemon::start();
    let one = daemon.api().create_default();
    let two = daemon.api().create_default();
    assert_eq!(watched(&daemon), 6);
    one.delete();
    wait_until(PATIENCE, "the first box's files to be forgotten", || watched(&daemon) == 3);
    daemon.api().post(&format!("/v1/boxes/{}/restart", two.id), &json!({})).ok();
    two.out("free");
    wait_until(PATIENCE, "the files of the former start to be forgotten", || watched(&daemon) == 3);
    two.delete();
    wait_until(PATIENCE, "no file to be watched", || watched(&daemon) == 0);
}

#[test]
fn a_box_that_reads_them_sleeps_wakes_and_leaves_nothing() {
    let daemon = Daemon::start();
    // The first box makes the cgroup of all.
    daemon.api().create_default().delete();
    let guard = LeakGuard::new(&daemon);
    let made = daemon.api().create_default();
    start_readers(&made);
    let init = daemon.init_pid(&made);
    for _ in 0..20 {
        made.pause();
        assert_eq!(made.status(), "paused");
        made.resume();
        readers_go_on(init);
    }
    made.delete();
    guard.check(&daemon);
}
