//! Boxes whose disks a program makes: the one of docs/storage.md, as it stands there, on a thin pool of LVM.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use icebox_tests::daemon::{scratch_dir, unique};
use icebox_tests::{Daemon, PATIENCE, TestBox, wait_until};
use serde_json::json;

const DOCUMENT: &str = include_str!("../../docs/storage.md");
const SCRIPT_BEGIN: &str = "```sh\n#!/bin/sh\n# icebox-lvm ";
const POOL: &str = "boxes";
/// Small enough to be filled.
const POOL_MIB: u64 = 400;
/// More than the script lets be in use.
const FILLED_MIB: u64 = 370;
/// A new box has 10 GiB.
const GROWN_GIB: u64 = 11;

/// A volume group with a thin pool on a loop device. Dropping it removes them, so it must outlive the daemon that uses it.
struct Group {
    home: PathBuf,
    name: String,
    device: String,
}

impl Group {
    fn new() -> Self {
        let name = unique("icebox-lvm");
        let home = scratch_dir().join(&name);
        fs::create_dir_all(&home).expect("make a directory");
        run(Command::new("modprobe").arg("dm-thin-pool"));
        // Without a daemon that would outlive the test, and without udev, which does not run in this guest.
        let config = "activation { monitoring = 0 udev_sync = 0 udev_rules = 0 }\n";
        fs::write("/etc/lvm/lvmlocal.conf", config).expect("configure LVM");
        let image = home.join("disk.img");
        File::create(&image).and_then(|file| file.set_len((POOL_MIB + 100) << 20)).expect("make an image");
        let device = run(Command::new("losetup").args(["--find", "--show"]).arg(&image));
        let group = Self { home, name, device };
        run(Command::new("vgcreate").args([&group.name, &group.device]));
        let size = format!("{POOL_MIB}m");
        run(Command::new("lvcreate").args(["--type", "thin-pool", "--size", &size, "--name", POOL, &group.name]));
        fs::write(group.script(), script()).expect("write the script");
        fs::set_permissions(group.script(), fs::Permissions::from_mode(0o755)).expect("make it executable");
        group
    }

    fn script(&self) -> PathBuf {
        self.home.join("icebox-lvm")
    }

    fn config(&self) -> String {
        let script = self.script();
        let command = format!("[\"{}\", \"{}\", \"{POOL}\"]", script.display(), self.name);
        format!("[storage]\ndriver = \"block\"\n[storage.block]\ncommand = {command}\n")
    }

    /// The volumes of boxes, as LVM lists them.
    fn volumes(&self) -> Vec<String> {
        let listed =
            run(Command::new("lvs").args(["--noheadings", "-o", "lv_name", "--select", "tags=icebox"]).arg(&self.name));
        listed.lines().map(|line| line.trim().to_owned()).collect()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = Command::new("vgremove").args(["--force", "--force", "--yes", &self.name]).status();
        let _ = Command::new("losetup").args(["--detach", &self.device]).status();
        let _ = fs::remove_dir_all(&self.home);
    }
}

/// The script of the document.
fn script() -> &'static str {
    let begin = DOCUMENT.find(SCRIPT_BEGIN).expect("the document has the script") + "```sh\n".len();
    let end = DOCUMENT[begin..].find("```").expect("the end of the script");
    &DOCUMENT[begin..begin + end]
}

fn run(command: &mut Command) -> String {
    let output = command.output().expect("run a program");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn boxes_live_on_a_thin_pool_of_lvm() {
    let group = Group::new();
    let home: &Path = &group.home;
    let mut daemon = Daemon::start_at(home, &group.name, &group.config());
    let api = daemon.api();
    let first = api.create_default();
    first.out("echo kept > file && sync");
    assert_eq!(group.volumes(), std::slice::from_ref(&first.id));
    assert_eq!(api.get("/v1/storage").ok()["backing"], "block");

    // The program makes the device larger, and the file system follows.
    api.post(&format!("/v1/boxes/{}/resize", first.id), &json!({ "disk_gib": GROWN_GIB })).ok();
    let blocks: u64 = first.out("stat -f -c %b /").parse().expect("a number");
    assert!(blocks * 4096 > (GROWN_GIB << 30) - (512 << 20), "{blocks} blocks");

    daemon.kill9();
    daemon.start_again();
    let api = daemon.api();
    let first = TestBox { api: api.clone(), id: first.id };
    api.post_empty(&format!("/v1/boxes/{}/restart", first.id)).ok();
    assert_eq!(first.out("cat file"), "kept");
    assert_eq!(group.volumes(), std::slice::from_ref(&first.id));

    // Exit code 3 of the program: there is no space.
    first.out(&format!("dd if=/dev/zero of=big bs=1M count={FILLED_MIB} status=none && sync"));
    api.post("/v2/box", &json!({})).error(507);
    assert_eq!((first.out("cat file").as_str(), group.volumes().len()), ("kept", 1));

    // What is deleted is space again.
    first.delete();
    wait_until(PATIENCE, "the volumes to be deleted", || group.volumes().is_empty());
    assert_eq!(api.create_default().out("ls"), "");
}
