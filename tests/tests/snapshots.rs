//! Snapshots: taken of boxes in every state, restored, deleted, and independent of what happens to their boxes.

use std::fs;

use icebox_tests::{Api, Daemon, PATIENCE, TestBox, pool, wait_until};
use serde_json::{Value, json};

/// Takes a snapshot and waits until it is ready, as the clients do.
fn snapshot(made: &TestBox, name: &str) -> String {
    let taken = made.post("/snapshots", &json!({ "name": name })).ok();
    assert!(taken["size_bytes"].is_u64() && taken["created_at"].is_i64(), "{taken}");
    let id = taken["id"].as_str().expect("an id").to_owned();
    wait_until(PATIENCE, "the snapshot to be made", || status_of(made, &id) != "creating");
    assert_eq!(status_of(made, &id), "ready");
    id
}

fn status_of(made: &TestBox, id: &str) -> String {
    let listed = made.get("/snapshots").ok();
    let found = listed["snapshots"].as_array().expect("a list").iter().find(|s| s["id"] == id).cloned();
    found.unwrap_or_else(|| panic!("{id} is not in {listed}"))["status"].as_str().expect("a status").to_owned()
}

fn restore(api: &Api, id: &str, more: Value) -> TestBox {
    let mut body = json!({ "snapshot_id": id });
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    let data = api.post("/v2/box/from-snapshot", &body).ok();
    TestBox { api: api.clone(), id: data["id"].as_str().expect("an id").to_owned() }
}

fn files_in(daemon: &Daemon) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(pool::volumes_of(daemon.pid(), &daemon.data_dir()).with_file_name("snapshots"))
            .expect("the snapshots")
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
            .collect();
    names.sort();
    names
}

#[test]
fn a_restored_box_has_the_files_of_that_moment_and_a_life_of_its_own() {
    let daemon = Daemon::start();
    let api = daemon.api();
    let source =
        api.create(&json!({ "env_vars": { "GREETING": "hello" }, "labels": ["a"], "init_command": "touch ran" }));
    source.write("/workspace/home/kept", "one");
    source.out("sudo sh -c 'echo package > /opt/installed; rm /etc/hostname; echo 0123456789abcdef0123456789abcdef > /etc/machine-id'");
    let id = snapshot(&source, "first");
    source.write("/workspace/home/kept", "two");
    source.write("/workspace/home/later", "x");

    let one = restore(&api, &id, json!({}));
    let two = restore(&api, &id, json!({ "env_vars": { "MORE": "1" }, "size": "medium", "name": "second" }));
    for made in [&one, &two] {
        assert_eq!(made.read("/workspace/home/kept"), "one");
        assert_eq!(made.out("cat /opt/installed; ls; echo $GREETING"), "package\nkept\nran\nhello");
        assert_eq!(made.out("hostname"), made.id);
        assert_ne!(made.out("cat /etc/machine-id"), "0123456789abcdef0123456789abcdef");
        assert_eq!(made.out("wc -c < /etc/machine-id"), "33");
        assert_eq!(made.out("stat -c %U kept"), "boxuser");
    }
    // The init command is not inherited: the source's file would come back.
    one.out("rm ran");
    let listed = one.data();
    assert_eq!((&listed["size"], &listed["labels"]), (&json!("small"), &json!([])));
    assert_eq!(one.get("/startup").ok()["init_command"], "");
    assert_eq!(two.out("echo $GREETING $MORE"), "hello 1");
    // A larger disk is a larger file system.
    let gib = |made: &TestBox| {
        made.out("df -BG --output=size / | tail -1").trim_end_matches('G').trim().parse::<u32>().expect("a size")
    };
    assert_eq!((gib(&one), gib(&two) > 8), (5, true));
    // Three disks, three lives.
    one.write("/workspace/home/kept", "of one");
    assert_eq!((source.read("/workspace/home/kept"), two.read("/workspace/home/kept")), ("two".into(), "one".into()));
    let address = |made: &TestBox| api.get(&format!("/v1/boxes/{}/net", made.id)).ok()["address"].clone();
    let addresses = [&source, &one, &two].map(address);
    assert!(addresses.iter().all(Value::is_string), "{addresses:?}");
    assert!(addresses[0] != addresses[1] && addresses[1] != addresses[2], "{addresses:?}");

    source.delete();
    one.delete();
    let three = restore(&api, &id, json!({ "ephemeral": true, "ttl": 600 }));
    assert_eq!(three.read("/workspace/home/kept"), "one");
    assert!(three.data()["expires_at"].is_i64());
    // The other way round: a snapshot goes, its boxes stay.
    api.call("DELETE", "/v2/box/snapshots", Some(&json!({ "ids": [id] }))).ok();
    assert!(files_in(&daemon).is_empty());
    assert_eq!(three.read("/workspace/home/kept"), "one");
    api.post("/v2/box/from-snapshot", &json!({ "snapshot_id": id })).error(404);
}

#[test]
fn snapshots_are_taken_in_every_state_of_a_box() {
    let mut daemon = Daemon::start();
    let api = daemon.api();
    let made = api.create_default();
    made.write("/workspace/home/f", "asleep");
    made.pause();
    let asleep = snapshot(&made, "asleep");
    assert_eq!(made.status(), "paused", "a snapshot wakes nothing");
    made.write("/workspace/home/f", "stopped");
    let init = daemon.init_pid(&made);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(init), nix::sys::signal::Signal::SIGKILL).expect("kill");
    wait_until(PATIENCE, "the box to stop", || made.status() == "stopped");
    let stopped = snapshot(&made, "stopped");
    let short = api.create(&json!({ "ephemeral": true, "ttl": 600 }));
    short.write("/workspace/home/f", "ephemeral");
    let ephemeral = snapshot(&short, "ephemeral");
    // Also by another process of the daemon, which compares the content again.
    daemon.kill9();
    daemon.start_again();
    let api = daemon.api();
    for (id, content) in [(asleep, "asleep"), (stopped, "stopped"), (ephemeral, "ephemeral")] {
        assert_eq!(restore(&api, &id, json!({})).read("/workspace/home/f"), content);
    }
}

#[test]
fn all_is_deleted_only_when_it_is_said_and_strangers_see_nothing() {
    let daemon = Daemon::start();
    let api = daemon.api();
    let made = api.create_default();
    let ids: Vec<String> = (0..4).map(|n| snapshot(&made, &format!("s{n}"))).collect();
    let stranger = daemon.other_account();
    let bulk = |api: &Api, path: &str, body: Value| api.call("DELETE", path, Some(&body));
    for (path, body) in [
        ("/v2/box/snapshots", json!({ "ids": [] })),
        ("/v2/box/snapshots", json!({ "ids": null })),
        ("/v2/box/snapshots?all=true", json!({ "ids": [ids[0]] })),
        ("/v2/box/snapshots?all=false", json!({})),
    ] {
        bulk(&api, path, body).error(400);
    }
    api.call("DELETE", "/v2/box/snapshots", None).error(400);
    bulk(&stranger, "/v2/box/snapshots", json!({ "ids": [ids[0]] })).error(404);
    assert_eq!(bulk(&stranger, "/v2/box/snapshots?all=true", json!({})).ok()["deleted"], 0);
    stranger.post("/v2/box/from-snapshot", &json!({ "snapshot_id": ids[0] })).error(404);
    assert_eq!(stranger.get("/v2/box/snapshots").ok()["snapshots"], json!([]));
    let other = api.create_default();
    api.delete(&other.path(&format!("/snapshots/{}", ids[0]))).error(404);

    api.delete(&made.path(&format!("/snapshots/{}", ids[0]))).ok();
    api.delete(&made.path(&format!("/snapshots/{}", ids[0]))).error(404);
    assert_eq!(bulk(&api, "/v2/box/snapshots", json!({ "ids": [ids[1], ids[0], "snap_x"] })).ok()["deleted"], 1);
    assert_eq!(made.get("/snapshots").ok()["snapshots"].as_array().expect("a list").len(), 2);
    assert_eq!(bulk(&api, "/v2/box/snapshots", json!({})).ok()["deleted"], 2);
    assert_eq!(bulk(&api, "/v2/box/snapshots?all=true", json!({})).ok()["deleted"], 0);
    assert!(files_in(&daemon).is_empty());
}

#[test]
fn a_changed_snapshot_is_refused() {
    // Where the test can reach the files of a daemon that is stopped.
    let mut daemon = Daemon::start_with("[storage]\npool = \"off\"\n");
    let api = daemon.api();
    let made = api.create_default();
    let (changed, forged) = (snapshot(&made, "changed"), snapshot(&made, "forged"));
    let path = daemon.data_dir().join("snapshots").join(format!("{changed}.img"));
    let edit = |path: &std::path::Path| {
        use std::os::unix::fs::FileExt;
        let file = fs::File::options().write(true).open(path).expect("open the snapshot");
        file.write_all_at(b"evil", 3 << 30).expect("change it");
    };
    edit(&path);
    let text = api.post("/v2/box/from-snapshot", &json!({ "snapshot_id": changed })).error(409);
    assert!(text.contains("damaged"), "{text}");
    let database = rusqlite::Connection::open(daemon.data_dir().join("icebox.db")).expect("the database");
    let forge = "UPDATE snapshots SET settings = '{\"size\":\"large\"}' WHERE id = ?1";
    assert_eq!(database.execute(forge, [&forged]).expect("forge"), 1);
    drop(database);
    let text = api.post("/v2/box/from-snapshot", &json!({ "snapshot_id": forged })).error(409);
    assert!(text.contains("damaged"), "{text}");
    assert_eq!(api.list().len(), 1, "a box was made of a damaged snapshot");
    // A missing file is found at the start; the other snapshots stay.
    let good = snapshot(&made, "good");
    daemon.stop();
    fs::remove_file(&path).expect("remove the file");
    daemon.start_again();
    let made = TestBox { api: daemon.api(), id: made.id };
    assert_eq!((status_of(&made, &changed), status_of(&made, &good)), ("error".into(), "ready".into()));
    restore(&made.api, &good, json!({}));
}
