//! Disks on block devices: real loop devices, as a list and handed out by a program. Needs root.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use icebox_rootfs::{BlockSettings, BlockSource, Check, ErrorKind, Grown, PoolSettings, Store};
use rustix::fs::{Mode, OFlags, openat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen};

/// A passing test never reaches it; long, since the machine may be emulated.
const DEADLINE: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;
const MARK: &[u8] = b"what the first tenant wrote";

/// Loop devices of a test's own. They are detached when this is dropped.
struct Loops {
    dir: tempfile::TempDir,
    devices: Vec<PathBuf>,
}

impl Loops {
    fn new(sizes_mib: &[u64]) -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test attaches loop devices: run it as root");
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("dev")).unwrap();
        let mut loops = Self { dir, devices: Vec::new() };
        for (number, mib) in sizes_mib.iter().enumerate() {
            let image = loops.image(number);
            File::create(&image).unwrap().set_len(mib * MIB).unwrap();
            let device = run(Command::new("losetup").args(["--find", "--show"]).arg(&image));
            // A name of its own, as udev gives them: no test depends on the numbers of the kernel.
            std::os::unix::fs::symlink(&device, loops.path(number)).unwrap();
            loops.devices.push(device.into());
        }
        loops
    }

    fn image(&self, number: usize) -> PathBuf {
        self.dir.path().join(format!("device-{number}.img"))
    }

    fn path(&self, number: usize) -> PathBuf {
        self.dir.path().join(format!("dev/box-{number}"))
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn settings(&self, force: bool) -> PoolSettings {
        let source = BlockSource::List(vec![self.dir.path().join("dev/box-*").display().to_string()]);
        PoolSettings {
            block: Some(BlockSettings { source, for_new: true, force }),
            off: true,
            ..PoolSettings::default()
        }
    }

    fn open(&self, force: bool) -> Store {
        Store::open_with(&self.data(), &self.settings(force)).unwrap()
    }

    /// The store, with all devices ready.
    fn opened(&self) -> Store {
        let store = self.open(false);
        settled(&store);
        store
    }

    fn bytes_at(&self, number: usize, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        File::open(self.path(number)).unwrap().read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }
}

impl Drop for Loops {
    fn drop(&mut self) {
        for device in &self.devices {
            let _ = Command::new("losetup").arg("--detach").arg(device).status();
        }
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < deadline, "waited too long for {what}");
        thread::yield_now();
    }
}

fn settled(store: &Store) {
    wait_until("devices to be wiped", || store.devices().unwrap().wiping == 0);
}

/// Mounts a disk at no place, as the launcher of a box does, and opens its root.
fn mounted(device: &Path) -> rustix::fd::OwnedFd {
    let context = fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    fsconfig_set_string(&context, "source", device).unwrap();
    fsconfig_create(&context).unwrap();
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap();
    openat(&mount, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

fn file_in(root: &rustix::fd::OwnedFd, name: &str, flags: OFlags) -> File {
    openat(root, name, flags | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR).unwrap().into()
}

fn write_in(root: &rustix::fd::OwnedFd, name: &str, content: &[u8]) {
    let file = file_in(root, name, OFlags::CREATE | OFlags::WRONLY);
    file.write_all_at(content, 0).unwrap();
    file.sync_all().unwrap();
}

fn read_in(root: &rustix::fd::OwnedFd, name: &str) -> Vec<u8> {
    let mut file = file_in(root, name, OFlags::RDONLY);
    let mut content = Vec::new();
    std::io::Read::read_to_end(&mut file, &mut content).unwrap();
    content
}

#[test]
fn priv_a_device_goes_from_box_to_box_and_nothing_of_the_first_is_left() {
    let loops = Loops::new(&[1536, 1024]);
    let store = loops.opened();
    assert!(store.gives_devices());
    assert_eq!(store.devices().unwrap().free, 2);

    // The smallest that is large enough.
    let (volume, _) = store.create_volume("box-1", 1).unwrap();
    assert_eq!(volume.path(), loops.path(1));
    assert_eq!(volume.size_bytes().unwrap(), 1 << 30);
    assert_eq!(run(Command::new("blkid").args(["-p", "-s", "LABEL", "-o", "value"]).arg(loops.path(1))), "box-1");
    assert_eq!(store.create_volume("box-1", 1).unwrap_err().kind(), ErrorKind::AlreadyExists);
    store.create_volume("box-2", 1).unwrap();
    assert_eq!(store.check_device(1).unwrap_err().kind(), ErrorKind::NoDevice);
    let refused = store.create_volume("box-3", 1).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NoDevice);
    assert!(refused.cause().to_string().contains("1 GiB"), "{}", refused.cause());

    let attached = volume.attach().unwrap();
    let root = mounted(&attached.device);
    drop(attached);
    write_in(&root, "secret", MARK);
    assert!(volume.in_use().unwrap());
    // A box that is deleted while its file system is still being unmounted.
    store.remove_volume("box-1").unwrap();
    store.remove_volume("box-1").unwrap();
    assert_eq!(store.list().unwrap(), ["box-2"]);
    assert_eq!((store.devices().unwrap().wiping, store.check_device(1).is_err()), (1, true));
    drop(root);
    settled(&store);
    store.check_device(1).unwrap();
    // What the loop driver is asked to zero becomes a hole of the file.
    let left = fs::metadata(loops.image(1)).unwrap().blocks() * 512;
    assert!(left <= 64 << 10, "{left} bytes of the last box are left");
    assert!(loops.bytes_at(1, 512, 1 << 20).iter().all(|byte| *byte == 0));
    let (again, _) = store.create_volume("box-3", 1).unwrap();
    assert_eq!(again.path(), loops.path(1));
    assert_eq!(again.check(Check::Always).unwrap(), icebox_rootfs::Checked::Clean);
}

#[test]
fn priv_devices_say_after_a_restart_whose_they_are() {
    let loops = Loops::new(&[1024, 1024, 1024]);
    let store = loops.opened();
    let (volume, _) = store.create_volume("box-1", 1).unwrap();
    let path = volume.path().to_owned();
    let root = mounted(&path);
    write_in(&root, "kept", MARK);
    drop((root, store));

    // The devices have other names after a reboot.
    let numbers = [0, 1, 2].map(|number| fs::read_link(loops.path(number)).unwrap());
    for number in 0..3 {
        fs::remove_file(loops.path(number)).unwrap();
        std::os::unix::fs::symlink(&numbers[(number + 1) % 3], loops.path(number)).unwrap();
    }
    let store = loops.opened();
    let volume = store.volume("box-1").unwrap().unwrap();
    assert_ne!(volume.path(), path);
    assert_eq!(read_in(&mounted(volume.path()), "kept"), MARK);
    assert_eq!(store.devices().unwrap().free, 2);
    // It is no box's any more: the doctor sees it, and gives it back.
    let strays = store.strays(&Default::default(), &Default::default()).unwrap();
    assert_eq!(strays.len(), 1, "{strays:?}");
    assert!(strays[0].name.contains("box-1") && strays[0].bytes == 1 << 30, "{strays:?}");
    drop(store);

    // With another driver the disk goes on where it is, and new ones are images.
    let mut settings = loops.settings(false);
    settings.block.as_mut().unwrap().for_new = false;
    let store = Store::open_with(&loops.data(), &settings).unwrap();
    assert_eq!(store.list().unwrap(), ["box-1"]);
    assert!(store.create_volume("box-2", 1).unwrap().0.path().starts_with(loops.data()));
    assert_eq!(store.create_volume("box-1", 1).unwrap_err().kind(), ErrorKind::AlreadyExists);
    drop(store);
    // And the other way round: an image is found, and its id is not given to a device.
    let store = loops.opened();
    assert_eq!(store.list().unwrap(), ["box-1", "box-2"]);
    assert_eq!(store.create_volume("box-2", 1).unwrap_err().kind(), ErrorKind::AlreadyExists);
    store.remove_stray(&strays[0]).unwrap();
    settled(&store);
    assert_eq!(store.devices().unwrap().free, 3);

    // Another installation sees that they are not its own, and leaves them.
    store.create_volume("box-1", 1).unwrap();
    let other = Store::open_with(&loops.dir.path().join("other"), &loops.settings(false)).unwrap();
    let report = other.devices().unwrap();
    assert_eq!((report.free, report.disks, report.refused.len()), (0, 0, 3), "{report:?}");
    assert!(report.refused[0].why.contains("another installation"), "{report:?}");
    assert_eq!(store.volume("box-1").unwrap().unwrap().check(Check::Always).unwrap(), icebox_rootfs::Checked::Clean);
}

#[test]
fn priv_foreign_and_used_devices_are_touched_only_by_force() {
    let loops = Loops::new(&[1024, 1024, 1024]);
    run(Command::new("mkfs.ext4").args(["-q", "-F", "-L", "theirs"]).arg(loops.path(0)));
    run(Command::new("mkfs.ext4").args(["-q", "-F", "-L", "used"]).arg(loops.path(1)));
    let theirs = mounted(&loops.path(1));
    let before = [0, 1].map(|number| loops.bytes_at(number, 0, 4096));
    fs::write(loops.path(7), b"no device").unwrap();
    let store = loops.opened();
    let report = store.devices().unwrap();
    assert_eq!((report.free, report.refused.len()), (1, 3), "{report:?}");
    let why = |number: usize| {
        let path = loops.path(number);
        report.refused.iter().find(|refused| refused.path == path).map(|refused| refused.why.clone()).unwrap()
    };
    assert!(why(0).contains("'theirs'") && why(1).contains("'used'") && why(7).contains("not a block device"));
    store.create_volume("box-1", 1).unwrap();
    assert_eq!(store.create_volume("box-2", 1).unwrap_err().kind(), ErrorKind::NoDevice);
    assert_eq!([0, 1].map(|number| loops.bytes_at(number, 0, 4096)), before, "they were touched");
    drop(store);

    // What is mounted is not taken by force either, nor is the disk of a box.
    let store = loops.open(true);
    settled(&store);
    let report = store.devices().unwrap();
    assert_eq!((report.free, report.disks, report.refused.len()), (1, 1, 2), "{report:?}");
    assert_eq!(loops.bytes_at(1, 0, 4096)[1024..], before[1][1024..]);
    store.create_volume("box-2", 1).unwrap();
    drop(theirs);
}

#[test]
fn priv_what_a_crash_leaves_is_a_boxs_or_free() {
    let loops = Loops::new(&[1024, 1024]);
    let store = loops.opened();
    let (volume, _) = store.create_volume("box-1", 1).unwrap();
    let content = store.copy(&volume.resting_source().unwrap()).unwrap();
    write_in(&mounted(volume.path()), "kept", MARK);
    // Between the choice of a device and its completion; dropping the store stands for the end of the process.
    let replacement = store.prepare_replacement("box-1", content, 1).unwrap();
    let other = if volume.path() == loops.path(0) { 1 } else { 0 };
    let half_made = loops.bytes_at(other, 0, 512);
    assert!(String::from_utf8_lossy(&half_made).contains(" making 1 box-1"), "{half_made:?}");
    std::mem::forget(replacement);
    drop(store);
    let store = loops.opened();
    assert_eq!((store.list().unwrap(), store.devices().unwrap().free), (vec!["box-1".to_owned()], 1));
    let volume = store.volume("box-1").unwrap().unwrap();
    assert_eq!(read_in(&mounted(volume.path()), "kept"), MARK);

    // After the new disk was completed, before the old one was given back: the new one counts.
    let old_start = loops.bytes_at(1 - other, 0, 512);
    let content = store.copy(&volume.resting_source().unwrap()).unwrap();
    store.replace_volume(store.prepare_replacement("box-1", content, 1).unwrap()).unwrap();
    drop(store);
    let old = OpenOptions::new().write(true).open(loops.path(1 - other)).unwrap();
    old.write_all_at(&old_start, 0).unwrap();
    drop(old);
    let store = loops.opened();
    let volume = store.volume("box-1").unwrap().unwrap();
    assert_eq!((volume.path(), store.devices().unwrap().free), (loops.path(other).as_path(), 1));
    assert_eq!(read_in(&mounted(volume.path()), "kept"), MARK);
}

#[test]
fn priv_copies_of_a_device_are_files_and_become_devices_again() {
    let loops = Loops::new(&[1024, 2048, 1024]);
    let store = loops.opened();
    let (volume, _) = store.create_volume("box-1", 1).unwrap();
    let root = mounted(volume.path());
    write_in(&root, "large", &vec![7; 20 << 20]);
    // Of a disk that is mounted, with what is not flushed yet.
    let unflushed = file_in(&root, "late", OFlags::CREATE | OFlags::WRONLY);
    unflushed.write_all_at(MARK, 0).unwrap();
    let source = volume.live_source().unwrap();
    let copy = store.copy(&source).unwrap();
    let kept = store.keep_copy(&copy, "snap_1").unwrap();
    assert_eq!(kept.length, 1 << 30);
    let bounds = 20 * MIB..80 * MIB;
    assert!(bounds.contains(&kept.allocated_bytes), "it has {} bytes", kept.allocated_bytes);
    write_in(&root, "late", b"changed afterwards, in the first");
    drop((unflushed, root));

    // Into a larger one, whose file system is larger then.
    let content = store.snapshot("snap_1", &kept.digest).unwrap();
    let (second, _) = store.create_volume_from("box-2", &content, 2).unwrap();
    assert_eq!(second.check(Check::Always).unwrap(), icebox_rootfs::Checked::Clean);
    assert_eq!(second.size_bytes().unwrap(), 2 << 30);
    let root = mounted(second.path());
    assert_eq!((read_in(&root, "late"), read_in(&root, "large").len()), (MARK.to_vec(), 20 << 20));
    let mark = second.mark().unwrap();
    assert_eq!(second.mark().unwrap(), mark);
    write_in(&root, "more", MARK);
    assert_ne!(second.mark().unwrap(), mark, "a write is no change");
}

#[test]
fn priv_a_listed_device_grows_within_its_size_only() {
    let loops = Loops::new(&[2048]);
    let store = loops.opened();
    let (volume, _) = store.create_volume("box-1", 1).unwrap();
    let root = mounted(volume.path());
    volume.make_room(2).unwrap();
    let grown = volume.grow(2).unwrap();
    drop(root);
    if grown != Grown::Done {
        assert_eq!(volume.grow(2).unwrap(), Grown::Done);
    }
    assert_eq!(volume.size_bytes().unwrap(), 2 << 30);
    assert_eq!(volume.grow(1).unwrap_err().kind(), ErrorKind::InvalidInput);
    for error in [volume.make_room(3).unwrap_err(), volume.grow(3).unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::FixedSize);
        assert!(error.cause().to_string().contains("2.0 GiB"), "{}", error.cause());
    }
    assert_eq!(volume.check(Check::Always).unwrap(), icebox_rootfs::Checked::Clean);
}

/// A program that hands out loop devices with sparse files behind them, and that refuses the fourth.
const PROGRAM: &str = r#"#!/bin/sh
set -e
dir=$1 verb=$2 name=$3 bytes=$4
[ -z "$SECRET" ] || exit 9
case $verb in
create)
  [ "$(ls "$dir" | grep -c img)" -lt 3 ] || exit 3
  truncate -s "$bytes" "$dir/$name.img"
  [ ! -e "$dir/foreign" ] || mkfs.ext4 -q -F -L theirs "$dir/$name.img"
  losetup --find --show "$dir/$name.img" > "$dir/$name.dev"
  cat "$dir/$name.dev" ;;
delete)
  [ ! -e "$dir/stuck" ] || { echo "it is stuck" >&2; exit 1; }
  [ ! -e "$dir/$name.dev" ] || losetup --detach "$(cat "$dir/$name.dev")"
  rm -f "$dir/$name.img" "$dir/$name.dev" ;;
grow)
  truncate -s "$bytes" "$dir/$name.img"
  losetup --set-capacity "$(cat "$dir/$name.dev")" ;;
list)
  for file in "$dir"/*.dev; do [ ! -e "$file" ] || echo "$(basename "$file" .dev) $(cat "$file")"; done ;;
esac
"#;

struct Handed {
    dir: tempfile::TempDir,
}

impl Handed {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("made")).unwrap();
        fs::write(dir.path().join("program"), PROGRAM).unwrap();
        fs::set_permissions(dir.path().join("program"), fs::Permissions::from_mode(0o755)).unwrap();
        Self { dir }
    }

    fn made(&self) -> PathBuf {
        self.dir.path().join("made")
    }

    fn open(&self) -> Store {
        let words = [self.dir.path().join("program"), self.made()].map(|path| path.display().to_string());
        let block = BlockSettings { source: BlockSource::Program(words.to_vec()), for_new: true, force: false };
        let settings = PoolSettings { block: Some(block), off: true, ..PoolSettings::default() };
        Store::open_with(&self.dir.path().join("data"), &settings).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let names = fs::read_dir(self.made()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter_map(|name| name.strip_suffix(".dev").map(str::to_owned)).collect();
        names.sort();
        names
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        for name in self.names() {
            let device = fs::read_to_string(self.made().join(format!("{name}.dev"))).unwrap_or_default();
            let _ = Command::new("losetup").arg("--detach").arg(device.trim()).status();
        }
    }
}

#[test]
fn priv_a_program_makes_grows_and_deletes_devices() {
    let handed = Handed::new();
    let store = handed.open();
    let (volume, _) = store.create_volume("box-1", 1).unwrap();
    assert_eq!(handed.names(), ["box-1"]);
    write_in(&mounted(volume.path()), "kept", MARK);
    volume.grow(2).unwrap();
    assert_eq!(volume.size_bytes().unwrap(), 2 << 30);
    assert_eq!(read_in(&mounted(volume.path()), "kept"), MARK);

    // The disk is replaced by another device, under another name.
    let copy = store.copy(&volume.resting_source().unwrap()).unwrap();
    store.replace_volume(store.prepare_replacement("box-1", copy, 2).unwrap()).unwrap();
    settled(&store);
    assert_eq!(handed.names(), ["box-1.1"]);
    assert_eq!(read_in(&mounted(store.volume("box-1").unwrap().unwrap().path()), "kept"), MARK);
    for id in ["box-2", "box-3"] {
        store.create_volume(id, 1).unwrap();
    }
    assert_eq!(store.create_volume("box-4", 1).unwrap_err().kind(), ErrorKind::NoDevice);
    store.remove_volume("box-2").unwrap();
    settled(&store);
    assert_eq!(handed.names(), ["box-1.1", "box-3"]);

    // A foreign device that it hands out is neither written nor deleted.
    fs::write(handed.made().join("foreign"), b"").unwrap();
    let error = store.create_volume("box-5", 1).unwrap_err();
    assert!(error.cause().to_string().contains("'theirs'"), "{}", error.cause());
    assert_eq!(handed.names(), ["box-1.1", "box-3", "box-5"]);
    drop(store);

    // What a crash has left half made is deleted at the next start; a deletion that fails is shown.
    let device = fs::read_to_string(handed.made().join("box-5.dev")).unwrap();
    run(Command::new("wipefs").args(["--all", "--quiet", device.trim()]));
    fs::write(handed.made().join("stuck"), b"").unwrap();
    let store = handed.open();
    assert_eq!(store.list().unwrap(), ["box-1", "box-3"]);
    wait_until("the trouble to be shown", || {
        store.devices().unwrap().refused.iter().any(|refused| refused.why.contains("it is stuck"))
    });
    fs::remove_file(handed.made().join("stuck")).unwrap();
    settled(&store);
    assert_eq!(handed.names(), ["box-1.1", "box-3"]);
}
