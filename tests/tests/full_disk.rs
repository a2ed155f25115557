//! A host whose disk is full: `iceboxd` goes on, starts, says what it refuses, deletes boxes, and uses what comes back.

use icebox_tests::small_disk::SmallDisk;
use icebox_tests::{Daemon, PATIENCE, TestBox, wait_until};
use serde_json::json;

const DISK_MIB: u64 = 192;
/// What the disk counts as full below, for new boxes.
const CONFIG: &str = "disk_free_bytes_min = 20971520\n";
/// More than the disk has.
const FILL: &str = "dd if=/dev/zero of=fill bs=1M count=400 conv=fsync";

/// Changes more metadata than fits into the journal at once. ext4 goes read-only when a block of metadata can't be written
/// back. Linux 6.8 and later see that at the next write; older kernels when the journal has to be emptied for more.
const MUCH_METADATA: &str = "new=$(mktemp -d -p .) && mkdir $(seq -f $new/%g 3000) && sync";

#[test]
fn a_full_disk_refuses_new_boxes_and_what_comes_back_is_used() {
    let disk = SmallDisk::new(DISK_MIB);
    let mut daemon = Daemon::start_at(disk.home(), disk.name(), CONFIG);
    let api = daemon.api();
    let (filler, victim) = (api.create_default(), api.create_default());
    victim.write("/workspace/home/kept", "from before");
    victim.out("sync");

    // One box, inside its own quota, takes all there is.
    assert_ne!(filler.sh(FILL).code, 0, "the disk was large enough");
    disk.take_rest();
    assert!(disk.free_bytes() < 1 << 20, "{} bytes are free", disk.free_bytes());
    // Another one meets it.
    assert_ne!(victim.sh("dd if=/dev/zero of=more bs=1M count=8 conv=fsync").code, 0);
    wait_until(PATIENCE, "the box's file system to be read-only", || victim.sh(MUCH_METADATA).code != 0);

    let still_serves = |daemon: &Daemon| {
        let api = daemon.api();
        let refused = api.post("/v2/box", &json!({})).error(507);
        assert!(refused.contains("free space") && refused.contains("delete boxes"), "{refused}");
        assert_eq!(api.list().len(), 2);
        let victim = TestBox { api: api.clone(), id: victim.id.clone() };
        assert_eq!(victim.out("cat kept"), "from before");
        victim.bill();
    };
    still_serves(&daemon);
    daemon.kill9();
    daemon.start_again();
    still_serves(&daemon);
    daemon.stop();
    daemon.start_again();
    still_serves(&daemon);

    let api = daemon.api();
    let victim = TestBox { api: api.clone(), id: victim.id };
    let restart = format!("/v1/boxes/{}/restart", victim.id);
    api.delete(&format!("/v2/box/{}", filler.id)).ok();
    disk.give_back();
    wait_until(PATIENCE, "the space to be free", || disk.free_bytes() > 64 << 20);
    let fresh = api.create_default();
    fresh.out("echo works > file && sync");

    api.post_empty(&restart).ok();
    assert_eq!(victim.out("echo again > new && sync && cat kept new"), "from beforeagain");
    let logs = victim.get("/logs").text();
    assert!(logs.contains("started again on its disk") && logs.contains("repaired"), "{logs}");
    let log = daemon.log();
    assert!(!log.contains("panicked") && !log.contains("cannot be trusted"), "{log}");
}

#[test]
fn boxes_are_paused_while_the_disk_is_full_and_go_on_by_themselves() {
    let disk = SmallDisk::new(DISK_MIB);
    let config = format!("{CONFIG}[storage]\nwhen_full = \"pause\"\n");
    let daemon = Daemon::start_at(disk.home(), disk.name(), &config);
    let api = daemon.api();
    let (made, other) = (api.create_default(), api.create_default());
    let waiting = {
        let made = made.clone();
        std::thread::spawn(move || made.out("touch begun && sync; until [ -e go ]; do sleep 0.1; done; echo went on"))
    };
    wait_until(PATIENCE, "the command", || made.sh("test -e begun").code == 0);
    other.pause();

    // Less than `disk_free_bytes_min`, and more than boxes can fill meanwhile.
    disk.take_all_but(15 << 20);
    wait_until(PATIENCE, "the box to be paused", || made.status() == "paused");
    for one in [&made, &other] {
        let refused = one.post("/exec", &json!({ "command": ["true"] })).error(507);
        assert!(refused.contains("paused until there is more"), "{refused}");
    }
    let logs = made.get("/logs").text();
    assert!(logs.contains("paused: the space for disks"), "{logs}");

    // It goes on with what it did; the one that its owner paused sleeps on.
    disk.give_back();
    wait_until(PATIENCE, "the box to go on", || made.status() != "paused");
    assert_eq!(other.status(), "paused");
    made.out("touch go");
    assert_eq!(waiting.join().expect("the command"), "went on");
    assert_eq!(other.out("echo works"), "works");
}

#[test]
fn no_more_is_promised_than_the_operator_allows() {
    let disk = SmallDisk::new(DISK_MIB);
    // About 75 MiB a hundred times: one disk of 5 GiB, not two.
    let config = format!("{CONFIG}[storage]\npromised_percent_max = 10000\n");
    let daemon = Daemon::start_at(disk.home(), disk.name(), &config);
    let api = daemon.api();
    let made = api.create_default();
    let resize = format!("/v1/boxes/{}/resize", made.id);
    for (path, body) in [
        ("/v2/box", json!({})),
        ("/v1/volumes", json!({ "name": "v", "size_gib": 8 })),
        (&resize, json!({ "disk_gib": 20 })),
    ] {
        let refused = api.post(path, &body).error(507);
        assert!(refused.contains("are promised 5 GiB"), "{path}: {refused}");
    }
    api.delete(&format!("/v2/box/{}", made.id)).ok();
    assert_eq!(api.create_default().out("echo works"), "works");
}
