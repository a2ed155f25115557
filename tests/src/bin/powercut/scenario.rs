//! The scenario whose disk is recorded: one thing after another, each told when it is answered.

use std::io::BufRead;
use std::path::Path;
use std::time::Instant;

use icebox_tests::{Daemon, TestBox};

use crate::load::{create, delete};
use crate::model::{Op, Text};
use crate::{DISK, HOME, NAME, copies, images, report};

/// The box whose program flushes each of its lines.
pub(crate) const LOG_BOX: &str = "log";
/// Boxes from its snapshots are named so.
pub(crate) const RESTORED: &str = "restored";
/// The file of the lines in a box.
pub(crate) const LOG: &str = "/workspace/home/log";

/// The pool's size at first, and after its growth.
const POOL_GIB: u64 = 2;
const GROWN_GIB: u64 = 3;

/// Lines from the first argument on, as many as the second says: each is appended, flushed, and told.
const WRITE: &str = r"
import os, sys
first, count = int(sys.argv[1]), int(sys.argv[2])
home = os.path.dirname(sys.argv[3])
log = os.open(sys.argv[3], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
dir = os.open(home, os.O_RDONLY); os.fsync(dir)
for n in range(first, first + count):
    os.write(log, b'line %d\n' % n); os.fsync(log)
    sys.stdout.write('%d\n' % n); sys.stdout.flush()
";

/// The content of the log up to this line.
pub(crate) fn lines_until(last: u64) -> String {
    (0..=last).map(|number| format!("line {number}\n")).collect()
}

/// Boxes stay awake, since nothing is to happen beside the scenario.
fn config(pool_gib: u64) -> String {
    format!("idle_seconds = 3600\nreply_after_commit = true\n[storage]\npool_size_gib = {pool_gib}\n")
}

/// Plays it. What it does not tell of may have happened or not.
pub(crate) fn play() {
    let began = Instant::now();
    let home = Path::new(DISK).join(HOME);
    let mut daemon = Daemon::start_at_with_images(&home, NAME, &config(POOL_GIB));
    report::done(&Op::Pool { gib: POOL_GIB });
    report::working();
    let api = daemon.api();
    let text = |tag: &str| Text { tag: format!("{tag} "), bytes: 20_000 };

    let log = create(&api, LOG_BOX);
    append(&log, 0, 6);
    let snapshot = copies::take(&log, "first", LOG_BOX, Some(5));
    append(&log, 6, 3);
    copies::promote(&api, "origin", &text("old"), &text("new"));
    copies::from_snapshot(&api, &snapshot, RESTORED, Some(5));
    let short = create(&api, "short");
    copies::put(&short, &text("short"));
    let second = copies::take(&log, "second", LOG_BOX, Some(8));
    delete(&short);
    copies::drop_snapshot(&api, second);
    let images = images::Work::new(&daemon, 0, began);
    images.make("localhost/imported:latest", text("imported"), true);
    images.make("localhost/built:latest", text("built"), false);
    images.remove("localhost/imported:latest".to_owned());

    // The pool grows at a start of iceboxd; the boxes go on meanwhile.
    report::begun(&Op::Pool { gib: GROWN_GIB });
    daemon.kill9();
    daemon.configure(&config(GROWN_GIB));
    daemon.start_again();
    report::done(&Op::Pool { gib: GROWN_GIB });
    let log = TestBox { api: daemon.api(), id: log.id };
    append(&log, 9, 3);
    copies::put(&create(&daemon.api(), "late"), &text("late"));
    // Nothing was compared.
    report::checked(0);
    // The host cuts the power.
    std::mem::forget(daemon);
}

/// Has the box append lines, and tells of each that it has flushed.
fn append(the_box: &TestBox, first: u64, count: usize) {
    let arguments = [first.to_string(), count.to_string()];
    let output = the_box.stream(&["python3", "-c", WRITE, &arguments[0], &arguments[1], LOG]);
    // After the output comes the exit code.
    let lines: Vec<String> = std::io::BufReader::new(output)
        .lines()
        .take(count)
        .map(|line| {
            let line = line.expect("a line's number");
            let number = line.parse().unwrap_or_else(|_| panic!("the program says {line:?}"));
            report::done(&Op::Record { id: the_box.id.clone(), number });
            line
        })
        .collect();
    assert_eq!(lines.len(), count, "lines that were told");
}
