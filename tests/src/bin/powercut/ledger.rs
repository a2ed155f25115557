//! The database after the cut: whole, and a ledger that adds up to the bills.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use icebox_tests::wait::try_until;
use icebox_tests::{Daemon, TestBox};
use rusqlite::{Connection, OpenFlags};

use crate::check::Look;
use crate::model::Known;

/// How long the last sample of a frozen box may be on its way to the disk.
const SAMPLE_DEADLINE: Duration = Duration::from_secs(10);
/// How long another reader or writer may hold a lock.
const BUSY_DEADLINE: Duration = Duration::from_secs(10);

/// The database of the running iceboxd, to read.
pub(crate) fn open(daemon: &Daemon) -> Connection {
    let path = daemon.data_dir().join("icebox.db");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).expect("open the database");
    connection.busy_timeout(BUSY_DEADLINE).expect("set the busy time-out");
    connection
}

/// One row of the ledger.
#[derive(Debug)]
struct Sample {
    boot: String,
    inode: i64,
    sequence: i64,
    boottime_ms: i64,
    cpu_usec: i64,
}

fn samples(database: &Connection) -> BTreeMap<String, Vec<Sample>> {
    let sql = "SELECT box_id, boot_id, cgroup_inode, sequence, boottime_ms, cpu_usec FROM samples \
               ORDER BY box_id, sequence, cgroup_inode";
    let mut query = database.prepare(sql).expect("a query");
    let mut rows = query.query([]).expect("the ledger");
    let mut ledger: BTreeMap<String, Vec<Sample>> = BTreeMap::new();
    while let Some(row) = rows.next().expect("a sample") {
        ledger.entry(row.get(0).expect("box_id")).or_default().push(Sample {
            boot: row.get(1).expect("boot_id"),
            inode: row.get(2).expect("cgroup_inode"),
            sequence: row.get(3).expect("sequence"),
            boottime_ms: row.get(4).expect("boottime_ms"),
            cpu_usec: row.get(5).expect("cpu_usec"),
        });
    }
    ledger
}

/// The database itself, and each box's samples by themselves.
pub(crate) fn look(daemon: &Daemon, known: &Known, look: &mut Look) {
    let database = open(daemon);
    let verdict: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("a check");
    look.fact(verdict == "ok", || format!("the database is damaged: {verdict}"));
    let count = |sql: &str| -> i64 { database.query_row(sql, [], |row| row.get(0)).expect("a count") };
    for (sql, what) in [
        ("SELECT count(*) FROM pragma_foreign_key_check", "rows of boxes that are not there"),
        ("SELECT count(*) FROM reservations WHERE box_id IN (SELECT id FROM boxes)", "boxes that are reserved still"),
        (
            "SELECT count(*) FROM boxes WHERE state = 'ready' AND id NOT IN (SELECT box_id FROM samples)",
            "boxes unbilled",
        ),
        ("SELECT count(*) FROM runs JOIN boxes ON boxes.id = box_id WHERE state = 'deleted'", "runs of deleted boxes"),
    ] {
        let found = count(sql);
        look.fact(found == 0, || format!("the database has {found} {what}"));
    }
    let ledger = samples(&database);
    for (id, samples) in &ledger {
        one(id, samples, look);
    }
    for (id, facts) in &known.boxes {
        // Deleted boxes too: who was shown a bill has to pay it.
        let billed = ledger.get(id).map_or(0, |samples| folded(samples));
        look.fact(billed >= facts.billed_usec, || {
            format!("box {id}: a bill of {} us was shown, its ledger says {billed} us", facts.billed_usec)
        });
    }
}

/// Numbers without gaps and duplicates, counters that only grow, generations one after another.
fn one(id: &str, samples: &[Sample], look: &mut Look) {
    for (expected, sample) in samples.iter().enumerate() {
        look.fact(usize::try_from(sample.sequence) == Ok(expected), || {
            format!("box {id}: sample {expected} of its ledger has the number {}", sample.sequence)
        });
    }
    let mut boots_seen = BTreeSet::new();
    let mut generations_seen = BTreeSet::new();
    for pair in samples.windows(2) {
        let [before, after] = pair else { continue };
        if before.boot != after.boot {
            boots_seen.insert(&before.boot);
            look.fact(!boots_seen.contains(&after.boot), || format!("box {id}: boot {} comes again", after.boot));
        } else {
            look.fact(before.boottime_ms <= after.boottime_ms, || {
                format!("box {id}: sample {} is older than the one before", after.sequence)
            });
        }
    }
    // Samples of storage alone have no counter, and stand between the others.
    let counted: Vec<&Sample> = samples.iter().filter(|sample| sample.inode != 0).collect();
    for pair in counted.windows(2) {
        let [before, after] = pair else { continue };
        if (&before.boot, before.inode) == (&after.boot, after.inode) {
            look.fact(before.cpu_usec <= after.cpu_usec, || {
                format!("box {id}: its counter runs back at sample {}", after.sequence)
            });
        } else {
            generations_seen.insert((&before.boot, before.inode));
            look.fact(!generations_seen.contains(&(&after.boot, after.inode)), || {
                format!("box {id}: a counter that had ended goes on at sample {}", after.sequence)
            });
        }
    }
}

/// The bill: what each counter has reached, added up.
fn folded(samples: &[Sample]) -> u64 {
    let mut counters: BTreeMap<(&str, i64), i64> = BTreeMap::new();
    for sample in samples {
        let counter = counters.entry((&sample.boot, sample.inode)).or_default();
        *counter = (*counter).max(sample.cpu_usec);
    }
    u64::try_from(counters.values().sum::<i64>()).unwrap_or(0)
}

/// Once all boxes are back: each has a range of uids of its own. (A box that does not run holds none; it gets one when
/// it starts.)
fn look_at_uids(database: &Connection, look: &mut Look) {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("the boot id");
    let sql = "SELECT count(*) - count(DISTINCT uid_base) FROM (SELECT uid_base FROM boxes WHERE state = 'ready' AND \
               boot_id = ?1 UNION ALL SELECT uid_base FROM reservations)";
    let shared: i64 = database.query_row(sql, [boot.trim()], |row| row.get(0)).expect("a count");
    look.fact(shared == 0, || format!("{shared} ranges of uids are given twice"));
}

/// The bills of boxes that are frozen now are what the ledger on disk adds up to.
pub(crate) fn compare_bills<'a>(daemon: &Daemon, ids: impl Iterator<Item = &'a String>, look: &mut Look) {
    let database = open(daemon);
    look_at_uids(&database, look);
    for id in ids {
        let the_box = TestBox { api: daemon.api(), id: id.clone() };
        let both = || (the_box.billed_usec(), samples(&database).get(id).map_or(0, |samples| folded(samples)));
        let equal = try_until(SAMPLE_DEADLINE, || {
            let (bill, ledger) = both();
            bill == ledger
        });
        look.fact(equal, || {
            let (bill, ledger) = both();
            format!("box {id}: its bill is {bill} us, its ledger on disk adds up to {ledger} us")
        });
    }
}
