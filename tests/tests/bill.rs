//! The bill against the kernel's own count.

use std::time::{Duration, Instant};

use icebox_tests::wait::let_pass;
use icebox_tests::{Daemon, PATIENCE, TestBox, wait_until};
use serde_json::Value;

/// The price of the smallest size: dollars for one core used for one hour.
const DOLLARS_PER_CORE_HOUR: f64 = 0.10;

fn number(bill: &Value, key: &str) -> f64 {
    bill[key].as_f64().unwrap_or_else(|| panic!("no number {key} in {bill}"))
}

fn kernel_usec(daemon: &Daemon, made: &TestBox) -> u64 {
    daemon.cgroups().cpu_stat(&daemon.cgroup(made), "usage_usec")
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-6 + b.abs() * 1e-6
}

#[test]
fn a_busy_loop_is_billed_to_the_microsecond() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    made.python_out("import time\nend=time.process_time()+0.7\nwhile time.process_time()<end: pass");
    made.out("(while :; do :; done) >/dev/null 2>&1 & true");
    let_pass(Duration::from_millis(300));
    // The pause takes the last sample of this stretch, and a frozen box's counter stands still.
    made.pause();
    let kernel = kernel_usec(&daemon, &made);
    assert!(kernel > 700_000, "the loop used {kernel} us");
    let bill = made.bill();
    assert_eq!(bill["cpu_usec"].as_u64(), Some(kernel), "{bill}");
    #[expect(clippy::cast_precision_loss, reason = "seconds of microseconds are exact in a double")]
    let seconds = kernel as f64 / 1e6;
    assert!(close(number(&bill, "core_seconds"), seconds), "{bill}");
    assert!((number(&bill, "cpu_dollars") - seconds / 3600.0 * DOLLARS_PER_CORE_HOUR).abs() < 1.1e-6, "{bill}");
    let total = number(&bill, "cpu_dollars") + number(&bill, "storage_dollars");
    assert!((number(&bill, "total_dollars") - total).abs() < 1e-6, "{bill}");
    made.delete();
}

#[test]
fn many_short_runs_are_billed_though_their_cgroups_are_gone() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    for _ in 0..30 {
        made.out("i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done");
    }
    made.pause();
    assert_eq!(made.billed_usec(), kernel_usec(&daemon, &made));
    let runs: u64 = made.runs().iter().map(|r| r["cpu_ns"].as_u64().expect("cpu_ns")).sum();
    assert!(runs > 0 && runs / 1000 <= made.billed_usec(), "the runs sum up to {runs} ns");
}

#[test]
fn a_frozen_box_adds_nothing_but_storage() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    made.out("(while :; do :; done) >/dev/null 2>&1 & true");
    made.pause();
    let before = made.bill();
    let_pass(Duration::from_millis(1500));
    let after = made.bill();
    assert_eq!(before["cpu_usec"], after["cpu_usec"]);
    assert_eq!(before["cpu_dollars"], after["cpu_dollars"]);
    assert!(number(&after, "gb_hours") > 0.0, "{after}");
    assert!(number(&after, "gb_hours") > number(&before, "gb_hours"), "storage costs while asleep: {before} {after}");
    made.resume();
    wait_until(PATIENCE, "the loop to be billed again", || made.bill()["cpu_usec"] != after["cpu_usec"]);
    made.delete();
}

#[test]
fn a_running_box_is_sampled_every_second() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    made.out("(while :; do :; done) >/dev/null 2>&1 & true");
    let mut quickest = Duration::MAX;
    // The first one may come at once: it is not known when the one before it was taken.
    for is_counted in [false, true, true, true, true] {
        let first = made.billed_usec();
        let start = Instant::now();
        wait_until(PATIENCE, "a new sample", || made.billed_usec() > first);
        if is_counted {
            quickest = quickest.min(start.elapsed());
        }
    }
    // A machine with other work is late now and then, not always.
    assert!(quickest < Duration::from_millis(1500), "the quickest of the samples came after {quickest:?}");
    made.delete();
}

#[test]
fn run_figures_are_exact_and_their_own() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    let timed = |run: &dyn Fn() -> String| {
        let start = Instant::now();
        let text = run();
        (text, u64::try_from(start.elapsed().as_nanos()).expect("small"))
    };
    let code =
        "import time\nend=time.process_time()+0.4\nwhile time.process_time()<end: pass\nprint(time.process_time_ns())";
    let (told, busy_ns) = timed(&|| made.python_out(code));
    made.python_out("keep=bytearray(150_000_000)");
    let (_, quick_ns) = timed(&|| made.out("true"));
    let runs = made.runs();
    let figures =
        |index: usize, key: &str| runs[index][key].as_u64().unwrap_or_else(|| panic!("{key} in {}", runs[index]));
    // One thread cannot use more time than passes, and this one knows what it has used at least. The kernel's two counts
    // differ by a tick or so.
    let told: u64 = told.parse().expect("nanoseconds");
    assert!(told > 400_000_000 && (told / 100 * 95..=busy_ns).contains(&figures(2, "cpu_ns")), "{told} {}", runs[2]);
    assert!((140_000_000..260_000_000).contains(&figures(1, "memory_peak_bytes")), "{}", runs[1]);
    assert!(figures(0, "cpu_ns") <= quick_ns && figures(0, "memory_peak_bytes") < 100_000_000, "{}", runs[0]);
}

#[test]
fn the_account_is_the_sum_of_its_boxes_and_deleted_ones_stay() {
    let daemon = Daemon::start();
    let boxes = [daemon.api().create_default(), daemon.api().create_default()];
    for made in &boxes {
        made.out("i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done");
        made.pause();
    }
    let gone = boxes[0].billed_usec();
    boxes[0].delete();
    let usage = daemon.api().get("/v1/usage").ok();
    let bills = usage["boxes"].as_array().unwrap_or_else(|| panic!("{usage}"));
    assert_eq!(bills.len(), 2, "{usage}");
    let sum: u64 = bills.iter().map(|b| b["cpu_usec"].as_u64().expect("cpu_usec")).sum();
    assert_eq!(usage["totals"]["cpu_usec"].as_u64(), Some(sum));
    let deleted = bills.iter().find(|b| b["id"] == boxes[0].id.as_str()).expect("the deleted box");
    assert!(deleted["cpu_usec"].as_u64().is_some_and(|u| u >= gone), "{deleted}");
    assert_eq!(deleted["status"], "deleted");
}

#[test]
fn storage_is_what_is_allocated_over_time() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    made.out("head -c 100000000 /dev/zero > big; sync");
    wait_until(PATIENCE, "the size to be seen", || number(&made.bill(), "storage_bytes") > 95e6);
    let (start, first) = (Instant::now(), number(&made.bill(), "gb_hours"));
    let_pass(Duration::from_secs(5));
    let (passed, grown) = (start.elapsed().as_secs_f64(), number(&made.bill(), "gb_hours") - first);
    let rate = number(&made.bill(), "storage_bytes") / 1e9 / 3600.0;
    let seconds = grown / rate;
    // Each end may be a second of sampling and a late answer away.
    assert!((seconds - passed).abs() < 2.5, "{seconds:.2} s of storage in {passed:.2} s");
}
