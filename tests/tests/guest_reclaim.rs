//! A sleeping box gives its memory back, to swap in compressed memory, and has it again when it is needed.

use std::time::Instant;

use icebox_tests::oci::Bundle;
use icebox_tests::swap::ZramSwap;
use icebox_tests::{Daemon, PATIENCE, TestBox, machine, wait_until};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// Holds so many MiB, each page half random and half zeros; tells their hash through a pipe, once at the start and again
/// whenever it is asked.
const HOLDER: &str = "
import os, sys, hashlib
pages = [os.urandom(2048) + bytes(2048) for _ in range(int(sys.argv[1]) * 256)]
while True:
    digest = hashlib.sha256()
    for page in pages: digest.update(page)
    with open('answer', 'w') as answer: answer.write(digest.hexdigest())
    with open('question') as question: question.read()
";

/// Starts the holder; the hash of what it holds.
fn hold(made: &TestBox, mib: u64) -> String {
    made.write("/workspace/home/holder.py", HOLDER);
    made.out("mkfifo question answer");
    made.out(&format!("python3 holder.py {mib} >/dev/null 2>&1 & true"));
    made.out("cat answer")
}

fn reclaim(made: &TestBox) -> icebox_tests::Reply {
    made.api.post_empty(&format!("/v1/boxes/{}/reclaim", made.id))
}

fn bytes(answer: &Value, key: &str) -> u64 {
    answer[key].as_u64().unwrap_or_else(|| panic!("no {key} in {answer}"))
}

#[test]
fn a_sleeping_box_gives_its_pages_back_and_has_them_again() {
    const HELD_MIB: u64 = 64;
    let swap = ZramSwap::on(256 * MIB);
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    let (cgroups, cgroup) = (daemon.cgroups(), daemon.cgroup(&made));
    let hash = hold(&made, HELD_MIB);
    assert_eq!(hash.len(), 64, "{hash:?}");
    assert_eq!(cgroups.read(&cgroup, "memory.swap.max"), "0", "a running box never swaps");
    let text = reclaim(&made).error(409);
    assert!(text.contains("awake"), "{text}");

    made.pause();
    let used = cgroups.cpu_stat(&cgroup, "usage_usec");
    let billed = made.billed_usec();
    let (daemon_cpu, began) = (machine::cpu_ms(daemon.pid()), Instant::now());
    let answer = reclaim(&made).ok();
    let (took, daemon_cpu) = (began.elapsed(), machine::cpu_ms(daemon.pid()) - daemon_cpu);
    println!("reclaim took {took:?}, {daemon_cpu} ms CPU of iceboxd: {answer}; zram holds {}", swap.stored_bytes());
    let (before, after) = (bytes(&answer, "memory_before"), bytes(&answer, "memory_after"));
    assert!(before > HELD_MIB * MIB, "{answer}");
    assert!(after < before - HELD_MIB * MIB * 3 / 4, "{answer}");
    assert!(bytes(&answer, "swap_after") > HELD_MIB * MIB * 3 / 4, "{answer}");
    assert_eq!(answer["cut_short"], false);
    // The kernel agrees, and no process of the box has run.
    assert!(cgroups.number(&cgroup, "memory.current", "") < before / 2);
    assert_eq!(cgroups.event(&cgroup, "frozen"), Some(1));
    assert_eq!(made.status(), "paused");
    assert_eq!(cgroups.cpu_stat(&cgroup, "usage_usec"), used, "the box is charged for its reclaim");
    assert_eq!(made.billed_usec(), billed);
    assert!(daemon_cpu > 0, "the daemon pays for the compression");
    // Half of it is random: it cannot be stored in much less.
    assert!(swap.stored_bytes() > HELD_MIB * MIB / 4, "zram holds {}", swap.stored_bytes());
    let top = daemon.api().get(&format!("/v1/boxes/{}/top", made.id)).ok();
    assert!(bytes(&top, "memory_swap") > HELD_MIB * MIB * 3 / 4, "{top}");

    let began = Instant::now();
    assert_eq!(made.out("echo awake"), "awake");
    println!("the first command after that took {:?}", began.elapsed());
    assert_eq!(cgroups.read(&cgroup, "memory.swap.max"), "0", "a running box never swaps");
    made.out("echo > question");
    assert_eq!(made.out("cat answer"), hash, "what was swapped out came back changed");
    assert!(cgroups.number(&cgroup, "memory.swap.current", "") < HELD_MIB * MIB / 4);
}

#[test]
fn a_box_that_runs_does_not_swap_even_to_survive() {
    let _swap = ZramSwap::on(512 * MIB);
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    let (cgroups, cgroup) = (daemon.cgroups(), daemon.cgroup(&made));
    cgroups.set(&cgroup, "memory.max", &(128 * MIB).to_string());
    let killed = made.python("keep = b'x' * (200 << 20)\nprint('swapped')");
    assert_eq!((killed.code, killed.stdout.as_str()), (137, ""), "{killed:?}");
    assert_eq!(cgroups.number(&cgroup, "memory.swap.current", ""), 0);
    assert!(cgroups.number(&cgroup, "memory.events", "oom_kill") > 0);
}

#[test]
fn a_container_swaps_as_far_as_it_may() {
    // dd fills a buffer of this size: more than the memory, less than memory and swap.
    let line = "dd if=/dev/zero of=/dev/null bs=100M count=1 2>/dev/null && echo fits";
    let run = |swap: u64| {
        let bundle = Bundle::new(&["sh", "-c", line]);
        bundle.edit(|spec| {
            spec["linux"]["resources"]["memory"] = json!({ "limit": 48 * MIB, "swap": swap });
        });
        bundle.icerun(&["run", "a"])
    };
    let _swap = ZramSwap::on(256 * MIB);
    assert_eq!(run(176 * MIB).stdout.trim(), "fits", "128 MiB of swap beside 48 MiB of memory");
    let killed = run(48 * MIB);
    assert!(killed.code != 0 && !killed.stdout.contains("fits"), "memory alone: {killed:?}");
}

#[test]
fn who_wants_the_box_does_not_wait_for_its_reclaim() {
    const HELD_MIB: u64 = 160;
    let _swap = ZramSwap::on(640 * MIB);
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    let (cgroups, cgroup) = (daemon.cgroups(), daemon.cgroup(&made));
    let hash = hold(&made, HELD_MIB);
    made.pause();
    std::thread::scope(|scope| {
        let reclaiming = scope.spawn(|| reclaim(&made).ok());
        wait_until(PATIENCE, "the reclaim to begin", || cgroups.number(&cgroup, "memory.swap.current", "") > 0);
        assert_eq!(made.out("echo awake"), "awake");
        assert_eq!(cgroups.event(&cgroup, "frozen"), Some(0));
        assert_eq!(cgroups.read(&cgroup, "memory.swap.max"), "0");
        let answer = reclaiming.join().expect("the reclaim");
        println!("{answer}");
        assert_eq!(answer["cut_short"], true, "{answer}");
        assert!(bytes(&answer, "memory_after") > HELD_MIB * MIB / 4, "it went on to its end: {answer}");
    });
    made.out("echo > question");
    assert_eq!(made.out("cat answer"), hash);
}

#[test]
fn a_box_that_has_slept_long_enough_gives_its_pages_back_by_itself() {
    const HELD_MIB: u64 = 40;
    let _swap = ZramSwap::on(160 * MIB);
    let mut daemon = Daemon::start_with("reclaim_after_seconds = 1\n");
    let (made, other) = (daemon.api().create_default(), daemon.api().create_default());
    let cgroup = daemon.cgroup(&made);
    let hash = hold(&made, HELD_MIB);
    let swapped = |daemon: &Daemon| daemon.cgroups().number(&cgroup, "memory.swap.current", "");
    assert_eq!(swapped(&daemon), 0);
    made.pause();
    wait_until(PATIENCE, "the pages to go", || swapped(&daemon) > HELD_MIB * MIB * 3 / 4);
    assert_eq!(daemon.cgroups().event(&cgroup, "frozen"), Some(1));
    let awake = daemon.cgroup(&other);
    assert_eq!(daemon.cgroups().number(&awake, "memory.swap.current", ""), 0, "a box that is awake was reclaimed");
    assert_eq!(daemon.cgroups().read(&awake, "memory.swap.max"), "0");
    wait_until(PATIENCE, "the reclaim to be counted", || {
        daemon.api().get("/metrics").text().contains("icebox_reclaim_seconds_count 1")
    });
    let text = daemon.api().get("/metrics").text();
    let in_swap = text.lines().find_map(|l| l.strip_prefix("icebox_swap_bytes ")?.parse::<u64>().ok());
    assert!(in_swap.is_some_and(|bytes| bytes > HELD_MIB * MIB * 3 / 4), "{text}");
    made.out("echo > question");
    assert_eq!(made.out("cat answer"), hash);

    // A daemon that finds the box asleep does the same.
    made.pause();
    daemon.kill9();
    daemon.start_again();
    wait_until(PATIENCE, "the pages to go", || swapped(&daemon) > HELD_MIB * MIB * 3 / 4);
    let made = TestBox { api: daemon.api(), id: made.id };
    made.out("echo > question");
    assert_eq!(made.out("cat answer"), hash);
    assert_eq!(daemon.cgroups().read(&cgroup, "memory.swap.max"), "0");
}
