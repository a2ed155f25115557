//! Snapshots under load, and `kill -9` of `iceboxd` in the middle of one.

use std::fs;
use std::path::Path;
use std::process::Command;

use icebox_tests::{Daemon, PATIENCE, TestBox, pool, wait_until};
use serde_json::{Value, json};

/// Disks on the machine's own file system, where a copy takes a while.
const COPIES: &str = "[storage]\npool = \"off\"\n";

/// Writes the same number to two files, the second one after the first, by different ways: appended, through a mapping,
/// by renaming. None of it is flushed.
const WRITER: &str = r#"
import mmap, os
with open("map", "wb") as f: f.truncate(4096)
m = mmap.mmap(os.open("map", os.O_RDWR), 4096)
log = open("log", "a", buffering=1)
open("started", "w").close()
n = 0
while True:
    n += 1
    log.write("%d\n" % n)
    m[0:20] = b"%20d" % n
    with open("new", "w") as f: f.write("%d" % n)
    os.rename("new", "last")
"#;

/// What a restored box finds: the last complete line of the log, the mapping, and the renamed file.
const READER: &str = r#"
lines = open("log").read().split("\n")
numbers = [int(line) for line in lines if line]
assert numbers == list(range(1, len(numbers) + 1)), "the log has gaps"
print(len(numbers), int(open("map", "rb").read(20)), int(open("last").read()))
"#;

fn start_writer(made: &TestBox) {
    made.write("/workspace/home/writer.py", WRITER);
    made.out("setsid python3 writer.py > /dev/null 2>&1 & until [ -e started ]; do sleep 0.01; done");
}

fn take(made: &TestBox) -> String {
    let taken = made.post("/snapshots", &json!({ "name": "n" })).ok();
    let id = taken["id"].as_str().expect("an id").to_owned();
    wait_until(PATIENCE, "the snapshot to be made", || find(made, &id)["status"] == "ready");
    id
}

fn find(made: &TestBox, id: &str) -> Value {
    let listed = made.get("/snapshots").ok();
    listed["snapshots"].as_array().expect("a list").iter().find(|s| s["id"] == id).expect("it is listed").clone()
}

/// Every snapshot of a busy box is what its disk was at one moment.
fn moments_of_a_busy_box(daemon: &Daemon) {
    let api = daemon.api();
    let made = api.create_default();
    start_writer(&made);
    let mut last = 0;
    for _ in 0..5 {
        let before: u64 = made.out("cat last").parse().expect("a number");
        let id = take(&made);
        let volumes = pool::volumes_of(daemon.pid(), &daemon.data_dir());
        let image = volumes.with_file_name("snapshots").join(format!("{id}.img"));
        assert_sound(daemon, &image);
        let restored = api.post("/v2/box/from-snapshot", &json!({ "snapshot_id": id })).ok();
        let restored = TestBox { api: api.clone(), id: restored["id"].as_str().expect("an id").to_owned() };
        let numbers: Vec<u64> =
            restored.python_out(READER).split(' ').map(|word| word.parse().expect("a number")).collect();
        // In the order of their writing, and all of the same round or the one before.
        assert!(numbers.is_sorted_by(|a, b| a >= b) && numbers[0] - numbers[2] <= 1, "{numbers:?}");
        assert!(numbers[2] >= before && numbers[2] > last, "{numbers:?} after {before} and {last}");
        last = numbers[2];
        restored.delete();
    }
    assert_eq!(made.status(), "idle");
    assert!(made.out("cat last").parse::<u64>().expect("a number") > last, "the writer does not go on");
}

/// The file system in a copy of the image needs nothing but its journal.
fn assert_sound(daemon: &Daemon, image: &Path) {
    let copy = daemon.data_dir().join("checked.img");
    let cp = Command::new("cp").args(["--sparse=always", "--reflink=auto"]).arg(image).arg(&copy).status();
    assert!(cp.expect("cp").success());
    // Replays the journal; then the whole check must find nothing.
    let replay = Command::new("e2fsck").args(["-p"]).arg(&copy).output().expect("e2fsck");
    assert!(replay.status.code() <= Some(1), "{}", String::from_utf8_lossy(&replay.stdout));
    let check = Command::new("e2fsck").args(["-fn"]).arg(&copy).output().expect("e2fsck");
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    fs::remove_file(&copy).expect("remove the copy");
}

#[test]
fn moments_of_a_busy_box_copied_block_by_block() {
    moments_of_a_busy_box(&Daemon::start_with(COPIES));
}

#[test]
fn moments_of_a_busy_box_by_reflink() {
    moments_of_a_busy_box(&Daemon::start());
}

/// A box with much on its disk, so that each step of a snapshot takes a while.
fn large_box(daemon: &Daemon) -> TestBox {
    let made = daemon.api().create_default();
    made.out("dd if=/dev/urandom of=large bs=1M count=100 conv=fsync status=none");
    start_writer(&made);
    made
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("read the directory");
    entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8")).collect()
}

/// Kills the daemon as soon as `reached` says so during a snapshot; the id of the snapshot.
fn killed_when(daemon: &mut Daemon, made: &TestBox, reached: impl Fn(&Daemon) -> bool + Sync) -> String {
    std::thread::scope(|scope| {
        // The answer is lost with the daemon.
        let request = made.api.build("POST", &made.path("/snapshots")).header("content-type", "application/json");
        let request = request.body(json!({ "name": "cut" }).to_string());
        let asked = scope.spawn(move || drop(request.send()));
        wait_until(PATIENCE, "the step of the snapshot", || reached(daemon));
        daemon.kill9();
        asked.join().expect("the request");
    });
    let database = rusqlite::Connection::open(daemon.data_dir().join("icebox.db")).expect("the database");
    database
        .query_row("SELECT id FROM snapshots ORDER BY created_ms DESC LIMIT 1", [], |row| row.get(0))
        .expect("its record")
}

#[test]
fn a_kill_in_the_middle_leaves_a_running_box_and_no_half_snapshot() {
    let mut daemon = Daemon::start_with(COPIES);
    let made = large_box(&daemon);
    let (group, snapshots) = (daemon.cgroup(&made), daemon.data_dir().join("snapshots"));
    type Step = (&'static str, Box<dyn Fn(&Daemon) -> bool + Sync>);
    let steps: [Step; 2] = [
        ("held still", Box::new(move |daemon| daemon.cgroups().event(&group, "frozen") == Some(1))),
        ("named", Box::new(move |_| names_in(&snapshots).iter().any(|name| name.starts_with("snap_")))),
    ];
    for (step, reached) in steps {
        let made = TestBox { api: daemon.api(), id: made.id.clone() };
        let id = killed_when(&mut daemon, &made, reached);
        daemon.start_again();
        let made = TestBox { api: daemon.api(), id: made.id };
        assert_eq!(daemon.cgroups().event(&daemon.cgroup(&made), "frozen"), Some(0), "{step}: the box stays frozen");
        let found = find(&made, &id);
        assert_eq!((&found["status"], &found["size_bytes"]), (&json!("error"), &json!(0)), "{step}");
        assert!(names_in(&daemon.data_dir().join("snapshots")).is_empty(), "{step}: something is left");
        made.api.post("/v2/box/from-snapshot", &json!({ "snapshot_id": id })).error(409);
        let before: u64 = made.out("cat last").parse().expect("a number");
        wait_until(PATIENCE, "the writer to go on", || made.out("cat last").parse::<u64>().expect("a number") > before);
        made.api.delete(&made.path(&format!("/snapshots/{id}"))).ok();
    }
}

#[test]
fn a_kill_during_a_restore_leaves_no_half_box() {
    let mut daemon = Daemon::start_with(COPIES);
    let made = large_box(&daemon);
    let id = take(&made);
    let volumes = daemon.data_dir().join("volumes");
    std::thread::scope(|scope| {
        let request = made.api.build("POST", "/v2/box/from-snapshot").header("content-type", "application/json");
        let request = request.body(json!({ "snapshot_id": id }).to_string());
        let asked = scope.spawn(move || drop(request.send()));
        wait_until(PATIENCE, "the copy to begin", || names_in(&volumes).iter().any(|name| name.starts_with(".tmp-")));
        daemon.kill9();
        asked.join().expect("the request");
    });
    daemon.start_again();
    let api = daemon.api();
    assert_eq!(api.list().len(), 1);
    assert_eq!(names_in(&daemon.data_dir().join("volumes")), [format!("{}.img", made.id)]);
    let restored = api.post("/v2/box/from-snapshot", &json!({ "snapshot_id": id })).ok();
    assert_eq!(restored["status"], "idle");
}

#[test]
fn a_deletion_that_was_cut_off_is_finished() {
    let mut daemon = Daemon::start_with(COPIES);
    let made = daemon.api().create_default();
    let (gone, kept) = (take(&made), take(&made));
    daemon.kill9();
    // As a crash between the record and the file leaves it.
    let database = rusqlite::Connection::open(daemon.data_dir().join("icebox.db")).expect("the database");
    database.execute("UPDATE snapshots SET status = 'deleted' WHERE id = ?1", [&gone]).expect("mark it");
    drop(database);
    let snapshots = daemon.data_dir().join("snapshots");
    // A file that no record knows may be an owner's: it stays.
    fs::write(snapshots.join("snap_unknown.img"), b"x").expect("a file");
    daemon.start_again();
    let mut names = names_in(&snapshots);
    names.sort();
    let mut expected = [format!("{kept}.img"), "snap_unknown.img".to_owned()];
    expected.sort();
    assert_eq!(names, expected);
}
