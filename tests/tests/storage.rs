//! What the disks of boxes lie on: the pool, its life, and what it gives back.

use std::fs;
use std::path::Path;

use icebox_tests::{Daemon, PATIENCE, TestBox, pool, wait_until};
use serde_json::{Value, json};

/// Mounts that the machine, the daemon and a box see.
fn mounts(pid: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/mountinfo")).expect("mountinfo")
}

#[test]
fn the_pool_is_in_no_table_of_mounts_and_survives_the_daemon() {
    let mut daemon = Daemon::start();
    let made = daemon.api().create_default();
    made.write("/workspace/home/kept", "from before");
    let disks = pool::loops_below(&daemon.data_dir());
    assert_eq!(disks.len(), 1, "{disks:?}");
    let device = pool::device_of(&daemon.data_dir()).expect("the pool is attached");
    let init = daemon.init_pid(&made);
    for pid in ["self", &daemon.pid().to_string(), &init.to_string()] {
        let table = mounts(pid);
        assert!(!table.lines().any(|line| line.contains(&format!(" {} ", device.1))), "{pid}: {table}");
    }
    for _ in 0..3 {
        daemon.kill9();
        daemon.start_again();
        assert_eq!(pool::device_of(&daemon.data_dir()).as_ref(), Some(&device), "the pool is attached once");
        assert_eq!(daemon.init_pid(&made), init);
        let again = daemon.api().create_default();
        again.out("sync");
        daemon.api().delete(&format!("/v2/box/{}", again.id)).ok();
    }
    wait_until(PATIENCE, "the disks to be those of before", || pool::loops_below(&daemon.data_dir()) == disks);
    let api = daemon.api();
    assert_eq!(TestBox { api, id: made.id.clone() }.out("cat kept"), "from before");
    daemon.api().delete(&format!("/v2/box/{}", made.id)).ok();
    daemon.stop();
    wait_until(PATIENCE, "the pool to be released", || pool::device_of(&daemon.data_dir()).is_none());
}

#[test]
fn a_crash_while_the_pool_is_made_leaves_a_pool_or_nothing() {
    let mut daemon = Daemon::start();
    let data = daemon.data_dir();
    let temp = |data: &Path| {
        let entries = fs::read_dir(data).expect("the data directory");
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with(".tmp-pool"))
    };
    type Point<'a> = (&'a str, Box<dyn Fn() -> bool + 'a>);
    let file = data.join(pool::POOL_FILE);
    let points: [Point; 3] = [
        ("the unfinished file", Box::new(|| temp(&data) || file.exists())),
        ("the finished file", Box::new(|| file.exists())),
        ("its device", Box::new(|| pool::device_of(&data).is_some())),
    ];
    for (what, reached) in points {
        daemon.stop();
        wait_until(PATIENCE, "the pool to be released", || pool::device_of(&data).is_none());
        fs::remove_file(&file).expect("remove the pool");
        daemon.spawn();
        wait_until(PATIENCE, what, &reached);
        daemon.kill9();
        daemon.start_again();
        assert!(!temp(&data), "{what}: an unfinished pool is left");
        assert!(pool::root_of(daemon.pid(), &data).is_some(), "{what}: there is no pool");
        let made = daemon.api().create_default();
        assert_eq!(made.out("echo works"), "works");
        daemon.api().delete(&format!("/v2/box/{}", made.id)).ok();
    }
}

#[test]
fn deleted_files_of_a_box_give_their_space_back_to_the_disk_of_the_host() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    let file = daemon.data_dir().join(pool::POOL_FILE);
    let root = pool::root_of(daemon.pid(), &daemon.data_dir()).expect("a pool");
    let occupied = || {
        // XFS discards with its next checkpoint.
        rustix::fs::syncfs(fs::File::open(&root).expect("the pool")).expect("flush the pool");
        std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&file).expect("the pool's file")) * 512
    };
    made.out("dd if=/dev/urandom of=big bs=1M count=200 conv=fsync 2>&1");
    let full = occupied();
    made.out("rm big && sync");
    wait_until(PATIENCE, "the space to come back", || occupied() + (190 << 20) < full);
}

#[test]
fn disks_from_before_there_was_a_pool_go_on_where_they_are() {
    let mut daemon = Daemon::start_with("[storage]\npool = \"off\"\n");
    assert!(daemon.log().contains("disks of boxes are copies"), "{}", daemon.log());
    let (old, data) = (daemon.api().create_default(), daemon.data_dir());
    old.out("echo old > kept && sync");
    daemon.stop();
    daemon.configure("");
    daemon.start_again();
    let new = daemon.api().create_default();
    assert!(data.join(format!("volumes/{}.img", old.id)).exists());
    let volumes = pool::volumes_of(daemon.pid(), &data);
    assert!(!volumes.starts_with(&data) && volumes.join(format!("{}.img", new.id)).exists());
    daemon.cgroups().destroy(&daemon.cgroup(&old));
    let old = TestBox { api: daemon.api(), id: old.id };
    assert_eq!(old.out("cat kept"), "old");
    daemon.api().delete(&format!("/v2/box/{}", old.id)).ok();
    assert!(!data.join(format!("volumes/{}.img", old.id)).exists());

    // Back again: what lies in the pool stays usable.
    daemon.stop();
    daemon.configure("[storage]\npool = \"off\"\n");
    daemon.start_again();
    let new = TestBox { api: daemon.api(), id: new.id };
    assert_eq!(new.out("echo works"), "works");
}

/// Size of the file system of a box's root, in MiB.
fn disk_mib(made: &TestBox) -> u64 {
    made.out("df --output=size -m / | tail -1").trim().parse().expect("a number")
}

/// Grows the disk of a box and returns what the API says.
fn resize(made: &TestBox, disk_gib: u64) -> Value {
    made.api.post(&format!("/v1/boxes/{}/resize", made.id), &json!({ "disk_gib": disk_gib })).ok()
}

/// The kernel grows a mounted file system for a process with this capability only (24, CAP_SYS_RESOURCE).
fn daemon_may_grow(daemon: &Daemon) -> bool {
    let effective = icebox_tests::machine::status_line(daemon.pid(), "CapEff").expect("CapEff");
    u64::from_str_radix(effective.trim(), 16).expect("a number") & (1 << 24) != 0
}

#[test]
fn the_disk_of_a_box_grows_in_each_of_its_states() {
    let mut daemon = Daemon::start();
    let made = daemon.api().create_default();
    made.out("echo before > kept && sync");
    let small = disk_mib(&made);
    assert!((4500..5120).contains(&small), "{small}");
    let init = daemon.init_pid(&made);
    let online = daemon_may_grow(&daemon);

    // Running: a program keeps a file open and writes to it all the time.
    made.out("nohup sh -c 'echo $$ > pid; while :; do echo x; done' > busy 2>/dev/null & true");
    let answer = resize(&made, 7);
    assert_eq!(answer["disk_gib"], 7);
    assert_eq!(answer["waits_because"].is_null(), online, "{answer}");
    assert_eq!(disk_mib(&made) > 6500, online);
    assert_eq!(daemon.init_pid(&made), init);
    made.out("kill $(cat pid)");

    // Frozen: it stays so.
    made.pause();
    resize(&made, 12);
    assert_eq!(made.status(), "paused");
    assert_eq!(disk_mib(&made) > 11_000, online);

    for (body, why) in [(json!({ "disk_gib": 11 }), "smaller"), (json!({ "disk_gib": 5000 }), "1024")] {
        let refused = made.api.post(&format!("/v1/boxes/{}/resize", made.id), &body).error(400);
        assert!(refused.contains(why), "{refused}");
    }

    // Stopped: at the next start it has the size.
    daemon.stop();
    daemon.cgroups().destroy(daemon.cgroup_root());
    daemon.start_again();
    let made = TestBox { api: daemon.api(), id: made.id };
    resize(&made, 20);
    assert!(disk_mib(&made) > 19_000);
    assert_eq!(made.out("cat kept"), "before");
    made.out("dd if=/dev/zero of=big bs=1M count=64 conv=fsync 2>&1");
    let storage = made.api.get("/v1/storage").ok();
    assert_eq!(storage["backing"], "file");
    let disk = &storage["boxes"][0];
    assert_eq!(disk["promised_bytes"], 20_u64 << 30);
    assert!(disk["allocated_bytes"].as_u64().expect("bytes") > 64 << 20, "{storage}");
}

#[test]
fn a_crash_in_the_middle_of_a_growth_is_completed() {
    let mut daemon = Daemon::start();
    let made = daemon.api().create_default();
    made.out("echo before > kept && sync");
    for (round, delay_us) in [0, 500, 1000, 2000, 4000, 8000].into_iter().enumerate() {
        let size = 6 + round as u64;
        let api = daemon.api();
        let id = made.id.clone();
        let asked = std::thread::spawn(move || {
            let request = api.build("POST", &format!("/v1/boxes/{id}/resize")).json(&json!({ "disk_gib": size }));
            let _ = api.try_send("resize", request);
        });
        icebox_tests::wait::let_pass(std::time::Duration::from_micros(delay_us));
        daemon.kill9();
        asked.join().expect("the client");
        daemon.start_again();
        let made = TestBox { api: daemon.api(), id: made.id.clone() };
        assert_eq!(made.out("cat kept"), "before");
        resize(&made, size);
    }
    let made = TestBox { api: daemon.api(), id: made.id.clone() };
    made.api.post_empty(&format!("/v1/boxes/{}/restart", made.id)).ok();
    assert!(disk_mib(&made) > 10_000);
    assert_eq!(made.out("cat kept"), "before");
}

#[test]
fn disks_share_their_template_until_they_are_written() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    made.out("sync");
    let storage = made.api.get("/v1/storage").ok();
    let disk = &storage["boxes"][0];
    assert_eq!(disk["id"], made.id);
    assert!(disk["shared_bytes"].as_u64().expect("bytes") > 0, "{storage}");
    let (pool, host) = (&storage["pool"], &storage["disk"]);
    assert!(pool["free_bytes"].as_u64() <= host["free_bytes"].as_u64(), "{storage}");
    let mut command = std::process::Command::new(icebox_tests::daemon::binary("icebox"));
    let output = command.arg("--run-dir").arg(daemon.run_dir()).arg("df").output().expect("icebox df");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains(&made.id) && text.contains("PROMISED") && text.contains("pool: "), "{output:?}");
}

#[test]
fn a_pool_that_has_shut_down_says_so_and_works_after_a_restart() {
    let mut daemon = Daemon::start();
    let made = daemon.api().create_default();
    made.out("echo kept > file && sync");
    let root = pool::root_of(daemon.pid(), &daemon.data_dir()).expect("a pool");
    let shut = std::process::Command::new("xfs_io").args(["-x", "-c", "shutdown -f"]).arg(&root).output();
    let shut = shut.expect("run xfs_io");
    assert!(shut.status.success(), "{}", String::from_utf8_lossy(&shut.stderr));
    let api = daemon.api();
    for refused in [api.post("/v2/box", &json!({})), api.get("/v1/storage")] {
        let text = refused.error(503);
        assert!(text.contains("has shut down"), "{text}");
    }
    wait_until(PATIENCE, "the log to say it", || daemon.log().contains("stop iceboxd and all boxes"));

    daemon.stop();
    daemon.cgroups().destroy(&daemon.cgroup(&made));
    wait_until(PATIENCE, "the pool to be released", || pool::device_of(&daemon.data_dir()).is_none());
    daemon.start_again();
    let made = TestBox { api: daemon.api(), id: made.id };
    assert_eq!(made.out("cat file"), "kept");
}
