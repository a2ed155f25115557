//! Limits, measured on this machine: who exceeds one is stopped inside its own box, and nobody else notices.

use std::io::Read;
use std::time::{Duration, Instant};

use icebox_tests::api::split_stream;
use icebox_tests::{Daemon, TestBox, machine, wait_until};
use serde_json::json;

/// The limits of the size `small`.
const SMALL_MEMORY_BYTES: u64 = 4 << 30;
const PIDS_MAX: u64 = 1024;
const SMALL_DISK_BYTES: u64 = 5 << 30;
/// How much `iceboxd` may grow while a box floods it with output.
const GROWTH_MAX_KB: u64 = 64 * 1024;

fn limit(daemon: &Daemon, made: &TestBox, controller: &str, v1: &str, v2: &str) -> String {
    let dir = daemon.cgroups().controller_dir(controller, &daemon.cgroup(made));
    let file = if daemon.cgroups().v1.contains_key(controller) { v1 } else { v2 };
    let path = dir.join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("read {}: {e}", path.display())).trim().to_owned()
}

#[test]
fn limits_of_the_size_are_in_the_kernel() {
    let daemon = Daemon::start();
    let made = daemon.api().create(&json!({ "size": "small" }));
    assert_eq!(limit(&daemon, &made, "memory", "memory.limit_in_bytes", "memory.max"), SMALL_MEMORY_BYTES.to_string());
    assert_eq!(limit(&daemon, &made, "pids", "pids.max", "pids.max"), PIDS_MAX.to_string());
    let cpu = limit(&daemon, &made, "cpu", "cpu.cfs_quota_us", "cpu.max");
    let quota: u64 = cpu.split(' ').next().expect("quota").parse().expect("a number, not max");
    let period = limit(&daemon, &made, "cpu", "cpu.cfs_period_us", "cpu.max");
    let period: u64 = period.split(' ').next_back().expect("period").parse().expect("a number");
    assert_eq!(quota, 2 * period, "small has two cores");
    let disk = made.out("df --output=size -B1 / | tail -1").parse::<u64>().expect("bytes");
    assert!(disk > SMALL_DISK_BYTES * 9 / 10 && disk <= SMALL_DISK_BYTES, "the disk is {disk} bytes");
}

#[test]
fn a_memory_hog_is_killed_in_its_box_and_reported() {
    let daemon = Daemon::start();
    let (hog, other) = (daemon.api().create_default(), daemon.api().create_default());
    let init = daemon.init_pid(&hog);
    let killed = hog.python("keep=[]\nwhile True: keep.append(bytearray(64 << 20))");
    assert_eq!(killed.code, 137, "{killed:?}");
    assert_eq!(hog.out("echo answers"), "answers", "the box outlives its hog");
    assert_eq!(daemon.init_pid(&hog), init, "init was killed with it");
    let runs = hog.runs();
    let run = runs.iter().find(|r| r["status"] == "failed").unwrap_or_else(|| panic!("{runs:?}"));
    let reason = run["error_message"].as_str().unwrap_or_default();
    assert!(reason.contains("memory"), "the record does not tell the reason: {run}");
    let peak = run["memory_peak_bytes"].as_u64().unwrap_or_else(|| panic!("no peak in {run}"));
    // v2 also counts the last charge, the one that the limit refused.
    let most = SMALL_MEMORY_BYTES + (16 << 20);
    assert!(peak > SMALL_MEMORY_BYTES * 3 / 4 && peak <= most, "peak {peak}");
    let logs = hog.get("/logs").text().to_lowercase();
    assert!(logs.contains("memory"), "the logs do not tell: {logs}");
    assert_eq!(other.out("echo untouched"), "untouched");
    assert!(machine::rss_kb(daemon.pid()) < 256 * 1024);
}

#[test]
fn a_fork_bomb_stops_at_the_limit_and_the_box_answers() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    let bomb = "import os,time,signal\nn=0\ntry:\n  while True:\n    if os.fork()==0: signal.pause()\n    n+=1\nexcept OSError as e: print(n, e.errno, flush=True)\nsignal.pause()";
    let mut stream = made.stream(&["python3", "-c", bomb]);
    let text = icebox_tests::api::read_until(&mut stream, "\n");
    let numbers: Vec<u64> = text.split_whitespace().map(|n| n.parse().expect("numbers")).collect();
    assert!(numbers[0] > PIDS_MAX / 2 && numbers[0] < PIDS_MAX, "{text}");
    assert_eq!(numbers[1], 11, "EAGAIN: {text}");
    let held = limit(&daemon, &made, "pids", "pids.current", "pids.current").parse::<u64>().expect("number");
    assert!(held <= PIDS_MAX, "{held} tasks");
    // The limit is used up: init itself can't fork. The box must say so or serve, at once, not hang.
    let start = Instant::now();
    let reply = made.post("/exec", &json!({ "command": ["true"] }));
    assert!(start.elapsed() < Duration::from_secs(5), "an exec at the pids limit took {:?}", start.elapsed());
    if reply.status >= 300 {
        assert!(!reply.error_text().is_empty());
    }
    assert!(["idle", "running"].contains(&made.status().as_str()));
    let start = Instant::now();
    made.delete();
    assert!(start.elapsed() < Duration::from_secs(5), "delete took {:?}", start.elapsed());
}

#[test]
fn a_box_uses_no_more_than_its_cores() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    let cgroup = daemon.cgroup(&made);
    let cores = 2.0;
    made.out("for i in 1 2 3 4 5 6; do (while :; do :; done) >/dev/null 2>&1 & done");
    let used = || daemon.cgroups().cpu_stat(&cgroup, "usage_usec");
    let (before, start) = (used(), Instant::now());
    icebox_tests::wait::let_pass(Duration::from_secs(1));
    #[expect(clippy::cast_precision_loss, reason = "a second of microseconds is small")]
    let share = (used() - before) as f64 / 1e6 / start.elapsed().as_secs_f64();
    assert!(share > 0.2 && share < cores * 1.1, "six loops used {share:.2} cores");
    made.delete();
}

#[test]
fn a_full_disk_stays_inside() {
    let daemon = Daemon::start();
    let (full, other) = (daemon.api().create_default(), daemon.api().create_default());
    let filled = full
        .sh("fallocate -l 6G big 2>&1; dd if=/dev/zero of=more bs=1M 2>&1 | tail -3; df --output=avail / | tail -1");
    assert!(filled.stdout.contains("No space left on device"), "{filled:?}");
    let written =
        full.post("/files/write", &json!({ "path": "/workspace/home/api.txt", "content": "x".repeat(200_000) }));
    assert!(written.error_text().to_lowercase().contains("space"), "{}", written.text());
    assert!([400, 413, 507].contains(&written.status), "a full disk is {}", written.status);
    assert_eq!(full.sh("ls api.txt").code, 2, "half a file was left");
    assert_eq!(full.out("echo runs anyway"), "runs anyway");
    other.write("fits.txt", "fits");
    assert_eq!(other.read("/workspace/home/fits.txt"), "fits");
    full.out("rm -f big more");
    full.write("fits.txt", "fits again");
    assert_eq!(full.read("/workspace/home/fits.txt"), "fits again");
}

/// Reads a stream to its end, counting; keeps only the last bytes.
fn count(mut stream: impl Read) -> (u64, Vec<u8>) {
    let mut total = 0;
    let mut last = Vec::new();
    let mut chunk = vec![0; 1 << 16];
    loop {
        let size = stream.read(&mut chunk).expect("read the stream");
        if size == 0 {
            return (total, last);
        }
        total += size as u64;
        last.extend_from_slice(&chunk[..size]);
        last.drain(..last.len().saturating_sub(4096));
    }
}

#[test]
fn a_gigabyte_of_yes_fills_no_memory_and_hangs_nobody() {
    const BYTES: u64 = 1_000_000_000;
    let daemon = Daemon::start();
    let (loud, quiet) = (daemon.api().create_default(), daemon.api().create_default());
    quiet.out("true");
    let before = machine::rss_kb(daemon.pid());
    let line = format!("yes | head -c {BYTES}");
    let mut peak = before;
    let mut slowest = Duration::ZERO;
    std::thread::scope(|scope| {
        let streamed = scope.spawn(|| {
            let (total, last) = count(loud.stream(&["sh", "-c", &line]));
            let (_, trailer) = split_stream(&last);
            assert_eq!(trailer["exit_code"], 0);
            total
        });
        while !streamed.is_finished() {
            let start = Instant::now();
            assert_eq!(quiet.out("echo quick"), "quick");
            slowest = slowest.max(start.elapsed());
            peak = peak.max(machine::rss_kb(daemon.pid()));
            peak = peak.max(machine::rss_kb(daemon.init_pid(&loud)));
        }
        let total = streamed.join().expect("the stream");
        assert!(total > BYTES && total < BYTES + 1000, "{total} bytes arrived");
    });
    assert!(peak < before + GROWTH_MAX_KB, "memory grew from {before} to {peak} kB");
    assert!(slowest < Duration::from_secs(2), "a neighbour waited {slowest:?}");

    // The same without a stream: the answer is bounded, and the command still runs to its end.
    let reply = loud.post("/exec", &json!({ "command": ["sh", "-c", format!("{line}; echo done >&2")] }));
    peak = peak.max(machine::rss_kb(daemon.pid()));
    let data = reply.ok();
    assert_eq!(data["exit_code"], 0, "exit code of a command with cut output");
    assert!(data["output"].as_str().is_some_and(|o| o.len() > 1000 && o.len() < 64 << 20));
    assert!(data["error"].as_str().is_some_and(|e| e.contains("done")));
    assert!(peak < before + 2 * GROWTH_MAX_KB, "memory grew from {before} to {peak} kB");
}

#[test]
fn a_reader_that_stops_reading_stops_only_its_own_run() {
    let daemon = Daemon::start();
    let (loud, quiet) = (daemon.api().create_default(), daemon.api().create_default());
    let before = machine::rss_kb(daemon.pid());
    let stalled = loud.stream(&["yes"]);
    wait_until(Duration::from_secs(10), "the run to be seen", || loud.runs().iter().any(|r| r["status"] == "running"));
    for _ in 0..20 {
        assert_eq!(quiet.out("echo quick"), "quick");
        assert_eq!(loud.out("echo too"), "too");
    }
    assert!(machine::rss_kb(daemon.pid()) < before + GROWTH_MAX_KB);
    drop(stalled);
}

#[test]
fn uploads_larger_than_the_limit_are_refused() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    let before = machine::rss_kb(daemon.pid());
    let form = reqwest::blocking::multipart::Form::new()
        .text("paths", "/workspace/home/huge.bin")
        .part("files", reqwest::blocking::multipart::Part::bytes(vec![0_u8; 101 << 20]).file_name("huge.bin"));
    let request = made.api.build("POST", &made.path("/files/upload")).multipart(form);
    // The server may answer and close before the body was sent; both are a refusal.
    if let Ok(reply) = made.api.try_send("upload", request) {
        assert!([400, 413].contains(&reply.status), "{} {}", reply.status, reply.text());
    }
    assert_eq!(made.sh("ls /workspace/home/huge.bin").code, 2);
    assert!(machine::rss_kb(daemon.pid()) < before + GROWTH_MAX_KB);
}
