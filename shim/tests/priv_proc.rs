//! Files of `/proc` that tell of the box, and freezing a box whose processes read them. Needs root, busybox-static,
//! e2fsprogs, and permission events of fanotify.

#[path = "common/boxed.rs"]
mod boxed;
mod common;

use std::time::Duration;

use boxed::TestBox;
use common::{PATIENCE, collect, eventually};
use icebox_runtime::cgroup::{Backend, Controller, Hierarchy};
use icebox_shim::handle::{RunEvent, Scope};
use icebox_shim::procfiles::{Keeper, can_watch};

/// The four files, read by a shell.
const FILES: &str = "/proc/meminfo /proc/cpuinfo /proc/stat /proc/loadavg";
/// Memory in use, in KiB.
const USED: &str = "awk '/^MemTotal/{t=$2} /^MemFree/{print t-$2}' /proc/meminfo";

async fn number(b: &TestBox, script: &str) -> u64 {
    let text = b.sh(script).await.text();
    text.trim().parse().unwrap_or_else(|e| panic!("{script}: {e}: {text}"))
}

/// Runs a script that prints a number until `good` says that it is what is awaited.
async fn until(b: &TestBox, script: &str, good: impl Fn(u64) -> bool) {
    let end = std::time::Instant::now() + PATIENCE;
    loop {
        let seen = number(b, script).await;
        if good(seen) {
            return;
        }
        assert!(std::time::Instant::now() < end, "{script}: still {seen}");
    }
}

#[tokio::test]
async fn priv_files_of_proc_tell_of_the_box() {
    let b = TestBox::start().await;
    // A machine may warn of other things, such as a limit that this process has no right to raise.
    assert!(!b.launched.warnings.iter().any(|warning| warning.contains("/proc")), "{:?}", b.launched.warnings);
    let text = b.sh("cat /proc/meminfo").await.text();
    assert!(text.starts_with("MemTotal:         262144 kB\n"), "{text}");
    assert_eq!(b.sh("grep ^processor /proc/cpuinfo").await.text(), "processor\t: 0\n");
    assert_eq!(b.sh("grep -c . /proc/cpuinfo").await.text(), own_cpuinfo_lines(), "no line of it is missing");
    assert_eq!(b.sh("grep -c ^cpu /proc/stat").await.text(), "2\n", "the sum and one processor");
    assert_eq!(b.sh("cat /sys/devices/system/cpu/online").await.text(), "0\n");
    let load = b.sh("cat /proc/loadavg").await.text();
    assert_eq!(load.split_whitespace().count(), 5, "{load}");
}

/// Lines of one processor in the file of this host.
fn own_cpuinfo_lines() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let first = text.split("\n\n").next().unwrap();
    format!("{}\n", first.lines().filter(|line| !line.is_empty()).count())
}

#[tokio::test]
async fn priv_memory_in_use_and_its_limit_are_the_boxs() {
    let b = TestBox::start().await;
    let before = number(&b, USED).await;
    assert!(before < 50_000, "{before} KiB in an empty box");
    b.sh("head -c 50000000 /dev/zero >/dev/shm/x").await;
    until(&b, USED, |used| (48_000..262_144).contains(&used)).await;
    until(&b, "awk '/^Shmem:/{print $2}' /proc/meminfo", |shmem| shmem >= 48_000).await;
    b.sh("rm /dev/shm/x").await;
    until(&b, USED, |used| used < 48_000).await;
    // The limit is the cgroup's at this moment.
    let file = match Hierarchy::probe().unwrap().backend(Controller::Memory) {
        Backend::V2 => b.cgroup_directory().join("memory.max"),
        _ => b.v1_directory("memory").join("memory.limit_in_bytes"),
    };
    std::fs::write(&file, (192 << 20).to_string()).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    until(&b, "awk '/^MemTotal:/{print $2}' /proc/meminfo", |total| total == 192 << 10).await;
}

#[tokio::test]
async fn priv_processor_time_is_the_boxs() {
    let b = TestBox::start().await;
    let work = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done";
    b.sh(work).await;
    let usage = b.handle.usage().unwrap();
    until(&b, "awk '/^cpu /{print $2+$4}' /proc/stat", |ticks| ticks * 10_000 + 20_000 > usage.cpu_usec).await;
    let idle = number(&b, "awk '/^cpu /{print $5}' /proc/stat").await;
    assert!(idle < PATIENCE.as_secs() * 100, "idle since the box's start, not the host's: {idle}");
    // The same as the kernel says in its own file, which no other is bound over.
    let boot = "sed -n 's/btime //p' /proc/stat";
    let up = number(&b, "sed 's/\\..*//' /proc/uptime").await;
    let (boot, now) = (number(&b, boot).await, number(&b, "date +%s").await);
    assert!(now.abs_diff(boot + up) <= PATIENCE.as_secs(), "booted at {boot}, up for {up}, it is {now}");
    // The daemon's readings alone move the averages.
    b.handle.cpu().unwrap();
    until(&b, "awk '{print ($1>0)}' /proc/loadavg", |has_load| has_load == 1).await;
}

#[tokio::test]
async fn priv_files_of_proc_are_read_only_and_look_like_files_of_proc() {
    let b = TestBox::start().await;
    for script in [
        "sudo sh -c 'echo x >/proc/meminfo'",
        "sudo rm /proc/meminfo",
        "sudo chmod 777 /proc/meminfo",
        "sudo umount /proc/meminfo",
        "sudo mount -o remount,rw /proc/meminfo",
        "sudo mount --bind /etc/hosts /proc/meminfo",
        "exec 3</proc/meminfo; sudo sh -c 'echo x >/proc/self/fd/3' 3<&3",
        "sudo sh -c ': >/proc/cpuinfo'",
    ] {
        assert_ne!(b.sh(script).await.code(), 0, "{script}");
    }
    assert_eq!(
        b.sh("stat -c '%a %F' /proc/meminfo /proc/cpuinfo /proc/stat /proc/loadavg").await.text(),
        "444 regular file\n".repeat(4)
    );
    // By sendfile(2) into the pipe that the init reads: cat of busybox does that.
    let lines = b.sh("cat /proc/meminfo").await.text();
    assert_eq!(lines.lines().count(), 49, "{lines}");
    assert_eq!(b.sh("cat /proc/meminfo | wc -l; wc -l </proc/meminfo").await.text(), "49\n49\n");
    // In pieces of a few bytes it is one text.
    let script = "dd if=/proc/meminfo bs=7 2>/dev/null | awk '$3!=\"kB\"&&!/^Huge/{bad=1} END{print NR, bad+0}'";
    assert_eq!(b.sh(script).await.text(), "49 0\n");
}

#[tokio::test]
async fn priv_a_file_that_is_kept_open_is_written_again() {
    let b = TestBox::start().await;
    // As procps does it: one open file, read from its beginning again and again.
    let file = std::fs::File::open(format!("/proc/{}/root/proc/meminfo", b.launched.pid)).unwrap();
    let shmem = || {
        let mut bytes = [0; 4096];
        let length = std::os::unix::fs::FileExt::read_at(&file, &mut bytes, 0).unwrap();
        let text = String::from_utf8(bytes[..length].to_vec()).unwrap();
        let line = text.lines().find(|line| line.starts_with("Shmem:")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    assert!(shmem() < 1000);
    b.sh("head -c 30000000 /dev/zero >/dev/shm/x").await;
    eventually("the open file tells of it", || shmem() > 28_000).await;
}

#[tokio::test]
async fn priv_the_files_api_reads_them() {
    let b = TestBox::start().await;
    let mut reader = b.handle.file_read("/proc/meminfo", None).await.unwrap();
    let mut bytes = Vec::new();
    while let Some(piece) = reader.next().await.unwrap() {
        bytes.extend_from_slice(&piece);
    }
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.starts_with("MemTotal:         262144 kB\n"), "{text}");
}

#[tokio::test]
async fn priv_boxes_do_not_see_each_others() {
    let keeper = Keeper::start().unwrap();
    let one = TestBox::start_kept(&keeper, |_| {}).await;
    let other = TestBox::start_kept(&keeper, |spec| {
        spec.memory_bytes = 128 << 20;
    })
    .await;
    one.sh("head -c 60000000 /dev/zero >/dev/shm/x").await;
    until(&one, USED, |used| used > 58_000).await;
    let total = "awk '/^MemTotal:/{print $2}' /proc/meminfo";
    assert_eq!((number(&one, total).await, number(&other, total).await), (256 << 10, 128 << 10));
    assert!(number(&other, USED).await < 50_000);
}

#[tokio::test]
async fn priv_reading_without_end_costs_few_events() {
    const OPENINGS: u64 = 10_000;
    let b = TestBox::start().await;
    let before = b.keeper.counts();
    let script = format!("n=0; while [ $n -lt {OPENINGS} ]; do read x </proc/meminfo; n=$((n+1)); done; echo $x");
    assert_eq!(b.sh(&script).await.text(), "MemTotal: 262144 kB\n");
    let after = b.keeper.counts();
    let (held, written) = (after.0 - before.0, after.1 - before.1);
    assert!(written > 0 && written <= held && held < OPENINGS / 10, "{held} events, {written} times written");
}

#[tokio::test]
async fn priv_without_fanotify_a_command_and_a_wake_write_them() {
    can_watch().unwrap();
    let b = TestBox::start_kept(&Keeper::without_watch(), |_| {}).await;
    let text = b.sh("cat /proc/meminfo; head -c 50000000 /dev/zero >/dev/shm/x").await.text();
    assert!(text.starts_with("MemTotal:         262144 kB\n"), "{text}");
    assert!(number(&b, USED).await >= 48_000, "the second command sees what the first one made");
    assert_eq!(b.keeper.counts(), (0, 0));
    let file = format!("/proc/{}/root/proc/meminfo", b.launched.pid);
    let former = std::fs::read_to_string(&file).unwrap();
    std::fs::write(format!("/proc/{}/fd/4", b.launched.pid), "old").unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "old");
    b.handle.freeze(PATIENCE).await.unwrap();
    b.handle.thaw(PATIENCE).await.unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), former.lines().count());
}

/// Reads all files without an end, and writes a line after every third round; ends with 1 when a read fails.
fn reader() -> String {
    format!("n=0; while cat {FILES} >/dev/null; do n=$((n+1)); [ $((n%3)) = 0 ] && echo .; done; echo failed; exit 1")
}

#[tokio::test]
async fn priv_a_box_that_reads_them_all_the_time_is_frozen_every_time() {
    const READERS: usize = 8;
    const FREEZES: usize = 200;
    let b = TestBox::start().await;
    let mut readers = Vec::new();
    let mut numbers = Vec::new();
    for _ in 0..READERS {
        let request = b.request(&["/bin/sh", "-c", &reader()]);
        numbers.push(request.run);
        let (mut events, input) = b.handle.exec(request).await.unwrap().split();
        assert!(matches!(events.next().await.unwrap(), Some(RunEvent::Stdout(_))));
        readers.push((events, input));
    }
    let mut longest = Duration::ZERO;
    for round in 0..FREEZES {
        let began = std::time::Instant::now();
        b.handle.freeze(PATIENCE).await.unwrap_or_else(|e| panic!("freeze {round}: {}", e.report()));
        longest = longest.max(began.elapsed());
        assert!(b.handle.frozen().unwrap());
        b.handle.thaw(PATIENCE).await.unwrap();
        let (events, _) = &mut readers[round % READERS];
        // It reads on: no text but points has come, and it has not ended.
        match events.next().await.unwrap() {
            Some(RunEvent::Stdout(text)) => assert!(!text.windows(6).any(|part| part == b"failed"), "{round}"),
            other => panic!("round {round}: {other:?}"),
        }
    }
    println!("the longest of {FREEZES} freezes took {longest:?}");
    // Readers are killed in the middle of a read, and others are answered.
    for number in numbers {
        b.handle.signal(number, libc::SIGKILL, Scope::Tree).await.unwrap();
    }
    drop(readers);
    eventually("only the init is left", || b.handle.usage().unwrap().pids == 1).await;
    assert!(b.sh("cat /proc/meminfo").await.text().starts_with("MemTotal:"));
}

#[tokio::test]
async fn priv_a_box_with_readers_is_killed_frozen_or_not() {
    for frozen in [false, true] {
        let b = TestBox::start().await;
        let (mut events, _input) = b.handle.exec(b.request(&["/bin/sh", "-c", &reader()])).await.unwrap().split();
        events.next().await.unwrap();
        if frozen {
            b.handle.freeze(PATIENCE).await.unwrap();
        }
        b.handle.kill(PATIENCE).await.unwrap();
        b.handle.remove_cgroup(PATIENCE).unwrap();
        let l = &b.launched;
        b.handle.wait_dead(l.pid, l.start_time_ticks, &l.boot_id).await;
    }
}

#[tokio::test]
async fn priv_files_are_found_again_and_tell_of_the_present() {
    let mut b = TestBox::start().await;
    let total = "awk '/^MemTotal:/{print $2}' /proc/meminfo";
    assert_eq!(number(&b, total).await, 256 << 10);
    // As by the next daemon: another handle, and another group. The former one goes with its last handle.
    let keeper = Keeper::start().unwrap();
    let l = &b.launched;
    let handle = icebox_shim::handle::BoxHandle::open(&b.spec.run_dir, &b.spec.cgroup, b.spec.uid_base).unwrap();
    let former = b.keeper.clone();
    handle.keep_proc_files(&keeper, l.pid, l.start_time_ticks, &l.boot_id).unwrap();
    (b.handle, b.keeper) = (handle, keeper);
    let before = former.counts();
    b.sh("head -c 50000000 /dev/zero >/dev/shm/x").await;
    until(&b, USED, |used| used >= 48_000).await;
    assert!(b.keeper.counts().1 > 0);
    assert_eq!(former.counts().1, before.1, "the former keeper has no such box");
    let request = b.request(&["/bin/cat", "/proc/cpuinfo"]);
    assert!(collect(b.handle.exec(request).await.unwrap()).await.text().contains("processor\t: 0\n"));
}
