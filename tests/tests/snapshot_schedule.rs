//! Automatic snapshots: when they are due, what is kept, and that an unchanged disk has no new one.

use icebox_tests::{Daemon, PATIENCE, TestBox, wait_until};
use serde_json::{Value, json};

fn route(made: &TestBox) -> String {
    format!("/v1/boxes/{}/snapshot-schedule", made.id)
}

fn snapshots(made: &TestBox) -> Vec<Value> {
    made.get("/snapshots").ok()["snapshots"].as_array().expect("a list").clone()
}

fn ready(made: &TestBox) -> usize {
    snapshots(made).iter().filter(|one| one["status"] == "ready").count()
}

/// Makes the next snapshot due, as time does, while no daemon runs. Returns the box at the new one.
fn pass_time(daemon: &mut Daemon, made: &TestBox, due_ms: i64) -> TestBox {
    daemon.stop();
    let database = rusqlite::Connection::open(daemon.data_dir().join("icebox.db")).expect("the database");
    let set = "UPDATE snapshot_schedules SET due_ms = ?1";
    assert_eq!(database.execute(set, [due_ms]).expect("set the time"), 1);
    drop(database);
    daemon.start_again();
    TestBox { api: daemon.api(), id: made.id.clone() }
}

fn due_ms(made: &TestBox) -> i64 {
    made.api.get(&route(made)).ok()["due_ms"].as_i64().expect("a time")
}

/// Unix milliseconds, as the daemon counts them.
fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    i64::try_from(since.as_millis()).expect("a time")
}

#[test]
fn what_is_due_is_taken_once_and_old_ones_go() {
    let mut daemon = Daemon::start_with("snapshots_per_account_max = 4\n");
    let made = daemon.api().create(&json!({ "name": "build" }));
    made.api.get(&route(&made)).error(404);
    for bad in [json!({}), json!({ "keep": {} }), json!({ "keep": { "hourly": 201 } }), json!({ "keep": { "x": 1 } })] {
        made.api.call("PUT", &route(&made), Some(&bad)).error(400);
    }
    made.write("/workspace/home/f", "one");
    let shown =
        daemon.icebox(&["snapshot", "schedule", "build", "--keep", "hourly=1,daily=1"]).output().expect("icebox");
    assert!(String::from_utf8_lossy(&shown.stdout).contains("hourly=1,daily=1"), "{shown:?}");
    wait_until(PATIENCE, "the first snapshot", || ready(&made) == 1);
    assert!(snapshots(&made)[0]["name"].as_str().expect("a name").starts_with("scheduled 20"));
    wait_until(PATIENCE, "the next time", || due_ms(&made) > now_ms());
    made.pause();

    // A month later: the box has slept, so there is nothing new. It is not woken.
    let made = pass_time(&mut daemon, &made, 1);
    wait_until(PATIENCE, "the next time", || due_ms(&made) > now_ms());
    assert_eq!((snapshots(&made).len(), made.status()), (1, "paused".to_owned()));

    // Something has changed: one snapshot, however much time has passed. What was kept for its hour is not any more.
    made.write("/workspace/home/f", "two");
    let before = snapshots(&made)[0]["id"].clone();
    let made = pass_time(&mut daemon, &made, 1);
    wait_until(PATIENCE, "another snapshot, and the end of the first", || {
        ready(&made) == 1 && snapshots(&made)[0]["id"] != before
    });
    wait_until(PATIENCE, "the next time", || due_ms(&made) > now_ms());
    let id = snapshots(&made)[0]["id"].clone();
    let restored = made.api.post("/v2/box/from-snapshot", &json!({ "snapshot_id": id })).ok();
    let restored = TestBox { api: made.api.clone(), id: restored["id"].as_str().expect("an id").to_owned() };
    assert_eq!(restored.read("/workspace/home/f"), "two");
    restored.api.get(&route(&restored)).error(404);

    // The clock was set back: not put off by more than an hour.
    let made = pass_time(&mut daemon, &made, now_ms() + 400 * 86_400_000);
    wait_until(PATIENCE, "the time to be moved", || due_ms(&made) <= now_ms() + 3_600_000);

    // The limit of the account counts, and the reason is shown.
    for n in 0..3 {
        made.post("/snapshots", &json!({ "name": format!("m{n}") })).ok();
    }
    made.write("/workspace/home/f", "three");
    let made = pass_time(&mut daemon, &made, 1);
    wait_until(PATIENCE, "the failure", || made.api.get(&route(&made)).ok()["error"].is_string());
    assert!(made.api.get(&route(&made)).ok()["error"].as_str().expect("a text").contains("at most 4"));
    assert_eq!(snapshots(&made).len(), 4);

    made.api.delete(&route(&made)).ok();
    made.api.get(&route(&made)).error(404);
    assert_eq!(snapshots(&made).len(), 4, "snapshots stay");
    let stranger = daemon.other_account();
    stranger.get(&route(&made)).error(404);
    stranger.call("PUT", &route(&made), Some(&json!({ "keep": { "hourly": 1 } }))).error(404);
}
