//! Limits, measured on this machine: a process that exceeds one is stopped inside its box, and others are unaffected.

use std::io::Read;
use std::time::{Duration, Instant};

use icebox_tests::api::split_stream;
use icebox_tests::{Daemon, PATIENCE, TestBox, machine, pool, wait_until};
use serde_json::json;

/// The limits of the size `small`.
const SMALL_MEMORY_BYTES: u64 = 4 << 30;
const PIDS_MAX: u64 = 1024;
/// What the box has beyond that, for its init.
const PIDS_RESERVE: u64 = 96;
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
    assert_eq!(limit(&daemon, &made, "pids", "pids.max", "pids.max"), (PIDS_MAX + PIDS_RESERVE).to_string());
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
    assert!(held <= PIDS_MAX + PIDS_RESERVE, "{held} tasks");
    // The limit of runs is used up. The box must say so or serve, not hang.
    let start = Instant::now();
    let reply = made.post("/exec", &json!({ "command": ["true"] }));
    assert!(start.elapsed() < PATIENCE, "an exec at the pids limit took {:?}", start.elapsed());
    if reply.status >= 300 {
        assert!(!reply.error_text().is_empty());
    }
    assert!(["idle", "running"].contains(&made.status().as_str()));
    let start = Instant::now();
    made.delete();
    assert!(start.elapsed() < PATIENCE, "delete took {:?}", start.elapsed());
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
fn a_box_runs_on_the_cpus_of_the_configuration() {
    let daemon = Daemon::start_with("[limits]\ncpuset_cpus = \"0\"\n");
    let made = daemon.api().create_default();
    assert_eq!(limit(&daemon, &made, "cpuset", "cpuset.cpus", "cpuset.cpus"), "0");
    assert_eq!(made.out("grep Cpus_allowed_list: /proc/self/status | cut -f2"), "0");
    assert_eq!(made.out("nproc"), "1");
}

/// Writes so many MiB past the page cache; how long that took, by the clock of this machine.
fn write_direct(made: &TestBox, mib: u64) -> Duration {
    let start = Instant::now();
    made.out(&format!("dd if=/dev/zero of=direct bs=1M count={mib} oflag=direct conv=notrunc 2>/dev/null"));
    start.elapsed()
}

#[test]
fn the_disk_of_a_box_is_as_fast_as_configured() {
    const RATE_MIB: u64 = 4;
    const WRITTEN_MIB: u64 = 20;
    let rate = RATE_MIB << 20;
    let config = format!("[limits]\nio_write_bytes_per_second = {rate}\nio_read_bytes_per_second = {rate}\n");
    let daemon = Daemon::start_with(&config);
    let made = daemon.api().create_default();
    let (disk, _) = pool::loops_below(&daemon.data_dir()).into_iter().next().expect("the box's disk");
    let number = std::fs::read_to_string(format!("/sys/block/{disk}/dev")).expect("its number").trim().to_owned();
    let on_v1 = daemon.cgroups().v1.contains_key("blkio");
    let kept = limit(&daemon, &made, if on_v1 { "blkio" } else { "io" }, "blkio.throttle.write_bps_device", "io.max");
    let wanted = if on_v1 {
        format!("{number} {rate}")
    } else {
        format!("{number} rbps={rate} wbps={rate} riops=max wiops=max")
    };
    assert_eq!(kept, wanted);
    let expected = Duration::from_secs(WRITTEN_MIB / RATE_MIB);
    let slow = write_direct(&made, WRITTEN_MIB);
    // The kernel hands the bytes out in slices, the first of them at once.
    assert!(slow > expected * 4 / 5 && slow < expected * 4, "{WRITTEN_MIB} MiB took {slow:?}");
    let start = Instant::now();
    made.out("dd if=direct of=/dev/null bs=1M iflag=direct 2>/dev/null");
    assert!(start.elapsed() > expected * 4 / 5, "reading {WRITTEN_MIB} MiB took {:?}", start.elapsed());
    let dir = daemon.cgroups().controller_dir(if on_v1 { "blkio" } else { "io" }, &daemon.cgroup(&made));
    let (statistics, written) =
        if on_v1 { ("blkio.throttle.io_service_bytes", "Write ") } else { ("io.stat", "wbytes=") };
    let statistics = std::fs::read_to_string(dir.join(statistics)).expect("statistics");
    let counted = statistics
        .lines()
        .filter(|l| l.starts_with(&format!("{number} ")))
        .find_map(|l| l.split_once(written)?.1.split(' ').next()?.parse::<u64>().ok());
    assert!(counted.is_some_and(|bytes| bytes >= WRITTEN_MIB << 20), "{number}: {statistics}");
    // The same without the limit: it was the limit that took the time.
    let (file, free) = if on_v1 {
        ("blkio.throttle.write_bps_device", format!("{number} 0"))
    } else {
        ("io.max", format!("{number} wbps=max"))
    };
    std::fs::write(dir.join(file), free).expect("lift the limit");
    let fast = write_direct(&made, WRITTEN_MIB);
    println!("{WRITTEN_MIB} MiB: {slow:?} at {RATE_MIB} MiB/s, {fast:?} without a limit");
    assert!(fast < slow / 2, "{fast:?} without a limit, {slow:?} with it");
}

#[test]
fn a_sleeping_box_gives_its_cached_files_back() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    let reclaim = || daemon.api().post_empty(&format!("/v1/boxes/{}/reclaim", made.id));
    made.out("head -c 67108864 /dev/urandom > cached; sync cached");
    let hash = made.out("sha256sum < cached");
    let text = reclaim().error(409);
    assert!(text.contains("awake"), "{text}");
    made.pause();
    let used = daemon.cgroups().cpu_stat(&daemon.cgroup(&made), "usage_usec");
    let answer = reclaim().ok();
    let bytes = |key: &str| answer[key].as_u64().unwrap_or_else(|| panic!("no {key} in {answer}"));
    assert!(
        bytes("memory_before") > 64 << 20 && bytes("memory_after") < bytes("memory_before") - (48 << 20),
        "{answer}"
    );
    let again = daemon.icebox(&["reclaim", &made.id]).output().expect("start icebox");
    assert!(again.status.success() && again.stdout.starts_with(b"memory "), "{again:?}");
    assert_eq!(made.status(), "paused");
    assert_eq!(daemon.cgroups().cpu_stat(&daemon.cgroup(&made), "usage_usec"), used);
    assert_eq!(made.out("sha256sum < cached"), hash);
    daemon.api().post_empty("/v1/boxes/no-such-box-1/reclaim").error(404);
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
fn a_gigabyte_of_yes_fills_no_memory_and_blocks_no_other_client() {
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
    assert_eq!((&data["exit_code"], &data["truncated"]), (&json!(0), &json!(true)), "the status is the program's own");
    assert!(data["output"].as_str().is_some_and(|o| o.len() > 1000 && o.len() <= 64 << 20));
    assert!(data["error"].as_str().is_some_and(|e| e.contains("done") && e.contains("cut")), "{}", data["error"]);
    let runs = loud.runs();
    let cut = runs.iter().find(|run| run["error_message"].as_str().is_some_and(|text| text.contains("output was cut")));
    assert_eq!(cut.map(|run| &run["status"]), Some(&json!("completed")), "{runs:?}");
    assert!(peak < before + 2 * GROWTH_MAX_KB, "memory grew from {before} to {peak} kB");
}

#[test]
fn a_reader_that_stops_reading_stops_only_its_own_run() {
    let daemon = Daemon::start();
    let (loud, quiet) = (daemon.api().create_default(), daemon.api().create_default());
    let before = machine::rss_kb(daemon.pid());
    let stalled = loud.stream(&["yes"]);
    wait_until(PATIENCE, "the run to be seen", || loud.runs().iter().any(|r| r["status"] == "running"));
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
