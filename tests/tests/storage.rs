//! What the disks of boxes lie on: the pool, its life, and what it gives back.

use std::fs;
use std::path::Path;

use icebox_tests::{Daemon, LeakGuard, PATIENCE, pool, wait_until};

/// Mounts that the machine, the daemon and a box see.
fn mounts(pid: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/mountinfo")).expect("mountinfo")
}

#[test]
fn the_pool_is_in_no_table_of_mounts_and_survives_the_daemon() {
    let mut daemon = Daemon::start();
    let made = daemon.api().create_default();
    // Through the API of files: a command would leave a leaf cgroup for the next one.
    made.write("/workspace/home/kept", "from before");
    let guard = LeakGuard::new(&daemon);
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
    guard.check(&daemon);
    let api = daemon.api();
    assert_eq!(icebox_tests::TestBox { api, id: made.id.clone() }.out("cat kept"), "from before");
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
    let old = icebox_tests::TestBox { api: daemon.api(), id: old.id };
    assert_eq!(old.out("cat kept"), "old");
    daemon.api().delete(&format!("/v2/box/{}", old.id)).ok();
    assert!(!data.join(format!("volumes/{}.img", old.id)).exists());

    // Back again: what lies in the pool stays usable.
    daemon.stop();
    daemon.configure("[storage]\npool = \"off\"\n");
    daemon.start_again();
    let new = icebox_tests::TestBox { api: daemon.api(), id: new.id };
    assert_eq!(new.out("echo works"), "works");
}
