//! Volumes: files that outlive boxes, with one box that writes to them or many that read them.

use icebox_tests::{Api, Daemon, PATIENCE, TestBox, pool, wait_until};
use serde_json::{Value, json};

/// Makes a volume of 1 GiB.
fn make(api: &Api, name: &str) -> Value {
    api.post("/v1/volumes", &json!({ "name": name, "size_gib": 1 })).ok()
}

/// The body of a box with one volume at `/data`.
fn with(name: &str, read_only: bool) -> Value {
    json!({ "volumes": [{ "name": name, "path": "/data", "read_only": read_only }] })
}

fn delete(made: &TestBox) {
    made.api.delete(&format!("/v2/box/{}", made.id)).ok();
}

/// The box after a new daemon has another address.
fn again(daemon: &Daemon, made: &TestBox) -> TestBox {
    TestBox { api: daemon.api(), id: made.id.clone() }
}

#[test]
fn files_outlive_the_box_and_the_daemon_and_have_the_owners_that_boxes_see() {
    let mut daemon = Daemon::start();
    let api = daemon.api();
    let made = make(&api, "files");
    assert_eq!((&made["name"], &made["size_gib"], &made["boxes"]), (&json!("files"), &json!(1), &json!([])));
    let first = api.create(&with("files", false));
    // The user of the box can write to it, and it is empty.
    assert_eq!(first.out("stat -c '%u %g %a' /data; ls -A /data | wc -l"), "1000 1000 755\n0");
    first.out("echo kept > /data/a && sudo sh -c 'echo root > /data/b && chown root:root /data/b' && sync");
    let size: u64 = first.out("df --output=size -m /data | tail -1").trim().parse().expect("a number");
    assert!((900..1024).contains(&size), "the volume's size is its quota: {size}");
    let mount = first.out("grep ' /data ' /proc/self/mountinfo");
    assert!(mount.contains("nosuid,nodev") && !mount.contains("pool"), "{mount}");

    // Asleep, and through a restart of the daemon.
    first.pause();
    daemon.kill9();
    daemon.start_again();
    let (api, first) = (daemon.api(), again(&daemon, &first));
    assert_eq!(first.out("cat /data/a"), "kept");
    let listed = api.get("/v1/volumes").ok();
    let boxes = json!([{ "id": first.id, "path": "/data", "read_only": false }]);
    assert_eq!(listed["volumes"][0]["boxes"], boxes);
    assert_eq!(api.get(&format!("/v1/boxes/{}", first.id)).ok()["volumes"], with("files", false)["volumes"]);

    // Without its processes the box still has it, and starts again with it.
    daemon.cgroups().destroy(&daemon.cgroup(&first));
    assert_eq!(first.out("cat /data/a"), "kept");
    api.post(&format!("/v1/boxes/{}/restart", first.id), &json!({})).ok();
    assert_eq!(first.out("cat /data/a"), "kept");

    // Another box has other ids on the host, and sees the same owners.
    delete(&first);
    let second = api.create(&with("files", false));
    assert_eq!(second.out("cat /data/a /data/b; stat -c %u /data/a /data/b"), "kept\nroot\n1000\n0");
    delete(&second);
    api.delete("/v1/volumes/files").ok();
    assert_eq!(api.get("/v1/volumes").ok()["volumes"], json!([]));
    wait_until(PATIENCE, "the volume to be detached", || pool::loops_below(&daemon.data_dir()).is_empty());
}

#[test]
fn a_volume_has_one_writer_or_many_readers() {
    let daemon = Daemon::start();
    let api = daemon.api();
    make(&api, "shared");
    let writer = api.create(&with("shared", false));
    writer.out("echo one > /data/file && sync");
    for (read_only, words) in [(false, "one box that writes to it"), (true, "never both")] {
        let refused = api.post("/v2/box", &with("shared", read_only)).error(409);
        assert!(refused.contains(&writer.id) && refused.contains(words), "{refused}");
    }
    assert_eq!(daemon.api().list().len(), 1, "a refused box leaves nothing");
    let used = api.delete("/v1/volumes/shared").error(409);
    assert!(used.contains(&writer.id), "{used}");
    delete(&writer);

    // Right after the writer, whose file system may still be going.
    let readers = [api.create(&with("shared", true)), api.create(&with("shared", true))];
    for reader in &readers {
        assert_eq!(
            reader.out("cat /data/file; sudo touch /data/new 2>&1 || true"),
            "one\ntouch: cannot touch '/data/new': Read-only file system"
        );
    }
    let devices = pool::loops_below(&daemon.data_dir()).into_iter().filter(|(_, file)| file.contains("/data/vol-"));
    assert_eq!(devices.count(), 1, "readers share one device");
    let refused = api.post("/v2/box", &with("shared", false)).error(409);
    assert!(refused.contains("boxes that read it") && refused.contains(&readers[0].id), "{refused}");
    let refused = api.post("/v1/volumes/shared/resize", &json!({ "size_gib": 2 })).error(409);
    assert!(refused.contains("while boxes read it"), "{refused}");
    readers.iter().for_each(delete);
    let writer = api.create(&with("shared", false));
    assert_eq!(writer.out("echo two >> /data/file && cat /data/file"), "one\ntwo");
}

#[test]
fn a_volume_is_in_no_copy_of_its_box() {
    let daemon = Daemon::start();
    let api = daemon.api();
    make(&api, "apart");
    let made = api.create(&with("apart", false));
    made.out("echo outside > /data/file && echo inside > file && sync");
    let snapshot = api.post(&format!("/v2/box/{}/snapshots", made.id), &json!({ "name": "s" })).ok();
    wait_until(PATIENCE, "the snapshot", || made.get("/snapshots").ok()["snapshots"][0]["status"] == "ready");
    let restored = api.post("/v2/box/from-snapshot", &json!({ "snapshot_id": snapshot["id"] })).ok();
    let forked = api.post(&format!("/v1/boxes/{}/fork", made.id), &json!({})).ok();
    for id in [&restored["id"], &forked["boxes"][0]["id"]] {
        let copy = TestBox { api: api.clone(), id: id.as_str().expect("an id").to_owned() };
        assert_eq!(copy.out("cat file; ls -A /data | wc -l"), "inside\n0");
    }
    // One that asks for volumes gets them.
    delete(&made);
    let mut body = with("apart", true);
    body["snapshot_id"] = snapshot["id"].clone();
    let restored = api.post("/v2/box/from-snapshot", &body).ok();
    let copy = TestBox { api: api.clone(), id: restored["id"].as_str().expect("an id").to_owned() };
    assert_eq!(copy.out("cat file /data/file"), "inside\noutside");
}

#[test]
fn a_volume_grows_and_is_billed_for_what_it_occupies() {
    let daemon = Daemon::start();
    let api = daemon.api();
    make(&api, "big");
    let made = api.create(&with("big", false));
    let mib = || made.out("df --output=size -m /data | tail -1").trim().parse::<u64>().expect("a number");
    let grown = api.post("/v1/volumes/big/resize", &json!({ "size_gib": 2 })).ok();
    if grown["waits_because"].is_string() {
        api.post(&format!("/v1/boxes/{}/restart", made.id), &json!({})).ok();
    }
    assert!((1900..2048).contains(&mib()), "{}", mib());
    let small = api.post("/v1/volumes/big/resize", &json!({ "size_gib": 1 })).error(400);
    assert!(small.contains("cannot become smaller"), "{small}");

    made.out("dd if=/dev/urandom of=/data/file bs=1M count=20 conv=fsync 2>&1");
    let bill = || api.get("/v1/usage").ok()["volumes"].clone();
    wait_until(PATIENCE, "the bytes to be in the bill", || bill()["storage_bytes"].as_u64() > Some(20 << 20));
    assert_eq!(bill()["count"], 1);
    let allocated = api.get("/v1/volumes/big").ok()["allocated_bytes"].as_u64();
    assert!(allocated > Some(20 << 20), "{allocated:?}");
    let of_box = made.bill()["storage_bytes"].as_u64();
    assert!(of_box < Some(20 << 20), "they are no bytes of the box: {of_box:?}");
    made.out("rm /data/file && sync");
    wait_until(PATIENCE, "the bytes to come back", || bill()["storage_bytes"].as_u64() < Some(20 << 20));
    delete(&made);
    api.delete("/v1/volumes/big").ok();
    let last = bill();
    assert_eq!((&last["count"], &last["storage_bytes"]), (&json!(0), &json!(0)));
    assert!(last["gb_hours"].as_f64() > Some(0.0), "what was kept stays on the bill: {last}");
    assert_eq!(bill(), last, "a deleted volume costs nothing more");
}

#[test]
fn bad_requests_are_refused_by_name_and_accounts_see_their_own() {
    let daemon = Daemon::start();
    let api = daemon.api();
    make(&api, "mine");
    for (body, status, word) in [
        (json!({ "name": "mine" }), 409, "exists already"),
        (json!({ "name": "../x" }), 400, "name of a volume"),
        (json!({ "name": "" }), 400, "name of a volume"),
        (json!({ "name": "x", "size_gib": 0 }), 400, "size_gib"),
        (json!({ "name": "x", "size_gib": 1025 }), 400, "size_gib"),
        (json!({ "name": "x", "invented": 1 }), 400, "invented"),
    ] {
        let text = api.post("/v1/volumes", &body).error(status);
        assert!(text.contains(word), "{body}: {text}");
    }
    let at = |path: &str| json!({ "volumes": [{ "name": "mine", "path": path }] });
    for path in ["data", "/", "/proc/x", "/etc", "/a/../b"] {
        let text = api.post("/v2/box", &at(path)).error(400);
        assert!(text.contains("volume"), "{path}: {text}");
    }
    let twice = json!({ "volumes": [{ "name": "mine", "path": "/a" }, { "name": "mine", "path": "/b" }] });
    assert!(api.post("/v2/box", &twice).error(400).contains("twice"));
    let unknown = api.post("/v2/box", &with("unknown", false)).error(404);
    assert!(unknown.contains("volume 'unknown'"), "{unknown}");

    let other = daemon.other_account();
    assert_eq!(other.get("/v1/volumes").ok()["volumes"], json!([]));
    other.get("/v1/volumes/mine").error(404);
    other.delete("/v1/volumes/mine").error(404);
    other.post("/v2/box", &with("mine", true)).error(404);
    make(&other, "mine");
    other.delete("/v1/volumes/mine").ok();
    api.get("/v1/volumes/mine").ok();
}

#[test]
fn the_command_line_makes_lists_grows_and_removes_volumes() {
    let daemon = Daemon::start();
    let run = |args: &[&str]| {
        let output = daemon.icebox(args).output().expect("run icebox");
        let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.code(), text.trim().to_owned(), errors.into_owned())
    };
    assert_eq!(run(&["volume", "create", "code", "--size", "1"]).1, "code");
    let (_, id, errors) = run(&["create", "--volume", "code:/workspace/home/code"]);
    assert!(!id.is_empty(), "{errors}");
    assert_eq!(run(&["exec", &id, "--", "sh", "-c", "echo x > code/f && cat code/f"]).1, "x");
    let listed = run(&["volume", "ls"]).1;
    assert!(listed.contains(&format!("{id}:/workspace/home/code")) && listed.contains("1 GiB"), "{listed}");
    assert!(run(&["volume", "resize", "code", "2"]).1.contains("2 GiB"));
    let (code, _, errors) = run(&["volume", "rm", "code"]);
    assert!(code == Some(125) && errors.contains(&id), "{errors}");
    assert_eq!(run(&["rm", &id]).0, Some(0));
    assert_eq!(run(&["volume", "rm", "code"]), (Some(0), "code".to_owned(), String::new()));
    assert_eq!(run(&["volume", "ls", "--quiet"]).1, "");
}
