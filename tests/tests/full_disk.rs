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
