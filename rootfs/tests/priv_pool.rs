//! Pools on real loop devices. Needs root.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use icebox_rootfs::{Backing, CloneMethod, PoolSettings, Store};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A passing test never reaches it; long, since the machine may be emulated.
const DEADLINE: Duration = Duration::from_secs(60);
const MARGIN: u64 = 16 << 20;

fn require_root() {
    assert!(rustix::process::geteuid().is_root(), "this test attaches loop devices and mounts: run it as root");
}

fn settings(size_mib: u64) -> PoolSettings {
    PoolSettings { size: Some(size_mib << 20), margin: MARGIN, ..PoolSettings::default() }
}

/// Loop devices that have this file behind them.
fn loops_of(path: &Path) -> BTreeSet<String> {
    let Ok(wanted) = path.canonicalize() else { return BTreeSet::new() };
    let names = fs::read_dir("/sys/block").unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names
        .filter(|name| {
            let backing = fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).unwrap_or_default();
            Path::new(backing.trim_end()) == wanted
        })
        .collect()
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < deadline, "waited too long for {what}");
        thread::yield_now();
    }
}

/// The data directory of a test on a file system that cannot clone.
fn data_dir(dir: &tempfile::TempDir) -> PathBuf {
    let data = dir.path().join("data");
    fs::create_dir_all(&data).unwrap();
    data
}

fn free_bytes(path: &Path) -> u64 {
    let found = rustix::fs::statvfs(path).unwrap();
    found.f_bavail * found.f_frsize
}

#[test]
fn priv_a_pool_is_made_clones_share_blocks_and_nothing_is_left() {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let data = data_dir(&dir);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count();
    let store = Store::open_with(&data, &settings(512)).unwrap();
    assert_eq!(*store.backing(), Backing::File);
    let (volume, method) = store.create_volume("box-1", 10).unwrap();
    assert_eq!(method, CloneMethod::Reflink);
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count(), mounts, "the pool is in a table");
    assert_eq!(loops_of(&data.join("pool.xfs")).len(), 1);
    let attached = volume.attach().unwrap();
    assert!(!attached.direct_io);
    drop(attached);
    drop((volume, store));
    wait_until("the pool's device to go", || loops_of(&data.join("pool.xfs")).is_empty());
    let names: BTreeSet<_> = fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["lock", "pool.xfs"].map(Into::into).into());
}

#[test]
fn priv_the_next_owner_finds_the_pool_that_an_attached_volume_keeps() {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let data = data_dir(&dir);
    let store = Store::open_with(&data, &settings(512)).unwrap();
    let (volume, _) = store.create_volume("box-1", 1).unwrap();
    let attached = volume.attach().unwrap();
    let device = loops_of(&data.join("pool.xfs"));
    drop(store);
    for _ in 0..10 {
        let store = Store::open_with(&data, &settings(512)).unwrap();
        assert_eq!(loops_of(&data.join("pool.xfs")), device, "the pool is attached once");
        assert!(store.volume("box-1").unwrap().unwrap().in_use().unwrap());
        store.create_volume("box-2", 1).unwrap();
        store.remove_volume("box-2").unwrap();
    }
    OpenOptions::new().write(true).open(&attached.device).unwrap().write_all_at(b"kept", 4096).unwrap();
    drop(attached);
    // Each of these meets a pool that is about to go.
    for _ in 0..10 {
        let store = Store::open_with(&data, &settings(512)).unwrap();
        assert_eq!(loops_of(&data.join("pool.xfs")).len(), 1);
        let volume = store.volume("box-1").unwrap().unwrap();
        let mut bytes = [0; 4];
        File::open(volume.path()).unwrap().read_exact_at(&mut bytes, 4096).unwrap();
        assert_eq!(&bytes, b"kept");
    }
    wait_until("the pool's device to go", || loops_of(&data.join("pool.xfs")).is_empty());
}

#[test]
fn priv_a_pool_grows_and_is_kept_when_it_is_switched_off() {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let data = data_dir(&dir);
    let store = Store::open_with(&data, &settings(320)).unwrap();
    store.create_volume("box-1", 1).unwrap();
    let size = |store: &Store| {
        let found = rustix::fs::statvfs(store.root()).unwrap();
        found.f_blocks * found.f_frsize
    };
    let small = size(&store);
    drop(store);
    let store = Store::open_with(&data, &settings(2048)).unwrap();
    assert!(size(&store) > small + (1 << 30), "{} after {small}", size(&store));
    drop(store);
    // Smaller than it is: it stays.
    let store = Store::open_with(&data, &settings(320)).unwrap();
    assert!(size(&store) > small + (1 << 30));
    drop(store);

    let off = PoolSettings { off: true, ..settings(320) };
    let store = Store::open_with(&data, &off).unwrap();
    assert!(matches!(store.backing(), Backing::Sparse { .. }), "{:?}", store.backing());
    assert_eq!(store.list().unwrap(), ["box-1"]);
    let (outside, _) = store.create_volume("box-2", 1).unwrap();
    assert!(outside.path().starts_with(&data));
    assert!(store.create_volume("box-1", 1).is_err());
    drop(store);
    // And the other way: volumes outside stay where they are.
    let store = Store::open_with(&data, &settings(320)).unwrap();
    assert_eq!(store.list().unwrap(), ["box-1", "box-2"]);
    assert_eq!(store.volume("box-2").unwrap().unwrap().path(), outside.path());
    assert!(store.create_volume("box-2", 1).is_err());
    store.remove_volume("box-2").unwrap();
    store.sync_removals().unwrap();
    assert_eq!(store.list().unwrap(), ["box-1"]);
}

#[test]
fn priv_unfinished_pools_are_removed_and_a_refusal_is_told() {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let data = data_dir(&dir);
    fs::write(data.join(".tmp-pool-1-0"), b"half").unwrap();
    // More than the disk has: there is no space for the log.
    let store = Store::open_with(&data, &PoolSettings { margin: 1 << 60, ..settings(512) }).unwrap();
    let Backing::Sparse { reason } = store.backing() else { panic!("{:?}", store.backing()) };
    assert!(reason.contains("64 MiB"), "{reason}");
    store.create_volume("box-1", 1).unwrap();
    assert!(!data.join(".tmp-pool-1-0").exists() && !data.join("pool.xfs").exists());
}

/// A small disk of the test's own, whose space nothing else uses.
struct Disk(PathBuf);

impl Disk {
    fn new(dir: &Path, mib: u64) -> Self {
        let image = dir.join("disk.img");
        File::create(&image).unwrap().set_len(mib << 20).unwrap();
        let made = std::process::Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image).status().unwrap();
        assert!(made.success());
        let target = dir.join("disk");
        fs::create_dir(&target).unwrap();
        let device = losetup(&image);
        mount(Some(&device), &target, Some("ext4"), MsFlags::empty(), None::<&str>).unwrap();
        let detached = std::process::Command::new("losetup").arg("--detach").arg(&device).status().unwrap();
        assert!(detached.success());
        Self(target)
    }
}

fn losetup(image: &Path) -> PathBuf {
    let output = std::process::Command::new("losetup").args(["--find", "--show"]).arg(image).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim_end())
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// A loop device of the test's own, as a block device of the operator's.
struct Device {
    path: PathBuf,
    image: PathBuf,
}

impl Device {
    fn new(dir: &Path, mib: u64) -> Self {
        let image = dir.join("device.img");
        File::create(&image).unwrap().set_len(mib << 20).unwrap();
        Self { path: losetup(&image), image }
    }

    fn run(&self, program: &str, args: &[&str]) -> String {
        let output = std::process::Command::new(program).args(args).arg(&self.path).output().unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup").arg("--detach").arg(&self.path).status();
    }
}

#[test]
fn priv_a_device_with_a_foreign_signature_is_touched_only_by_force() {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let (data, device) = (data_dir(&dir), Device::new(dir.path(), 512));
    let settings = |force| PoolSettings { device: Some(device.path.clone()), force, ..PoolSettings::default() };
    let signature = |key| device.run("blkid", &["--probe", "--match-tag", key, "--output", "value"]);
    device.run("mkfs.ext4", &["-q", "-F", "-L", "theirs"]);
    let refused = Store::open_with(&data, &settings(false)).unwrap_err();
    let text = format!("{refused}: {}", refused.cause());
    assert!(text.contains("'theirs'") && text.contains(&device.path.display().to_string()), "{text}");
    assert_eq!((signature("TYPE").as_str(), signature("LABEL").as_str()), ("ext4", "theirs"), "it was touched");

    let store = Store::open_with(&data, &settings(true)).unwrap();
    assert_eq!(*store.backing(), Backing::Device(device.path.clone()));
    let (_, method) = store.create_volume("box-1", 1).unwrap();
    assert_eq!(method, CloneMethod::Reflink);
    let small = store.usage().unwrap().pool.unwrap().total;
    drop(store);
    assert_eq!((signature("TYPE").as_str(), signature("LABEL").as_str()), ("xfs", "icebox-pool"));

    // Ours is opened without force, and with force it is not formatted again; a device that has grown is used whole.
    File::options().write(true).open(&device.image).unwrap().set_len(1 << 30).unwrap();
    device.run("losetup", &["--set-capacity"]);
    for force in [false, true] {
        let store = Store::open_with(&data, &settings(force)).unwrap();
        assert_eq!(store.list().unwrap(), ["box-1"], "force: {force}");
        let grown = store.usage().unwrap().pool.unwrap().total;
        assert!(grown > small + (400 << 20), "{small}, then {grown}");
    }

    // A partition table is foreign too: one partition of the type 0x83 from sector 2048 on.
    device.run("wipefs", &["--all", "--quiet"]);
    let mut table = [0; 512];
    table[446 + 4] = 0x83;
    table[446 + 8..446 + 12].copy_from_slice(&2048_u32.to_le_bytes());
    table[446 + 12..446 + 16].copy_from_slice(&4096_u32.to_le_bytes());
    table[510..].copy_from_slice(&[0x55, 0xAA]);
    let opened = File::options().write(true).open(&device.path).unwrap();
    opened.write_all_at(&table, 0).unwrap();
    opened.sync_all().unwrap();
    let refused = Store::open_with(&data, &settings(false)).unwrap_err();
    assert!(refused.cause().to_string().contains("'dos'"), "{}", refused.cause());
    assert_eq!(signature("PTTYPE"), "dos", "it was touched");
}

#[test]
fn priv_a_pool_offers_what_its_disk_has() {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::new(dir.path(), 400);
    let data = disk.0.join("data");
    // Far larger than the disk.
    let store = Store::open_with(&data, &settings(20 << 10)).unwrap();
    assert_eq!(*store.backing(), Backing::File);
    let (inner, outer) = (free_bytes(store.root()), free_bytes(&disk.0));
    assert!(inner <= outer - MARGIN / 2, "the pool offers {inner}, the disk has {outer}");
    assert!(inner > outer / 2, "the pool offers {inner}, the disk has {outer}");

    // A file in the pool takes all that there is: it meets the end of the pool, and the disk keeps its margin.
    let mut filler = File::create(store.root().join("filler")).unwrap();
    let chunk = vec![1; 1 << 20];
    let error = (0..1024).find_map(|_| std::io::Write::write_all(&mut filler, &chunk).err()).unwrap();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    filler.sync_all().expect("what was accepted has a place on the disk");
    assert!(free_bytes(&disk.0) > MARGIN / 4, "{} bytes are left", free_bytes(&disk.0));
    assert!(store.free_bytes().unwrap() < 2 * MARGIN);
    drop(filler);
    fs::remove_file(store.root().join("filler")).unwrap();
    // What is freed in the pool is free outside, and can be had again. XFS discards with its next checkpoint.
    let pool = File::open(store.root()).unwrap();
    wait_until("the disk to have its space back", || {
        rustix::fs::syncfs(&pool).unwrap();
        free_bytes(&disk.0) > outer - (8 << 20)
    });
    drop(pool);

    // What others write to the disk is no longer the pool's.
    let stranger = File::create(disk.0.join("stranger")).unwrap();
    rustix::fs::fallocate(&stranger, rustix::fs::FallocateFlags::empty(), 0, outer / 2).unwrap();
    store.balance().unwrap();
    let (less, left) = (free_bytes(store.root()), free_bytes(&disk.0));
    assert!(less <= left - MARGIN / 2, "the pool offers {less}, the disk has {left}");
    drop(stranger);
    fs::remove_file(disk.0.join("stranger")).unwrap();
    wait_until("the pool to offer the space that came back", || {
        store.balance().unwrap();
        free_bytes(store.root()) > outer / 2
    });
    drop(store);
    wait_until("the pool's device to go", || loops_of(&data.join("pool.xfs")).is_empty());
}

#[test]
fn priv_a_pool_whose_disk_is_full_goes_on_when_space_is_back() {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::new(dir.path(), 400);
    let data = disk.0.join("data");
    let store = Store::open_with(&data, &settings(20 << 10)).unwrap();
    let (volume, _) = store.create_volume("box-1", 1).unwrap();
    let file = OpenOptions::new().write(true).open(volume.path()).unwrap();
    file.write_all_at(&vec![1; 1 << 20], 64 << 20).unwrap();
    file.sync_all().unwrap();

    // Others take the whole disk at once, faster than the balance.
    let stranger = File::create(disk.0.join("stranger")).unwrap();
    let all = free_bytes(&disk.0);
    rustix::fs::fallocate(&stranger, rustix::fs::FallocateFlags::empty(), 0, all).unwrap();
    let chunk = vec![2; 1 << 20];
    let failed =
        (0..32).any(|step| file.write_all_at(&chunk, (128 + step) << 20).and_then(|()| file.sync_all()).is_err());
    assert!(failed, "the disk was large enough");
    store.remove_volume("box-1").expect("a volume is removed on a full disk");
    drop(file);

    drop(stranger);
    fs::remove_file(disk.0.join("stranger")).unwrap();
    wait_until("the space to be back", || free_bytes(&disk.0) > all / 2);
    store.balance().unwrap();
    let (volume, _) = store.create_volume("box-2", 1).unwrap();
    let file = OpenOptions::new().write(true).open(volume.path()).unwrap();
    file.write_all_at(&vec![3; 64 << 20], 0).unwrap();
    file.sync_all().unwrap();
    volume.sync().unwrap();
    assert!(file.metadata().unwrap().blocks() * 512 >= 64 << 20);
    drop((file, volume, store));
    wait_until("the pool's device to go", || loops_of(&data.join("pool.xfs")).is_empty());
    // It was unmounted cleanly and is whole.
    let checked =
        std::process::Command::new("xfs_repair").args(["-n", "-f"]).arg(data.join("pool.xfs")).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}

/// What a racing pair of direct writes to shared blocks needs: CVE-2026-64600 lets the second one write to the blocks of
/// the *source*. Volumes on XFS are attached without direct I/O, so what a box does to its device is a buffered write
/// there.
#[test]
fn priv_racing_writes_to_a_clone_never_reach_its_template() {
    const ROUNDS: usize = 200;
    const BLOCK: u64 = 4096;
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_with(&data_dir(&dir), &settings(1024)).unwrap();
    let template = store.prepare_template(1).unwrap();
    // Where the template has data, a clone shares it.
    let source = File::open(&template).unwrap();
    let (mut offsets, mut position) = (Vec::new(), 0);
    while let Ok(start) = rustix::fs::seek(&source, rustix::fs::SeekFrom::Data(position)) {
        position = rustix::fs::seek(&source, rustix::fs::SeekFrom::Hole(start)).unwrap();
        offsets.extend((start / BLOCK..position.div_ceil(BLOCK)).map(|block| block * BLOCK));
    }
    let read = || -> Vec<Vec<u8>> {
        let of = |offset: &u64| {
            let mut block = vec![0; BLOCK as usize];
            source.read_exact_at(&mut block, *offset).unwrap();
            block
        };
        // Not what the page cache has of it: what is on the disk.
        rustix::fs::fadvise(&source, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        offsets.iter().map(of).collect()
    };
    let before = read();
    assert!(offsets.len() > 20);
    for round in 0..ROUNDS {
        let (volume, method) = store.create_volume("box-1", 1).unwrap();
        assert_eq!(method, CloneMethod::Reflink);
        let attached = volume.attach().unwrap();
        let (device, offsets) = (attached.device.clone(), &offsets);
        thread::scope(|scope| {
            for writer in 0..2_u8 {
                let device = &device;
                scope.spawn(move || {
                    let file = rustix::fs::open(
                        device,
                        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::DIRECT,
                        rustix::fs::Mode::empty(),
                    );
                    let file = File::from(file.unwrap());
                    // Direct I/O wants aligned memory.
                    let mut memory = vec![0xa0 + writer; 2 * BLOCK as usize];
                    let start = memory.as_ptr().align_offset(BLOCK as usize);
                    let block = &mut memory[start..start + BLOCK as usize];
                    for offset in offsets {
                        file.write_all_at(block, *offset).unwrap();
                    }
                });
            }
        });
        drop(attached);
        assert!(read() == before, "round {round}: the template has changed");
        store.remove_volume("box-1").unwrap();
    }
    drop(source);
    drop(store);
    Store::open_with(&data_dir(&dir), &settings(1024)).unwrap().prepare_template(1).expect("the checksum still fits");
}
