//! Leftovers without an owner: all kinds are found and removed, and nothing else is touched.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use icebox_tests::{Daemon, LeakGuard, TestBox, pool};
use nix::mount::{MsFlags, mount, umount};
use serde_json::{Value, json};

/// `icebox doctor` with these options; its JSON, and its exit code.
fn doctor(daemon: &Daemon, options: &[&str]) -> (Value, i32) {
    let output = daemon.icebox_as_operator(&[&["--json", "doctor"], options].concat()).output().expect("run icebox");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let value = serde_json::from_str(&text)
        .unwrap_or_else(|e| panic!("{e}: {text}{}", String::from_utf8_lossy(&output.stderr)));
    (value, output.status.code().expect("an exit code"))
}

/// What is listed: kinds and ends of names. Blocks of uids are of the whole host, and other tests may leave some.
fn listed(answer: &Value) -> BTreeSet<(String, String)> {
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let all = answer.as_array().expect("a list").iter();
    let pairs = all.map(|one| (text(&one["kind"]), text(&one["name"])));
    pairs.filter(|(kind, _)| kind != "uid block").map(|(kind, name)| (kind, last_part(&name))).collect()
}

fn last_part(name: &str) -> String {
    let name = name.split(" (").last().unwrap_or_default().trim_end_matches(')');
    name.rsplit('/').next().unwrap_or_default().to_owned()
}

#[test]
fn every_kind_without_an_owner_is_found_and_removed_and_nothing_else() {
    let mut daemon = Daemon::start().with_own_images();
    daemon.api().post("/v1/volumes", &json!({ "name": "files", "size_gib": 1 })).ok();
    let kept = daemon.api().create(&json!({ "name": "kept" }));
    kept.out("echo mine > file; sync");
    let snapshot = kept.post("/snapshots", &json!({ "name": "s" })).ok()["id"].as_str().expect("an id").to_owned();
    icebox_tests::wait_until(icebox_tests::PATIENCE, "the snapshot", || {
        kept.get("/snapshots").ok()["snapshots"][0]["status"] == "ready"
    });
    assert_eq!(listed(&doctor(&daemon, &[]).0["orphans"]), BTreeSet::new());
    let guard = LeakGuard::new(&daemon);

    let volumes = pool::volumes_of(daemon.pid(), &daemon.data_dir());
    let (snapshots, templates) = (volumes.with_file_name("snapshots"), volumes.with_file_name("templates"));
    let images = daemon.images();
    let mut expected = BTreeSet::new();
    let mut is_left = |kind: &str, name: &str| expected.insert((kind.to_owned(), name.to_owned()));
    // Disks and snapshots, one of them attached.
    let (lost, deleted) = ("amber-fox-10001", "calm-fox-10002");
    for id in [lost, deleted] {
        fs::write(volumes.join(format!("{id}.img")), vec![1; 1 << 20]).expect("a disk");
        is_left("disk", id);
    }
    let attached =
        Command::new("losetup").args(["--find", "--show"]).arg(volumes.join(format!("{deleted}.img"))).output();
    let attached = attached.expect("losetup");
    assert!(attached.status.success(), "{attached:?}");
    is_left("loop device", deleted);
    fs::write(snapshots.join("snap_aaaabbbbccccdddd.img"), "x").expect("a snapshot");
    is_left("snapshot", "snap_aaaabbbbccccdddd");
    fs::write(volumes.with_file_name("data").join("vol-aaaabbbbccccdddd.img"), "x").expect("a volume");
    is_left("volume", "vol-aaaabbbbccccdddd");
    for (dir, name) in [(&volumes, ".tmp-volume-1-0"), (&snapshots, ".tmp-copy-1-7"), (&templates, ".tmp-template-1-2")]
    {
        fs::write(dir.join(name), "half").expect("an unfinished file");
        is_left("unfinished disk", name);
    }
    // What belongs to a running box.
    let group = daemon.cgroups().unified.join(daemon.cgroup_root()).join(lost);
    fs::create_dir(&group).expect("a cgroup");
    let mut process = Command::new("sleep").arg("1000").spawn().expect("a process");
    fs::write(group.join("cgroup.procs"), process.id().to_string()).expect("move it there");
    is_left("cgroup", lost);
    fs::create_dir(daemon.run_dir().join("boxes").join(lost)).expect("a run directory");
    is_left("run directory", lost);
    // Images and builds.
    let hex = "ab".repeat(32);
    for (kind, path) in [
        ("layer", format!("layers/{hex}")),
        ("unfinished image", "layers/.tmp-import-1-0".to_owned()),
        ("adapted layer", format!("adapted/{hex}-1")),
        ("pins", "pins/0123456789abcdef".to_owned()),
    ] {
        fs::create_dir_all(images.join(&path)).expect("a directory");
        is_left(kind, &last_part(&path));
    }
    fs::write(images.join("pins/0123456789abcdef/owner"), "/nonexistent/data").expect("its owner");
    let builds = daemon.data_dir().join("builds");
    fs::create_dir_all(builds.join("cache")).expect("a directory");
    fs::create_dir(builds.join(".tmp-abc")).expect("a directory");
    fs::write(builds.join("cache/0123"), "{}").expect("an entry");
    is_left("files of a build", ".tmp-abc");
    is_left("files of a build", "0123");
    let registry = Path::new("/run/icebox-uid/254.lock");
    let had_block = registry.exists();
    if !had_block {
        fs::write(registry, "/nonexistent/data").expect("a block of uids");
    }

    // What Icebox did not make, and what has an owner.
    let foreign = [
        volumes.join("backup.img"),
        volumes.join("amber-fox-1.img"),
        volumes.join("notes.txt"),
        snapshots.join("snap_x.img"),
        images.join("layers/notes"),
        builds.join("notes"),
    ];
    foreign.iter().for_each(|path| fs::write(path, "the operator's").expect("a file"));
    let foreign_group = daemon.cgroups().unified.join(daemon.cgroup_root()).join("operators");
    fs::create_dir(&foreign_group).expect("a cgroup");

    let (found, code) = doctor(&daemon, &[]);
    assert_eq!((listed(&found["orphans"]), code), (expected.clone(), 1), "{found}");
    let orphans = found["orphans"].as_array().expect("a list");
    let disk = orphans.iter().find(|one| one["name"] == lost && one["kind"] == "disk").expect("the disk");
    assert!(disk["bytes"].as_u64().expect("bytes") > 10_000, "{disk}");
    assert_eq!(had_block, !orphans.iter().any(|one| one["name"] == "254 (/nonexistent/data)"), "{found}");
    // A key is not enough.
    daemon.api().get("/v1/doctor").error(403);
    daemon.api().post_empty("/v1/doctor/repair").error(403);

    let (done, _) = doctor(&daemon, &["--repair"]);
    assert_eq!((listed(&done["removed"]), listed(&done["failed"])), (expected, BTreeSet::new()), "{done}");
    assert!(!process.wait().expect("its end").success(), "the process in the cgroup was not killed");
    if !had_block {
        assert_eq!(fs::read(registry).expect("the block"), b"");
    }
    assert_eq!(listed(&doctor(&daemon, &[]).0["orphans"]), BTreeSet::new());
    for path in &foreign {
        assert_eq!(fs::read(path).expect("it stays").as_slice(), b"the operator's", "{}", path.display());
        fs::remove_file(path).expect("removed");
    }
    fs::remove_dir(&foreign_group).expect("it stays");
    fs::remove_dir_all(&builds).expect("removed");
    guard.check(&daemon);
    assert_eq!(kept.out("cat file"), "mine");
    daemon.api().get("/v1/volumes/files").ok();
    // A daemon that starts says what it finds.
    daemon.kill9();
    fs::create_dir(&group).expect("a cgroup");
    daemon.start_again();
    icebox_tests::wait_until(icebox_tests::PATIENCE, "the log to tell of it", || {
        daemon.log().lines().any(|line| line.contains(lost) && line.contains("icebox doctor"))
    });
    doctor(&daemon, &["--repair"]);
    let api = daemon.api();
    let kept = TestBox { api: api.clone(), id: kept.id.clone() };
    assert_eq!(kept.out("cat file"), "mine");
    assert!(!group.exists());
    let again = api.post("/v2/box/from-snapshot", &json!({ "snapshot_id": snapshot })).ok();
    assert_eq!(TestBox { api, id: again["id"].as_str().expect("an id").to_owned() }.out("cat file"), "mine");
}

#[test]
fn a_box_that_could_not_be_removed_is_shown_until_it_is() {
    let mut daemon = Daemon::start();
    daemon.api().create_default().delete();
    daemon.kill9();
    // As a crash in the middle of a creation leaves it, with a run directory that cannot be removed.
    let database = rusqlite::Connection::open(daemon.data_dir().join("icebox.db")).expect("the database");
    let id = "amber-fox-10001";
    database.execute("INSERT INTO reservations VALUES (?1, 1966080, 0)", [id]).expect("a reservation");
    drop(database);
    let dir = daemon.run_dir().join("boxes").join(id);
    fs::create_dir_all(&dir).expect("a run directory");
    // A mount holds it.
    mount(Some(&dir), &dir, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("mount");
    daemon.start_again();
    let (found, _) = doctor(&daemon, &[]);
    assert_eq!(listed(&found["orphans"]), BTreeSet::from([("uid range".to_owned(), id.to_owned())]), "{found}");
    let (failed, code) = doctor(&daemon, &["--repair"]);
    assert_eq!((listed(&failed["failed"]).len(), code), (1, 1), "{failed}");
    umount(&dir).expect("unmount");
    let (done, _) = doctor(&daemon, &["--repair"]);
    assert_eq!(listed(&done["removed"]).len(), 1, "{done}");
    assert!(!dir.exists());
    assert_eq!(listed(&doctor(&daemon, &[]).0["orphans"]), BTreeSet::new());
}
