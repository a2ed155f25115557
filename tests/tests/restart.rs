//! `kill -9 iceboxd` at any time: boxes, runs, exit codes and bills are there afterwards as if nothing had happened.

use std::time::Duration;

use icebox_tests::{Daemon, LeakGuard, PATIENCE, TestBox, machine, wait_until};
use serde_json::{Value, json};

fn again(daemon: &Daemon, made: &TestBox) -> TestBox {
    TestBox { api: daemon.api(), id: made.id.clone() }
}

fn run_of<'a>(runs: &'a [Value], needle: &str) -> &'a Value {
    let found = runs.iter().find(|r| r["prompt"].as_str().is_some_and(|p| p.contains(needle)));
    found.unwrap_or_else(|| panic!("no run {needle} in {runs:?}"))
}

#[test]
fn a_run_in_flight_finishes_and_is_recorded() {
    let mut daemon = Daemon::start();
    let made = daemon.api().create_default();
    made.out("mkfifo gate");
    let init = daemon.init_pid(&made);
    let started = machine::start_time(init);
    let line = "echo before the crash; read x < gate; echo after the crash $x; exit 23";
    let mut stream = made.stream(&["sh", "-c", line]);
    icebox_tests::api::read_until(&mut stream, "before the crash");
    let quick = made.stream(&["sh", "-c", "sleep 0.3; echo ended while iceboxd was down; exit 5"]);
    daemon.kill9();
    drop((stream, quick));
    // The init and the shell that waits.
    wait_until(PATIENCE, "the quick run to end", || daemon.cgroups().procs(&daemon.cgroup(&made)).len() == 2);
    daemon.start_again();
    let made = again(&daemon, &made);
    assert_eq!(daemon.init_pid(&made), init, "the box was started anew");
    assert_eq!(machine::start_time(init), started);
    assert_eq!(run_of(&made.runs(), "before the crash")["status"], "running");
    made.out("echo now > gate");
    wait_until(PATIENCE, "the run to end", || run_of(&made.runs(), "before the crash")["status"] != "running");
    let runs = made.runs();
    let run = run_of(&runs, "before the crash");
    assert_eq!((&run["status"], &run["exit_code"]), (&json!("failed"), &json!(23)), "{run}");
    let output = run["output"].as_str().unwrap_or_default();
    assert!(output.contains("before the crash") && output.contains("after the crash now"), "{run}");
    assert!(run["cpu_ns"].as_u64().is_some_and(|n| n > 0), "{run}");
    let run = run_of(&runs, "iceboxd was down");
    assert_eq!((&run["status"], &run["exit_code"]), (&json!("failed"), &json!(5)), "{run}");
    assert!(run["output"].as_str().is_some_and(|o| o.contains("ended while iceboxd was down")), "{run}");
}

#[test]
fn a_stopped_box_keeps_its_uids() {
    // As after a reboot: the daemon starts, and no box runs. A new box must not get the uids of an old one, or both
    // would share them when the old one is started again.
    let mut daemon = Daemon::start();
    let old = daemon.api().create_default();
    daemon.kill9();
    daemon.cgroups().destroy(daemon.cgroup_root());
    daemon.start_again();
    let new = daemon.api().create_default();
    let old = again(&daemon, &old);
    old.out("true");
    let first_uid = |made: &TestBox| {
        let map =
            std::fs::read_to_string(format!("/proc/{}/uid_map", daemon.init_pid(made))).expect("read the uid map");
        map.split_whitespace().nth(1).expect("a host uid").to_owned()
    };
    assert_ne!(first_uid(&old), first_uid(&new), "two boxes have the same uids");
}

#[test]
fn boxes_records_and_bills_are_equal_after_a_crash() {
    let mut daemon = Daemon::start();
    let api = daemon.api();
    let named = api.create(&json!({ "name": "kept-name", "labels": ["a", "b"], "idle_seconds": 1234 }));
    let frozen = api.create_default();
    frozen.out("i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done");
    for made in [&named, &frozen] {
        made.out("echo data > file.txt");
        made.pause();
    }
    let keys = ["id", "name", "labels", "size", "created_at", "idle_seconds", "status", "keep_alive"];
    let facts = |made: &TestBox| {
        let data = made.data();
        keys.map(|k| data[k].clone())
    };
    let before = [&named, &frozen].map(|b| (facts(b), b.billed_usec(), daemon.init_pid(b), b.runs().len()));
    daemon.kill9();
    daemon.start_again();
    let after = [&named, &frozen].map(|b| {
        let b = again(&daemon, b);
        (facts(&b), b.billed_usec(), daemon.init_pid(&b), b.runs().len())
    });
    assert_eq!(before, after);
    let total: u64 = before.iter().map(|b| b.1).sum();
    assert_eq!(daemon.api().get("/v1/usage").ok()["totals"]["cpu_usec"].as_u64(), Some(total));
    assert_eq!(again(&daemon, &frozen).out("cat file.txt"), "data");
    daemon.stop();
    daemon.start_again();
    assert_eq!(again(&daemon, &named).out("cat file.txt"), "data");
    assert_eq!(daemon.api().get("/v2/box/kept-name").ok()["id"], named.id.as_str());
}

#[test]
fn nothing_is_counted_twice_or_lost_over_crashes() {
    let mut daemon = Daemon::start();
    let made = daemon.api().create_default();
    made.out("(while :; do :; done) >/dev/null 2>&1 & true");
    for _ in 0..4 {
        daemon.kill9();
        daemon.start_again();
    }
    let made = again(&daemon, &made);
    made.pause();
    let kernel = daemon.cgroups().cpu_stat(&daemon.cgroup(&made), "usage_usec");
    assert_eq!(made.billed_usec(), kernel);
    made.delete();
    let usage = daemon.api().get("/v1/usage").ok();
    let bill = usage["boxes"].as_array().and_then(|b| b.iter().find(|b| b["id"] == made.id.as_str())).cloned();
    let bill = bill.unwrap_or_else(|| panic!("a deleted box left the bill: {usage}"));
    assert!(bill["cpu_usec"].as_u64().is_some_and(|u| u >= kernel), "{bill}, kernel {kernel}");
}

#[test]
fn a_crash_at_a_random_moment_of_a_create_leaves_no_half_made_box() {
    const ROUNDS: u32 = 10;
    let mut daemon = Daemon::start();
    daemon.api().create_default().delete();
    let guard = LeakGuard::new(&daemon);
    let mut seed = 0x9e37_79b9_u32 ^ std::process::id();
    for round in 0..ROUNDS {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let delay = Duration::from_micros(u64::from(seed >> 16) % 45_000);
        println!("round {round}: kill after {delay:?}");
        let api = daemon.api();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                let api = api.clone();
                scope.spawn(move || {
                    let request = api.build("POST", "/v2/box").header("content-type", "application/json").body("{}");
                    let _ = api.try_send("create", request);
                });
            }
            icebox_tests::wait::let_pass(delay);
            daemon.kill9();
        });
        daemon.start_again();
        // Every box that is listed works, or becomes one that works; a box that was not finished is not listed for ever.
        for data in daemon.api().list() {
            let made = TestBox { api: daemon.api(), id: data["id"].as_str().expect("id").to_owned() };
            wait_until(PATIENCE, "the box to leave the state creating", || {
                daemon.api().get(&made.path("")).status == 404 || made.status() != "creating"
            });
            if daemon.api().get(&made.path("")).status == 200 {
                assert_eq!(made.out("echo works"), "works");
                made.delete();
            }
        }
        assert!(daemon.api().list().is_empty());
        guard.check(&daemon);
    }
}

#[test]
fn a_crash_in_the_middle_of_a_delete_is_finished_later() {
    let mut daemon = Daemon::start();
    daemon.api().create_default().delete();
    let guard = LeakGuard::new(&daemon);
    for delay_us in [0, 500, 1500, 3000, 6000, 10_000] {
        let made = daemon.api().create_default();
        made.out("nohup sleep 600 >/dev/null 2>&1 & true");
        let api = daemon.api();
        std::thread::scope(|scope| {
            scope.spawn(|| api.try_send("delete", api.build("DELETE", &made.path(""))));
            icebox_tests::wait::let_pass(Duration::from_micros(delay_us));
            daemon.kill9();
        });
        daemon.start_again();
        let left = again(&daemon, &made);
        if daemon.api().get(&left.path("")).status == 200 && left.status() != "deleted" {
            // Its processes may have been dying at the restart: a client is told to try again then.
            wait_until(PATIENCE, "the box to be whole, or gone", || {
                let reply = left.post("/exec", &json!({ "command": ["echo", "intact"] }));
                reply.status == 200 && reply.json()["output"] == "intact\n"
            });
            left.delete();
        }
        wait_until(PATIENCE, "the box to be gone", || daemon.api().get(&left.path("")).status == 404);
        guard.check(&daemon);
    }
}

#[test]
fn two_daemons_cannot_use_one_data_directory() {
    let daemon = Daemon::start();
    let mut command = std::process::Command::new(icebox_tests::daemon::binary("iceboxd"));
    let run_dir = icebox_tests::daemon::scratch_dir().join(icebox_tests::daemon::unique("second-run"));
    command.arg("--data-dir").arg(daemon.data_dir()).arg("--run-dir").arg(&run_dir);
    let output =
        command.args(["--listen", "127.0.0.1:0"]).env("ICEBOX_API_KEY", "box_other").output().expect("iceboxd");
    let _ = std::fs::remove_dir_all(&run_dir);
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(text.contains(&daemon.data_dir().display().to_string()), "the error names the directory: {text}");
    assert_eq!(daemon.api().get("/healthz").status, 200);
}
