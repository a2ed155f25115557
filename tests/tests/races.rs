//! Concurrent requests for one box: none hangs, each answer is true, nothing is left.

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use icebox_tests::api::split_stream;
use icebox_tests::wait::let_pass;
use icebox_tests::{Daemon, LeakGuard, PATIENCE, TestBox, wait_until};
use serde_json::json;

const CLIENTS: usize = 6;

#[test]
fn a_sleeping_box_is_woken_by_many_at_once() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    for round in 0..10 {
        made.pause();
        std::thread::scope(|scope| {
            for client in 0..CLIENTS {
                let made = &made;
                scope.spawn(move || {
                    let word = format!("{round}.{client}");
                    match client % 3 {
                        0 => assert_eq!(made.out(&format!("echo {word}")), word),
                        1 => made.write(&format!("/workspace/home/{client}"), &word),
                        _ => assert!(made.get("/files/list").ok()["files"].is_array()),
                    }
                });
            }
        });
        assert_ne!(made.status(), "paused");
    }
}

#[test]
fn commands_succeed_while_the_box_sleeps_and_wakes_again_and_again() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let pauses = scope.spawn(|| {
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                // A pause stops the commands in flight where they are; it takes a wake to let them go on.
                for verb in ["/pause", "/resume"] {
                    let reply = made.api.post_empty(&made.path(verb));
                    assert!(reply.status < 500, "{verb}: {} {}", reply.status, reply.text());
                }
                count += 1;
            }
            count
        });
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let made = &made;
                scope.spawn(move || {
                    for number in 0..25 {
                        let start = Instant::now();
                        assert_eq!(made.out(&format!("echo {client}.{number}")), format!("{client}.{number}"));
                        assert!(start.elapsed() < PATIENCE, "took {:?}", start.elapsed());
                    }
                })
            })
            .collect();
        let results: Vec<_> = clients.into_iter().map(|c| c.join()).collect();
        stop.store(true, Ordering::Relaxed);
        assert!(pauses.join().expect("the pausing client") > 0);
        assert!(results.into_iter().all(|r| r.is_ok()), "a command failed");
    });
    made.pause();
    let kernel = daemon.cgroups().cpu_stat(&daemon.cgroup(&made), "usage_usec");
    assert_eq!(made.billed_usec(), kernel, "the bill after many sleeps");
}

#[test]
fn a_run_that_was_put_to_sleep_goes_on_where_it_was() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    // Long enough to be asleep before the last line, also where a request takes a second.
    let line = "for i in 1 2 3 4 5 6 7 8; do echo line $i; sleep 0.5; done; exit 9";
    let mut stream = made.stream(&["sh", "-c", line]);
    let mut seen = icebox_tests::api::read_until(&mut stream, "line 2\n").into_bytes();
    made.pause();
    let_pass(Duration::from_millis(1200));
    assert_eq!(made.status(), "paused", "the open stream woke the box");
    assert!(made.runs().iter().any(|r| r["status"] == "running"));
    made.resume();
    stream.read_to_end(&mut seen).expect("the rest of the stream");
    let (output, trailer) = split_stream(&seen);
    let wanted: String = (1..=8).map(|i| format!("line {i}\n")).collect();
    assert_eq!(String::from_utf8_lossy(&output), wanted);
    assert_eq!(trailer["exit_code"], 9);
}

#[test]
fn deleting_a_box_under_load_answers_everybody() {
    let daemon = Daemon::start();
    daemon.api().create_default().delete();
    let guard = LeakGuard::new(&daemon);
    for round in 0..8_u64 {
        let made = daemon.api().create_default();
        std::thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| until_gone(&made));
            }
            scope.spawn(|| {
                let_pass(Duration::from_millis(round * 7));
                made.delete();
            });
        });
        assert_eq!(daemon.api().get(&made.path("")).status, 404);
    }
    guard.check(&daemon);
}

/// Works with a box until it is not there any more. What is answered is a result or an error with a text.
fn until_gone(made: &TestBox) {
    let end = Instant::now() + PATIENCE;
    loop {
        let reply = made.post("/exec", &json!({ "command": ["sh", "-c", "echo x; sleep 0.01"] }));
        if reply.status == 404 {
            return;
        }
        assert!(Instant::now() < end, "the box is never gone");
        if reply.status >= 300 {
            let text = reply.error_text();
            assert!(reply.status != 500, "{text}");
        }
    }
}

#[test]
fn boxes_of_one_name_are_made_once() {
    let daemon = Daemon::start();
    let api = daemon.api();
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let clients: Vec<_> =
            (0..CLIENTS).map(|_| scope.spawn(|| api.post("/v2/box", &json!({ "name": "only-one" })).status)).collect();
        clients.into_iter().map(|c| c.join().expect("a client")).collect()
    });
    assert_eq!(statuses.iter().filter(|s| **s < 300).count(), 1, "{statuses:?}");
    assert!(statuses.iter().all(|s| *s < 300 || [400, 409].contains(s)), "{statuses:?}");
    assert_eq!(api.list().len(), 1);
}

#[test]
fn a_stream_whose_reader_went_away_runs_on_and_is_recorded() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    let mut stream = made.stream(&["sh", "-c", "echo begun; sleep 0.4; echo ended > ended; exit 4"]);
    icebox_tests::api::read_until(&mut stream, "begun");
    drop(stream);
    wait_until(PATIENCE, "the run to end", || {
        made.runs().iter().any(|r| r["exit_code"] == 4 && r["status"] == "failed")
    });
    assert_eq!(made.read("/workspace/home/ended"), "ended\n");
}
