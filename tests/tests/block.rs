//! Boxes whose disks are block devices of the operator's: their life, copies, and `kill -9` of `iceboxd` in between.

use std::thread;

use icebox_tests::block::Devices;
use icebox_tests::{Daemon, PATIENCE, TestBox, wait_until};
use serde_json::json;

/// More than the disk of a box, so that it can grow by one.
const GIB: u64 = 11;

fn start(devices: &Devices) -> Daemon {
    let daemon = Daemon::start_at(devices.home(), devices.name(), &devices.config());
    wait_for_wipes(devices);
    daemon
}

fn wait_for_wipes(devices: &Devices) {
    wait_until(PATIENCE, "devices to be wiped", || devices.count("wiping") + devices.count("making") == 0);
}

#[test]
fn a_box_has_a_device_for_life_and_leaves_nothing_on_it() {
    let devices = Devices::new(2, GIB);
    let mut daemon = start(&devices);
    let api = daemon.api();
    let first = api.create_default();
    first.out("echo unmistakable > kept && sync");
    assert_eq!(devices.count("disk"), 1);
    let second = api.create_default();
    let refused = api.post("/v2/box", &json!({})).error(507);
    assert!(refused.contains("no free block device") && refused.contains("delete boxes"), "{refused}");
    let storage = api.get("/v1/storage").ok();
    assert_eq!((&storage["backing"], &storage["devices"]["disks"]), (&json!("block"), &json!(2)), "{storage}");
    assert_eq!(api.get("/v1/info").ok()["devices"]["free"], 0);
    let shown = daemon.icebox(&["df"]).output().expect("icebox df");
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("block devices: 2 with disks, 0 free"), "{shown}");

    // It grows within its device only.
    let resize = |gib: u64| api.post(&format!("/v1/boxes/{}/resize", first.id), &json!({ "disk_gib": gib }));
    let refused = resize(GIB + 1).error(400);
    assert!(refused.contains("cannot grow"), "{refused}");
    resize(GIB).ok();

    // The device is found again by what is on it.
    daemon.kill9();
    daemon.start_again();
    let first = TestBox { api: daemon.api(), id: first.id };
    assert_eq!(first.out("cat kept"), "unmistakable");
    daemon.api().post_empty(&format!("/v1/boxes/{}/restart", first.id)).ok();
    assert_eq!(first.out("cat kept"), "unmistakable");
    // Without CAP_SYS_RESOURCE the file system grows with this start.
    let blocks: u64 = first.out("stat -f -c %b /").parse().expect("a number");
    assert!(blocks * 4096 > (GIB << 30) - (512 << 20), "{blocks} blocks");

    let number = devices.uses().iter().position(|(_, id)| *id == first.id).expect("its device");
    first.delete();
    wait_for_wipes(&devices);
    assert_eq!(devices.count("free"), 1);
    assert!(devices.allocated(number) <= 64 << 10, "{} bytes of the box are left", devices.allocated(number));
    let third = daemon.api().create_default();
    assert_eq!(third.out("ls"), "");
    assert_eq!(TestBox { api: daemon.api(), id: second.id }.out("echo works"), "works");
}

#[test]
fn snapshots_and_forks_take_a_device_for_each_box_they_become() {
    let devices = Devices::new(3, GIB);
    let daemon = start(&devices);
    let api = daemon.api();
    let made = api.create_default();
    made.out("echo one > file");
    let id = made.post("/snapshots", &json!({ "name": "n" })).ok()["id"].as_str().expect("an id").to_owned();
    let is_ready = || {
        let listed = made.get("/snapshots").ok();
        listed["snapshots"].as_array().expect("a list").iter().any(|one| one["id"] == id && one["status"] == "ready")
    };
    wait_until(PATIENCE, "the snapshot to be made", is_ready);
    made.out("echo two > file");
    let restored = api.post("/v2/box/from-snapshot", &json!({ "snapshot_id": id })).ok();
    let restored = TestBox { api: api.clone(), id: restored["id"].as_str().expect("an id").to_owned() };
    assert_eq!(restored.out("cat file"), "one");
    let forked = daemon.icebox(&["fork", &made.id]).output().expect("icebox fork");
    assert!(forked.status.success(), "{}", String::from_utf8_lossy(&forked.stderr));
    assert_eq!(devices.count("disk"), 3);
    let refused = daemon.icebox(&["fork", &made.id]).output().expect("icebox fork");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no free block device"), "{refused:?}");
    assert_eq!(devices.count("disk"), 3);
    assert_eq!(made.out("cat file"), "two");
}

#[test]
fn a_kill_within_a_create_or_a_delete_leaves_a_boxs_device_or_a_free_one() {
    let devices = Devices::new(2, GIB);
    let mut daemon = start(&devices);
    let kept = daemon.api().create_default();
    kept.out("echo kept > file && sync");
    for state in ["making", "disk"] {
        let (api, before) = (daemon.api(), devices.count("disk"));
        let asked = thread::spawn(move || {
            // It may be cut off.
            let _ = api.try_send("create", api.build("POST", "/v2/box").json(&json!({})));
        });
        wait_until(PATIENCE, state, || {
            devices.count("making") > 0 && state == "making" || devices.count("disk") > before
        });
        daemon.kill9();
        asked.join().expect("the client");
        daemon.start_again();
        all_is_owned(&daemon, &devices);
        assert_eq!(TestBox { api: daemon.api(), id: kept.id.clone() }.out("cat file"), "kept");
        delete_all_but(&daemon, &kept.id);
        wait_for_wipes(&devices);
    }
    let victim = daemon.api().create_default();
    let (api, path) = (daemon.api(), format!("/v2/box/{}", victim.id));
    let asked = thread::spawn(move || {
        let _ = api.try_send("delete", api.build("DELETE", &path));
    });
    wait_until(PATIENCE, "the device to be given back", || devices.count("disk") == 1);
    daemon.kill9();
    asked.join().expect("the client");
    daemon.start_again();
    all_is_owned(&daemon, &devices);
    wait_until(PATIENCE, "the device to be free", || devices.count("free") == 1);
    assert_eq!(daemon.api().create_default().out("echo works"), "works");
}

/// Each device is the disk of a box that there is, or becomes free.
fn all_is_owned(daemon: &Daemon, devices: &Devices) {
    wait_for_wipes(devices);
    let settled = || {
        let ids: Vec<String> =
            daemon.api().list().iter().map(|one| one["id"].as_str().expect("an id").to_owned()).collect();
        devices.uses().iter().all(|(state, id)| state == "free" || state == "disk" && ids.contains(id))
    };
    wait_until(PATIENCE, "each device to be a box's or free", settled);
}

fn delete_all_but(daemon: &Daemon, kept: &str) {
    for one in daemon.api().list() {
        let id = one["id"].as_str().expect("an id").to_owned();
        if id != kept {
            daemon.api().delete(&format!("/v2/box/{id}")).ok();
        }
    }
}
