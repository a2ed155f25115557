//! A hundred lives and deaths, and nothing left of them.

use std::fs;
use std::time::{Duration, Instant};

use icebox_tests::{Daemon, LeakGuard, machine};

const CYCLES: usize = 100;
/// A delete that asks the processes first, or waits for one, takes longer than this where it is slow, too.
const DELETE_MAX: Duration = Duration::from_secs(20);
/// Growth of `iceboxd` that is no leak: allocator arenas and caches after the first boxes.
const GROWTH_MAX_KB: u64 = 24 * 1024;
/// Network namespaces that the kernel may still hold: its teardown is asynchronous, and other tests make boxes too.
const NETNS_SLACK: u64 = 60;

fn kernel_netns() -> u64 {
    let slabs = fs::read_to_string("/proc/slabinfo").expect("slabinfo");
    let line = slabs.lines().find(|l| l.starts_with("net_namespace ")).expect("the net_namespace slab");
    line.split_whitespace().nth(1).expect("active objects").parse().expect("a number")
}

#[test]
fn a_hundred_boxes_leave_nothing() {
    let daemon = Daemon::start();
    let api = daemon.api();
    let cycle = |number: usize| {
        let made = api.create_default();
        if number.is_multiple_of(4) {
            assert_eq!(made.out("echo alive"), "alive");
        }
        if number % 8 == 4 {
            made.out("nohup sleep 600 >/dev/null 2>&1 & true");
            made.pause();
        }
        made.delete();
    };
    for number in 0..10 {
        cycle(number);
    }
    let guard = LeakGuard::new(&daemon);
    let (memory, netns) = (machine::rss_kb(daemon.pid()), kernel_netns());
    for number in 0..CYCLES {
        cycle(number);
    }
    guard.check(&daemon);
    let grown = machine::rss_kb(daemon.pid()).saturating_sub(memory);
    assert!(grown < GROWTH_MAX_KB, "iceboxd grew by {grown} kB");
    icebox_tests::wait_until(icebox_tests::PATIENCE, "the kernel to free network namespaces", || {
        kernel_netns() < netns + NETNS_SLACK
    });
    assert!(api.list().is_empty());
}

#[test]
fn boxes_made_and_deleted_by_many_clients_leave_nothing() {
    const CLIENTS: usize = 8;
    let daemon = Daemon::start();
    daemon.api().create_default().delete();
    let guard = LeakGuard::new(&daemon);
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let api = daemon.api();
            scope.spawn(move || {
                for round in 0..4 {
                    let made = api.create_default();
                    assert_eq!(made.out(&format!("echo {client}.{round}")), format!("{client}.{round}"));
                    made.delete();
                }
            });
        }
    });
    guard.check(&daemon);
}

#[test]
fn a_box_deleted_while_it_works_is_gone_at_once() {
    let daemon = Daemon::start();
    daemon.api().create_default().delete();
    let guard = LeakGuard::new(&daemon);
    for _ in 0..5 {
        let made = daemon.api().create_default();
        let stream = made.stream(&["sh", "-c", "trap '' TERM HUP; yes > /dev/null & while :; do :; done"]);
        let start = Instant::now();
        made.delete();
        assert!(start.elapsed() < DELETE_MAX, "delete took {:?}", start.elapsed());
        drop(stream);
    }
    guard.check(&daemon);
}

#[test]
fn the_guard_sees_everything_that_a_box_holds() {
    let daemon = Daemon::start();
    daemon.api().create_default().delete();
    let guard = LeakGuard::new(&daemon);
    let made = daemon.api().create_default();
    let seen = guard.differences(&daemon);
    for kind in ["cgroup", "loop", "process", "netns", "file", "run file"] {
        assert!(seen.iter().any(|line| line.starts_with(&format!("+ {kind} "))), "no {kind} in {seen:#?}");
    }
    made.delete();
    guard.check(&daemon);
    assert!(guard.differences(&daemon).is_empty());
}
