//! The life of a box: background work, zombies, falling asleep, waking up as if nothing had happened, starting anew.

use std::fs;
use std::time::{Duration, Instant};

use icebox_tests::wait::let_pass;
use icebox_tests::{Daemon, PATIENCE, TestBox, machine, pool, wait_until};
use serde_json::json;

fn wait_status(made: &TestBox, wanted: &[&str]) {
    wait_until(PATIENCE, &format!("the box to be {wanted:?}"), || wanted.contains(&made.status().as_str()));
}

#[test]
fn a_background_child_survives_its_command_and_does_not_hold_it() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    for (name, line) in [
        ("plain", "sleep 301 &"),
        ("nohup", "nohup sleep 302 &"),
        ("setsid", "setsid sleep 303 &"),
        ("subshell", "(sleep 304 &)"),
        ("double", "sh -c 'sleep 305 & exit 0' & exit 0"),
    ] {
        let start = Instant::now();
        let result = made.sh(line);
        assert_eq!(result.code, 0, "{name}: {result:?}");
        assert!(start.elapsed() < PATIENCE, "{name} was waited for: {:?}", start.elapsed());
    }
    let running = made.out("ps -eo args | grep -c '[s]leep 30[1-5]'");
    assert_eq!(running, "5", "a background child was killed");
    // What the direct process wrote before it ended is there, though a child still holds the pipe.
    let start = Instant::now();
    let mixed = made.sh("echo before; sleep 306 & echo after");
    assert_eq!(mixed.stdout, "before\nafter\n");
    let (output, trailer) = {
        use std::io::Read;
        let mut body = Vec::new();
        made.stream(&["sh", "-c", "echo streamed; sleep 307 & exit 2"]).read_to_end(&mut body).expect("stream");
        icebox_tests::api::split_stream(&body)
    };
    assert_eq!(output, b"streamed\n");
    assert_eq!(trailer["exit_code"], 2);
    assert!(start.elapsed() < PATIENCE);
}

/// Counts its visitors in memory: the server that `cargo xtask up` shows.
const COUNTER: &str = include_str!("../../xtask/src/demo/server.py");

#[test]
fn a_detached_command_stays_and_sleeps_and_wakes_with_its_box() {
    let daemon = Daemon::start();
    let made = daemon.api().create(&json!({ "idle_seconds": 1 }));
    let icebox = |args: &[&str]| {
        let done = daemon.icebox(&[&["exec"], args].concat()).output().expect("icebox ends");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        (done.status.code(), text(done.stdout), text(done.stderr))
    };
    let line = "echo \"$WHO $PWD\" >told; exec python3 -c \"$0\"";
    let started = icebox(&["-d", "-e", "WHO=me", "-w", "/tmp", &made.id, "--", "sh", "-c", line, COUNTER]);
    assert_eq!(started, (Some(0), String::new(), String::new()));
    let visit = ["-n", "-T", &made.id, "--", "curl", "-sf", "--retry", "600", "--retry-connrefused", "127.0.0.1:8000"];
    assert_eq!(icebox(&visit), (Some(0), "visitor 1\n".to_owned(), String::new()));
    assert_eq!(made.out("cat /tmp/told"), "me /tmp");
    wait_status(&made, &["paused"]);
    assert_eq!(icebox(&visit), (Some(0), "visitor 2\n".to_owned(), String::new()));
    let (code, _, said) = icebox(&["-d", &made.id, "--", "no-such-program"]);
    assert_eq!((code, said.trim_end()), (Some(127), "no-such-program: command not found"));
    let (code, _, said) = icebox(&["-d", &made.id]);
    assert_eq!(code, Some(125), "{said}");
    assert!(said.contains("icebox exec --detach BOX -- ARGV"), "{said}");
}

#[test]
fn zombies_are_reaped() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    // Grandchildren whose parent ends at once: they become children of init.
    let code = "import os\nfor i in range(300):\n  p=os.fork()\n  if p==0:\n    if os.fork()==0: os._exit(3)\n    os._exit(0)\n  os.waitpid(p,0)";
    made.python_out(code);
    wait_until(PATIENCE, "init to reap orphans", || {
        let pids = daemon.cgroups().procs(&daemon.cgroup(&made));
        pids.iter().all(|pid| machine::process_state(*pid) != Some('Z')) && pids.len() == 1
    });
    assert_eq!(made.out("ps -eo stat | grep -c '^Z'; true"), "0");
}

#[test]
fn an_idle_box_falls_asleep_and_the_next_request_wakes_it() {
    let daemon = Daemon::start();
    let made = daemon.api().create(&json!({ "idle_seconds": 1 }));
    wait_status(&made, &["paused"]);
    assert_eq!(daemon.cgroups().event(&daemon.cgroup(&made), "frozen"), Some(1), "the kernel agrees");
    for _ in 0..3 {
        // Looking does not wake.
        made.data();
        made.get("/logs").ok();
        made.runs();
        made.bill();
    }
    assert_eq!(made.status(), "paused");
    assert_eq!(made.out("echo awake"), "awake");
    assert_eq!(daemon.cgroups().event(&daemon.cgroup(&made), "frozen"), Some(0));
    wait_status(&made, &["paused"]);
    made.write("by-file.txt", "woken by a write");
    wait_status(&made, &["paused"]);
    assert_eq!(made.read("/workspace/home/by-file.txt"), "woken by a write");
    assert_eq!(made.out("cat /work/by-file.txt /home/boxuser/by-file.txt"), "woken by a writewoken by a write");
    wait_status(&made, &["paused"]);
    made.resume();
    assert!(["idle", "running"].contains(&made.status().as_str()));
}

#[test]
fn work_keeps_a_box_awake() {
    let daemon = Daemon::start();
    let busy = daemon.api().create(&json!({ "idle_seconds": 1 }));
    let waiting = daemon.api().create(&json!({ "idle_seconds": 1 }));
    let kept = daemon.api().create(&json!({ "idle_seconds": 1 }));
    kept.out("setsid flock -s /run/icebox/keep sleep 4322 >/dev/null 2>&1 & sleep 0.1");
    // A run that only waits is work, and so is a background process that computes.
    let stream = waiting.stream(&["sleep", "4321"]);
    busy.out("(while :; do :; done) >/dev/null 2>&1 &");
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        assert_eq!(waiting.status(), "running", "a box with a run fell asleep");
        assert_ne!(busy.status(), "paused", "a box that computes fell asleep");
        assert_ne!(kept.status(), "paused", "a box with a process that holds the lock fell asleep");
        let_pass(Duration::from_millis(100));
    }
    let why = daemon.api().get(&format!("/v1/boxes/{}/why", waiting.id)).ok();
    assert!(why["awake_because"].as_array().is_some_and(|r| !r.is_empty()), "{why}");
    let why = daemon.api().get(&format!("/v1/boxes/{}/why", kept.id)).ok();
    assert!(why["awake_because"].to_string().contains("/run/icebox/keep"), "{why}");
    kept.out("pkill -x sleep; pkill -x flock; true");
    wait_status(&kept, &["paused"]);
    drop(stream);
    waiting.out("pkill -x sleep");
    busy.out("kill $(pgrep -f '[w]hile :') ; true");
    wait_status(&waiting, &["paused"]);
    let why = daemon.api().get(&format!("/v1/boxes/{}/why", waiting.id)).ok();
    assert!(why["waiting_for"].as_array().is_some_and(|r| !r.is_empty()), "{why}");
    busy.delete();
}

#[test]
fn an_owner_keeps_a_box_awake_for_a_while() {
    let mut daemon = Daemon::start();
    let made = daemon.api().create(&json!({ "idle_seconds": 1 }));
    let keep = format!("/v1/boxes/{}/keep", made.id);
    let why = |made: &TestBox| made.api.get(&format!("/v1/boxes/{}/why", made.id)).ok();
    wait_status(&made, &["paused"]);
    for body in [json!({ "seconds": 0 }), json!({ "seconds": u64::MAX }), json!({ "seconds": "x" })] {
        made.api.post(&keep, &body).error(400);
    }
    // It is woken, and stays awake; also by the next daemon, whose other box falls asleep meanwhile.
    made.api.post(&keep, &json!({ "seconds": 3600 })).ok();
    assert_eq!(made.status(), "idle");
    let until = made.data()["kept"]["until_ms"].as_i64().expect("an end");
    daemon.stop();
    daemon.start_again();
    let made = TestBox { api: daemon.api(), id: made.id };
    let other = daemon.api().create(&json!({ "idle_seconds": 1 }));
    wait_status(&other, &["paused"]);
    other.out("true");
    wait_status(&other, &["paused"]);
    assert_eq!(made.status(), "idle");
    assert_eq!(made.data()["kept"]["until_ms"], until);
    assert_eq!(daemon.api().get(&format!("/v1/boxes/{}", made.id)).ok()["kept"]["until_ms"], until);
    assert!(why(&made)["awake_because"].to_string().contains("its owner keeps it awake for another"), "{}", why(&made));
    // An explicit pause is stronger; the next request wakes it, and it is still kept.
    made.pause();
    assert_eq!(made.status(), "paused");
    made.out("true");
    // It ends by itself, or when its owner says so.
    made.api.post(&keep, &json!({ "seconds": 1 })).ok();
    wait_status(&made, &["paused"]);
    assert!(made.data()["kept"].is_null());
    made.api.post(&keep, &json!({})).ok();
    assert!(made.data()["kept"]["until_ms"].is_null() && made.data()["kept"].is_object());
    let icebox = |words: &[&str]| {
        let mut command = std::process::Command::new(icebox_tests::daemon::binary("icebox"));
        let output = command.arg("--run-dir").arg(daemon.run_dir()).args(words).output().expect("icebox");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(icebox(&["ls"]).contains("(kept awake)"));
    icebox(&["keep", &made.id, "--off"]);
    wait_status(&made, &["paused"]);
    assert!(icebox(&["keep", &made.id, "--for", "1h"]).contains("kept awake for "));
    made.api.delete(&keep).ok();
    made.api.delete(&keep).ok();
    wait_status(&made, &["paused"]);
}

#[test]
fn a_keep_alive_box_never_sleeps() {
    let daemon = Daemon::start();
    let kept = daemon.api().create(&json!({ "keep_alive": true, "idle_seconds": 1 }));
    let other = daemon.api().create(&json!({ "idle_seconds": 1 }));
    assert!(daemon.api().post_empty(&kept.path("/pause")).status >= 400, "pause of a keep-alive box is refused");
    wait_status(&other, &["paused"]);
    let_pass(Duration::from_secs(2));
    assert_ne!(kept.status(), "paused");
    assert_eq!(daemon.cgroups().event(&daemon.cgroup(&kept), "frozen"), Some(0));
}

#[test]
fn idle_time_can_be_changed_per_box_and_account() {
    let daemon = Daemon::start();
    let made = daemon.api().create(&json!({ "idle_seconds": 3600 }));
    assert_eq!(made.status(), "idle");
    let path = format!("/v1/boxes/{}/idle", made.id);
    daemon.api().call("PUT", &path, Some(&json!({ "idle_seconds": 1 }))).ok();
    wait_status(&made, &["paused"]);
    daemon.api().call("PUT", "/v1/account/idle", Some(&json!({ "idle_seconds": 1 }))).ok();
    wait_status(&daemon.api().create_default(), &["paused"]);
}

/// A program with a counter in memory and one TCP connection to itself; each line that it reads makes it answer with
/// both: the counter, and what came through the socket.
const STATEFUL: &str = r"
import socket, os
server = socket.create_server(('127.0.0.1', 7777))
client = socket.create_connection(('127.0.0.1', 7777))
peer, _ = server.accept()
os.mkfifo('ask'); os.mkfifo('answer')
count = 0
open('ready', 'w').close()
while True:
    with open('ask') as f: word = f.read().strip()
    count += 1
    client.sendall(word.encode())
    got = peer.recv(100).decode()
    with open('answer', 'w') as f: print(os.getpid(), count, got, file=f)
";

#[test]
fn processes_memory_and_sockets_are_intact_after_sleep() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    made.write("stateful.py", STATEFUL);
    made.out("nohup python3 stateful.py >/dev/null 2>&1 & true");
    wait_until(PATIENCE, "the program to be ready", || made.sh("test -e ready").code == 0);
    let ask = |word: &str| made.out(&format!("echo {word} > ask; cat answer"));
    let first = ask("one");
    let pid = first.split(' ').next().expect("pid").to_owned();
    assert_eq!(first, format!("{pid} 1 one"));
    let init = daemon.init_pid(&made);
    let start = machine::start_time(init);
    for round in 2..8 {
        made.pause();
        assert_eq!(made.status(), "paused");
        assert_eq!(ask("again"), format!("{pid} {round} again"));
    }
    assert_eq!(daemon.init_pid(&made), init);
    assert_eq!(machine::start_time(init), start);
}

#[test]
fn a_frozen_box_costs_no_cpu_at_all() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    made.out("for i in 1 2 3; do (while :; do :; done) >/dev/null 2>&1 & done");
    made.pause();
    let cgroup = daemon.cgroup(&made);
    let pids = daemon.cgroups().procs(&cgroup);
    assert!(pids.len() >= 4, "{pids:?}");
    let before = daemon.cgroups().cpu_stat(&cgroup, "usage_usec");
    let switches = |pid: &i32| machine::status_line(*pid, "nonvoluntary_ctxt_switches");
    let counted: Vec<_> = pids.iter().map(switches).collect();
    let_pass(Duration::from_millis(1500));
    assert_eq!(daemon.cgroups().cpu_stat(&cgroup, "usage_usec"), before);
    assert_eq!(pids.iter().map(switches).collect::<Vec<_>>(), counted);
    made.delete();
}

#[test]
fn a_box_comes_back_with_its_data_when_all_its_processes_are_gone() {
    let mut daemon = Daemon::start();
    let made = daemon.api().create_default();
    made.out(
        "echo durable > kept.txt; sudo -n sh -c 'echo system > /opt/kept'; nohup sleep 777 >/dev/null 2>&1 & sync",
    );
    let billed_before = {
        made.pause();
        made.billed_usec()
    };
    // A reboot of the host: iceboxd and every process of the box end, the cgroups are gone, files stay.
    daemon.kill9();
    let root = daemon.cgroup_root().to_owned();
    daemon.cgroups().destroy(&root);
    wait_until(PATIENCE, "the loop device to be released", || pool::loops_below(&daemon.data_dir()).is_empty());
    daemon.start_again();
    let made = TestBox { api: daemon.api(), id: made.id };
    assert_eq!(made.status(), "stopped", "a box without processes");
    assert_eq!(made.out("cat kept.txt /opt/kept"), "durable\nsystem");
    assert_eq!(made.sh("ps -eo args | grep '[s]leep 777'").code, 1);
    made.pause();
    assert!(made.billed_usec() > billed_before, "the bill goes on where it was");
}

#[test]
fn a_box_whose_init_was_killed_is_started_anew_by_the_next_request() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    made.out("echo durable > kept.txt; sync");
    let init = daemon.init_pid(&made);
    let cgroup = daemon.cgroups().unified.join(daemon.cgroup(&made));
    fs::write(cgroup.join("cgroup.kill"), "1").expect("kill the box");
    wait_until(PATIENCE, "init to end", || {
        machine::start_time(init).is_none_or(|_| machine::process_state(init) == Some('Z'))
    });
    wait_until(PATIENCE, "the box to work again", || {
        let reply = made.post("/exec", &json!({ "command": ["cat", "kept.txt"] }));
        reply.status == 200 && reply.json()["output"] == "durable\n"
    });
    assert_ne!(daemon.init_pid(&made), init);
}

#[test]
fn an_init_command_runs_at_each_start() {
    let daemon = Daemon::start();
    let made = daemon.api().create(&json!({ "init_command": "echo started >> /workspace/home/starts" }));
    wait_until(PATIENCE, "the init command", || made.sh("grep -c started starts").stdout.trim() == "1");
    assert_eq!(made.get("/startup").ok()["init_command"], "echo started >> /workspace/home/starts");
}

#[test]
fn cancel_ends_a_run_and_its_children() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    let mut stream = made.stream(&["sh", "-c", "sleep 888 & echo up; wait"]);
    icebox_tests::api::read_until(&mut stream, "up");
    let run = made.runs().into_iter().find(|r| r["status"] == "running").expect("a running run");
    let id = run["id"].as_str().expect("id");
    daemon.api().post_empty(&made.path(&format!("/runs/{id}/cancel"))).ok();
    wait_until(PATIENCE, "the children to end", || made.sh("ps -eo args | grep '[s]leep 888'").code == 1);
    wait_until(PATIENCE, "the run to read cancelled", || {
        made.runs().iter().any(|r| r["id"] == id && r["status"] == "cancelled")
    });
    a_cancel_is_whole(&daemon, &made);
    let unknown = daemon.api().post_empty(&made.path("/runs/0190f0c8-0000-7000-8000-000000000000/cancel"));
    assert!(unknown.status == 404 || unknown.status < 300, "{}", unknown.status);
}

/// A cancel ends what traps SIGTERM, what is in another session, what has outlived its run, and a fork storm.
fn a_cancel_is_whole(daemon: &Daemon, made: &TestBox) {
    let cancel = |id: &str| daemon.api().post_empty(&made.path(&format!("/runs/{id}/cancel"))).ok();
    let id_of = |part: &str| {
        let runs = made.runs();
        let run = runs.iter().find(|r| r["prompt"].as_str().is_some_and(|p| p.contains(part))).expect("the run");
        run["id"].as_str().expect("id").to_owned()
    };
    // The leader ends by SIGTERM; the other does not hear it.
    let stubborn = "setsid sh -c 'trap : TERM; while :; do sleep 8001; done' & echo up; exec sleep 8002";
    let mut stream = made.stream(&["sh", "-c", stubborn]);
    icebox_tests::api::read_until(&mut stream, "up");
    cancel(&id_of("8002"));
    wait_until(PATIENCE, "all of it to end", || made.sh("ps -eo args | grep '[s]leep 800'").code == 1);
    // The run has ended long ago, and the first cancel is not heard.
    made.out("setsid sh -c 'trap : TERM; while :; do sleep 8003; done' >/dev/null 2>&1 & true");
    cancel(&id_of("8003"));
    wait_until(PATIENCE, "the background of a finished run to end", || {
        made.sh("ps -eo args | grep '[s]leep 8003'").code == 1
    });
    let storm = "bash -c 'trap \"\" TERM; b() { b | b & }; b; wait' >/dev/null 2>&1 & : 8004";
    made.out(storm);
    let pids = || daemon.api().get(&format!("/v1/boxes/{}/top", made.id)).ok()["pids"].as_u64().expect("pids");
    wait_until(PATIENCE, "the storm", || pids() >= 900);
    assert_eq!(made.get("/files/list?folder=.").status, 200, "files work in a storm");
    cancel(&id_of("8004"));
    wait_until(PATIENCE, "the storm to end", || pids() < 10);
    assert_eq!(made.out("echo alive"), "alive");
}
