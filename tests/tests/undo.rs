//! Taking commands back: the disk of a box before each of its last commands.

use std::fs;

use icebox_tests::{Daemon, PATIENCE, TestBox, pool, wait_until};
use serde_json::{Value, json};

fn route(made: &TestBox) -> String {
    format!("/v1/boxes/{}/undo", made.id)
}

fn turn_on(made: &TestBox, bounds: Value) {
    let state = made.api.call("PUT", &route(made), Some(&bounds)).ok();
    assert_eq!(state["on"], true, "{state}");
}

fn undo(made: &TestBox) -> Value {
    made.api.post(&route(made), &json!({})).ok()
}

/// The commands that can be taken back, the newest first.
fn commands(made: &TestBox) -> Vec<String> {
    let state = made.api.get(&route(made)).ok();
    let points = state["points"].as_array().expect("a list").iter();
    points.map(|point| point["command"].as_str().expect("a text").to_owned()).collect()
}

fn files_of(daemon: &Daemon) -> usize {
    let volumes = pool::volumes_of(daemon.pid(), &daemon.data_dir());
    let entries = fs::read_dir(volumes.with_file_name("snapshots")).expect("the copies");
    entries
        .filter(|entry| entry.as_ref().expect("an entry").file_name().as_encoded_bytes().starts_with(b"undo_"))
        .count()
}

#[test]
fn commands_are_taken_back_one_after_the_other() {
    let mut daemon = Daemon::start();
    let made = daemon.api().create(&json!({ "name": "build" }));
    made.out("echo 0 > f");
    let text = made.api.post(&route(&made), &json!({})).error(409);
    assert!(text.contains("--on"), "{text}");
    turn_on(&made, json!({ "steps": 3 }));
    assert!(made.api.post(&route(&made), &json!({})).error(409).contains("no command"));
    for n in 1..=4 {
        made.out(&format!("echo {n} > f; sudo touch /opt/{n}"));
    }
    assert_eq!(commands(&made).len(), 3, "the oldest is forgotten");
    wait_until(PATIENCE, "its file to be removed", || files_of(&daemon) == 3);
    // Files are no work in the box that is taken back: reading makes no point.
    assert_eq!(made.read("/workspace/home/f"), "4\n");
    let before = daemon.init_pid(&made);
    let newest = made.api.get(&route(&made)).ok()["points"][0]["id"].clone();
    let undone = made.api.post(&route(&made), &json!({ "point": newest })).ok();
    assert_eq!((&undone["left"], &undone["undone"]["id"]), (&json!(2), &newest));
    assert!(undone["undone"]["command"].as_str().expect("a text").contains("echo 4"), "{undone}");
    assert_eq!(made.read("/workspace/home/f"), "3\n");
    assert_ne!(daemon.init_pid(&made), before, "its processes go on");
    made.api.post(&route(&made), &json!({ "point": newest })).error(409);

    // Another daemon, the same points.
    daemon.kill9();
    daemon.start_again();
    let made = TestBox { api: daemon.api(), id: made.id };
    assert_eq!(commands(&made).len(), 2);
    undo(&made);
    assert_eq!(made.read("/workspace/home/f"), "2\n");
    made.pause();
    undo(&made);
    assert_eq!(made.read("/workspace/home/f"), "1\n");
    made.api.post(&route(&made), &json!({})).error(409);
    assert_eq!(files_of(&daemon), 0);

    // A session is a command too.
    let icebox = |args: &[&str]| daemon.icebox(args).output().expect("icebox");
    let told = icebox(&["exec", "build", "--", "sh", "-c", "rm -rf ~/f"]);
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    let listed = icebox(&["undo", "build", "--list"]);
    assert!(String::from_utf8_lossy(&listed.stdout).contains("rm -rf ~/f"));
    let told = icebox(&["undo", "build"]);
    assert!(told.status.success());
    assert!(String::from_utf8_lossy(&told.stderr).contains("all its processes end"), "it was not said before");
    assert!(icebox(&["undo", "build", "--off"]).status.success());
    assert_eq!(made.out("cat f"), "1");
    assert_eq!(files_of(&daemon), 0, "a point was made while undo is off");

    turn_on(&made, json!({}));
    made.out("true");
    assert_eq!(files_of(&daemon), 1);
    for bad in [json!({ "steps": 0 }), json!({ "steps": 21 }), json!({ "max_age_seconds": 0 }), json!({ "step": 1 })] {
        made.api.call("PUT", &route(&made), Some(&bad)).error(400);
    }
    let stranger = daemon.other_account();
    stranger.get(&route(&made)).error(404);
    stranger.post(&route(&made), &json!({})).error(404);
    made.delete();
    assert_eq!(files_of(&daemon), 0, "a point outlives its box");
}

#[test]
fn a_changed_point_is_refused_and_an_unfinished_one_removed() {
    // Where the test can reach the files.
    let mut daemon = Daemon::start_with("[storage]\npool = \"off\"\n");
    let made = daemon.api().create_default();
    turn_on(&made, json!({}));
    made.out("echo new > f");
    let snapshots = daemon.data_dir().join("snapshots");
    let id = made.api.get(&route(&made)).ok()["points"][0]["id"].as_str().expect("an id").to_owned();
    let path = snapshots.join(format!("{id}.img"));
    let edit = || {
        use std::os::unix::fs::FileExt;
        let file = fs::File::options().write(true).open(&path).expect("open the point");
        file.write_all_at(b"evil", 3 << 30).expect("change it");
    };
    edit();
    let init = daemon.init_pid(&made);
    let text = made.api.post(&route(&made), &json!({})).error(409);
    assert!(text.contains("damaged"), "{text}");
    assert_eq!((daemon.init_pid(&made), made.read("/workspace/home/f")), (init, "new\n".into()), "it was stopped");
    // The record is written beside the command; until then a kill would take the point with it.
    let database = rusqlite::Connection::open(daemon.data_dir().join("icebox.db")).expect("the database");
    wait_until(PATIENCE, "the record of the point", || {
        database.query_row("SELECT count(*) FROM undo_points", [], |row| row.get::<_, u32>(0)).expect("a count") == 1
    });
    drop(database);
    // As a crash between the file and its record leaves it.
    daemon.kill9();
    fs::write(snapshots.join("undo_unfinished.img"), b"x").expect("a file");
    daemon.start_again();
    assert!(!snapshots.join("undo_unfinished.img").exists());
    assert!(path.exists(), "a point with a record was removed");
}
