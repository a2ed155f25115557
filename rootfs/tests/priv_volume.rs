//! Volumes on real loop devices and real mounts. Needs root.
//!
//! Every test that mounts does so in a thread with a mount namespace of its own: when the thread ends, however it ends,
//! its mounts are gone and the loop devices clear themselves.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use icebox_rootfs::{Check, CloneMethod, ErrorKind, Grown, Store, Volume};
use nix::mount::{MsFlags, mount, umount};
use nix::sched::{CloneFlags, unshare};

/// A passing test never reaches it; long, since the machine may be emulated.
const DETACH_DEADLINE: Duration = Duration::from_secs(60);

/// Its number in `linux/capability.h`.
const CAP_SYS_RESOURCE: u32 = 24;

fn require_root() {
    assert!(rustix::process::geteuid().is_root(), "this test attaches loop devices and mounts: run it as root");
}

/// Runs `body` in a thread with a private mount namespace.
fn with_own_mounts(body: impl FnOnce() + Send + 'static) {
    require_root();
    let result = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).expect("unshare the mount namespace");
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("make the mounts private");
        body();
    })
    .join();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

fn mount_ext4(device: &Path, target: &Path) {
    fs::create_dir_all(target).unwrap();
    mount(Some(device), target, Some("ext4"), MsFlags::MS_NODEV | MsFlags::MS_NOSUID, Some("noinit_itable"))
        .unwrap_or_else(|errno| panic!("mount {} on {}: {errno}", device.display(), target.display()));
}

/// Loop devices that have a file below `dir` behind them.
fn loops_below(dir: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/sys/block").unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        // A device may go away between listing and reading.
        let backing = fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).unwrap_or_default();
        if Path::new(backing.trim_end()).starts_with(dir) {
            found.insert(name);
        }
    }
    found
}

/// The kernel detaches when the last reference goes; a device monitor of the machine may hold one for a moment.
fn assert_no_loops(dir: &Path) {
    let deadline = Instant::now() + DETACH_DEADLINE;
    while !loops_below(dir).is_empty() {
        assert!(Instant::now() < deadline, "loop devices left: {:?}", loops_below(dir));
        thread::yield_now();
    }
}

/// Compares only ranges in which one of them has data: volumes consist mostly of holes.
fn assert_same_bytes(left: &Path, right: &Path) {
    let files = [left, right].map(|path| File::open(path).unwrap());
    assert_eq!(files[0].metadata().unwrap().len(), files[1].metadata().unwrap().len());
    for extent in files.iter().flat_map(extents_of) {
        let [left_bytes, right_bytes] = files.each_ref().map(|file| read_extent(file, &extent));
        assert!(left_bytes == right_bytes, "{} and {} differ in {extent:?}", left.display(), right.display());
    }
}

/// Where a file has data; see `SEEK_DATA` in lseek(2).
fn extents_of(file: &File) -> Vec<Range<u64>> {
    use rustix::fs::{SeekFrom, seek};
    let (mut extents, mut position) = (Vec::new(), 0);
    // ENXIO: no data follows.
    while let Ok(start) = seek(file, SeekFrom::Data(position)) {
        position = seek(file, SeekFrom::Hole(start)).unwrap();
        extents.push(start..position);
    }
    extents
}

fn read_extent(file: &File, extent: &Range<u64>) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(extent.end - extent.start).unwrap()];
    file.read_exact_at(&mut bytes, extent.start).unwrap();
    bytes
}

#[test]
fn priv_a_volume_is_its_template_and_keeps_what_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_owned();
    with_own_mounts(move || {
        let store = Store::open(&root.join("data")).unwrap();
        let template = store.prepare_template(1).unwrap();
        let (volume, _) = store.create_volume("box-1", 1).unwrap();
        assert_same_bytes(&template, volume.path());

        let target = root.join("mnt");
        let attached = volume.attach().unwrap();
        mount_ext4(&attached.device, &target);
        for name in ["upper", "work"] {
            let metadata = fs::metadata(target.join(name)).unwrap();
            assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (0, 0, 0o755), "{name}");
        }
        fs::write(target.join("upper/note"), b"kept").unwrap();
        drop(attached);
        assert_eq!(loops_below(&root).len(), 1, "the mount must keep the device");
        umount(&target).unwrap();
        assert_no_loops(&root);

        let attached = store.volume("box-1").unwrap().unwrap().attach().unwrap();
        mount_ext4(&attached.device, &target);
        assert_eq!(fs::read(target.join("upper/note")).unwrap(), b"kept");
        umount(&target).unwrap();
        drop(attached);
        assert_no_loops(&root);
        let check = Command::new("e2fsck").args(["-fn".as_ref(), volume.path().as_os_str()]).output().unwrap();
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    });
}

#[test]
fn priv_a_full_volume_is_full_inside_only() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_owned();
    with_own_mounts(move || {
        let store = Store::open(&root.join("data")).unwrap();
        let mounted: Vec<PathBuf> = ["full", "other"]
            .into_iter()
            .map(|id| {
                let (volume, _) = store.create_volume(id, 1).unwrap();
                let (attached, target) = (volume.attach().unwrap(), root.join(id));
                mount_ext4(&attached.device, &target);
                target
            })
            .collect();
        let mut big = File::create(mounted[0].join("upper/big")).unwrap();
        let error = (0..64)
            .find_map(|step| {
                let part = 32 << 20;
                rustix::fs::fallocate(&big, rustix::fs::FallocateFlags::empty(), step * part, part).err()
            })
            .expect("1 GiB took 2 GiB");
        assert_eq!(error, rustix::io::Errno::NOSPC);
        big.seek(SeekFrom::End(0)).unwrap();
        let chunk = vec![1; 1 << 20];
        let error = (0..64).find_map(|_| big.write_all(&chunk).and_then(|()| big.sync_data()).err()).unwrap();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
        // The whole size is usable: nothing is reserved.
        assert!(big.metadata().unwrap().blocks() * 512 > 900 << 20);
        drop(big);

        fs::write(mounted[1].join("upper/small"), vec![2; 4 << 20]).unwrap();
        fs::write(root.join("data/host"), b"x").unwrap();
        for target in mounted {
            umount(&target).unwrap();
        }
        assert!(store.volume("full").unwrap().unwrap().allocated_bytes().unwrap() <= (1 << 30) + (1 << 20));
        assert_no_loops(&root);
    });
}

#[test]
fn priv_two_hundred_attachments_in_parallel_leave_none() {
    const THREADS: usize = 8;
    const ROUNDS: usize = 25;
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let held: Arc<Mutex<BTreeSet<PathBuf>>> = Arc::default();
    let used: Arc<Mutex<BTreeSet<PathBuf>>> = Arc::default();
    let workers: Vec<_> = (0..THREADS)
        .map(|number| {
            let (volume, _) = store.create_volume(&format!("box-{number}"), 1).unwrap();
            let (held, used) = (Arc::clone(&held), Arc::clone(&used));
            thread::spawn(move || {
                for _ in 0..ROUNDS {
                    let attached = volume.attach().unwrap();
                    used.lock().unwrap().insert(attached.device.clone());
                    assert!(held.lock().unwrap().insert(attached.device.clone()), "one device was given out twice");
                    let size = File::open(&attached.device).unwrap().seek(SeekFrom::End(0)).unwrap();
                    assert_eq!(size, 1 << 30);
                    assert!(held.lock().unwrap().remove(&attached.device));
                    drop(attached);
                }
            })
        })
        .collect();
    for worker in workers {
        worker.join().unwrap();
    }
    // Devices are taken by their number for a while, then the first free one again.
    let used = used.lock().unwrap().len();
    assert!(used < THREADS * ROUNDS * 3 / 4, "{used} devices for {} attachments", THREADS * ROUNDS);
    assert_no_loops(dir.path());
}

#[test]
fn priv_a_volume_is_attached_once_at_a_time() {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let (volume, _) = store.create_volume("box-1", 1).unwrap();
    assert!(!volume.in_use().unwrap());
    let first = volume.attach().unwrap();
    assert!(volume.in_use().unwrap());
    assert_eq!(volume.attach().unwrap_err().kind(), ErrorKind::InUse);
    assert_eq!(loops_below(dir.path()).len(), 1);

    // The waiting thread gets the volume as soon as the first attachment is gone.
    let waiting = volume.clone();
    let second = thread::spawn(move || waiting.attach().map(|attached| attached.device.clone()));
    drop(first);
    second.join().unwrap().unwrap();
    assert_no_loops(dir.path());
    assert!(!volume.in_use().unwrap());
}

#[test]
fn priv_removing_a_mounted_volume_frees_it_after_the_mount() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_owned();
    with_own_mounts(move || {
        let store = Store::open(&root.join("data")).unwrap();
        let (volume, _) = store.create_volume("box-1", 1).unwrap();
        let attached = volume.attach().unwrap();
        let target = root.join("mnt");
        mount_ext4(&attached.device, &target);
        drop(attached);
        store.remove_volume("box-1").unwrap();
        assert!(store.volume("box-1").unwrap().is_none());
        fs::write(target.join("upper/still"), b"works").unwrap();
        umount(&target).unwrap();
        assert_no_loops(&root);
    });
}

/// Every byte of the volume that is not a hole.
fn data_of(volume: &Volume) -> Vec<u8> {
    let file = File::open(volume.path()).unwrap();
    extents_of(&file).iter().flat_map(|extent| read_extent(&file, extent)).collect()
}

#[test]
fn priv_a_new_volume_shows_nothing_of_a_deleted_one() {
    const MARKER: &[u8] = b"tenant-secret-marker";
    const ROUNDS: usize = 50;
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let text = MARKER.repeat(4096 / MARKER.len());
    for round in 0..ROUNDS {
        let (volume, _) = store.create_volume("box-1", 1).unwrap();
        let data = data_of(&volume);
        assert!(!data.windows(MARKER.len()).any(|window| window == MARKER), "round {round}");
        let attached = volume.attach().unwrap();
        let mut device = OpenOptions::new().write(true).open(&attached.device).unwrap();
        device.seek(SeekFrom::Start(200 << 20)).unwrap();
        for _ in 0..64 {
            device.write_all(&text).unwrap();
        }
        device.sync_all().unwrap();
        drop((device, attached));
        assert!(data_of(&volume).windows(MARKER.len()).any(|window| window == MARKER), "the marker was not written");
        store.remove_volume("box-1").unwrap();
    }
    assert_no_loops(dir.path());
}

/// An XFS of its own, mounted at `target`; it goes with the mount namespace.
fn mount_xfs_pool(image: &Path, target: &Path) {
    File::create(image).unwrap().set_len(1 << 30).unwrap();
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program)
            .args(arguments)
            .output()
            .unwrap_or_else(|error| panic!("run {program} (packages xfsprogs and mount): {error}"));
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    };
    fs::create_dir_all(target).unwrap();
    let (image, target) = (image.to_str().unwrap(), target.to_str().unwrap());
    run("mkfs.xfs", &["-q", "-m", "reflink=1", image]);
    run("mount", &["-o", "loop", image, target]);
}

#[test]
fn priv_on_xfs_volumes_are_reflinks_and_the_template_never_changes() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_owned();
    with_own_mounts(move || {
        let pool = root.join("pool");
        mount_xfs_pool(&root.join("pool.img"), &pool);
        let data = pool.join("data");
        let store = Store::open(&data).unwrap();
        let template = store.prepare_template(10).unwrap();
        let before = data_of_path(&template);
        let (volume, method) = store.create_volume("box-1", 10).unwrap();
        assert_eq!(method, CloneMethod::Reflink);
        let attached = volume.attach().unwrap();
        // Racing direct writes to shared blocks are what CVE-2026-64600 needs.
        assert!(!attached.direct_io);
        let target = root.join("mnt");
        mount_ext4(&attached.device, &target);
        fs::write(target.join("upper/note"), vec![7; 8 << 20]).unwrap();
        umount(&target).unwrap();
        drop(attached);
        assert_no_loops(&pool);
        assert!(before == data_of_path(&template), "the template changed");
        drop(store);
        Store::open(&data).unwrap().prepare_template(10).expect("the checksum still fits");
        umount(&pool).unwrap();
        assert_no_loops(&root);
    });
}

fn data_of_path(path: &Path) -> Vec<u8> {
    let mut content = Vec::new();
    // The first MiB holds superblock, descriptors and bitmaps: what every mount writes.
    File::open(path).unwrap().take(1 << 20).read_to_end(&mut content).unwrap();
    content
}

#[test]
fn priv_direct_io_is_used_where_it_is_safe() {
    const EXT4_SUPER_MAGIC: i64 = 0xef53;
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let (volume, method) = store.create_volume("box-1", 5).unwrap();
    let attached = volume.attach().unwrap();
    let magic = rustix::fs::fstatfs(File::open(dir.path()).unwrap()).unwrap().f_type as i64;
    if magic == EXT4_SUPER_MAGIC {
        assert_eq!(method, CloneMethod::SparseCopy);
        assert!(attached.direct_io);
    }
    let name = attached.device.file_name().unwrap().to_str().unwrap();
    let read = |what: &str| fs::read_to_string(format!("/sys/block/{name}/{what}")).unwrap().trim().to_owned();
    assert_eq!(read("loop/autoclear"), "1");
    assert_eq!(read("loop/dio") == "1", attached.direct_io);
    assert_eq!(read("queue/logical_block_size"), "4096");
    assert!(rustix::io::fcntl_getfd(attached.as_fd()).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    drop(attached);
    assert_no_loops(dir.path());
}

/// Bytes that the file system of `target` has for files.
fn size_of(target: &Path) -> u64 {
    let found = rustix::fs::statvfs(target).unwrap();
    found.f_blocks * found.f_frsize
}

fn assert_whole(volume: &Volume) {
    let check = Command::new("e2fsck").args(["-fn".as_ref(), volume.path().as_os_str()]).output().unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
}

#[test]
fn priv_a_volume_grows_at_rest_and_keeps_its_content() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_owned();
    with_own_mounts(move || {
        let store = Store::open(&root.join("data")).unwrap();
        let (volume, _) = store.create_volume("box-1", 1).unwrap();
        let target = root.join("mnt");
        let mounted = |volume: &Volume| {
            let attached = volume.attach().unwrap();
            mount_ext4(&attached.device, &target);
        };
        mounted(&volume);
        fs::write(target.join("upper/note"), b"kept").unwrap();
        umount(&target).unwrap();
        assert_eq!(volume.grow(20).unwrap(), Grown::Done);
        assert_eq!(volume.size_bytes().unwrap(), 20 << 30);
        assert_whole(&volume);
        mounted(&volume);
        assert_eq!(fs::read(target.join("upper/note")).unwrap(), b"kept");
        assert!(size_of(&target) > 19 << 30, "{}", size_of(&target));
        umount(&target).unwrap();
        assert_eq!(volume.grow(19).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(volume.grow(2000).unwrap_err().kind(), ErrorKind::InvalidInput);

        // A crash between the growth of the image and that of the file system.
        OpenOptions::new().write(true).open(volume.path()).unwrap().set_len(30 << 30).unwrap();
        volume.check(Check::IfMarked).unwrap();
        assert_whole(&volume);
        mounted(&volume);
        assert!(size_of(&target) > 29 << 30, "{}", size_of(&target));
        umount(&target).unwrap();
        assert_no_loops(&root);
    });
}

#[test]
fn priv_a_mounted_volume_grows() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_owned();
    with_own_mounts(move || {
        let store = Store::open(&root.join("data")).unwrap();
        let (volume, _) = store.create_volume("box-1", 1).unwrap();
        let (attached, target) = (volume.attach().unwrap(), root.join("mnt"));
        mount_ext4(&attached.device, &target);
        drop(attached);
        fs::write(target.join("upper/note"), b"kept").unwrap();
        let open = File::open(target.join("upper/note")).unwrap();
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
        let may = u64::from_str_radix(effective.trim(), 16).unwrap() & (1 << CAP_SYS_RESOURCE) != 0;
        // Within its descriptors, past them (64 groups of 128 MiB each), and far past them.
        for size_gib in [2, 20, 100] {
            let grown = volume.grow(size_gib).unwrap();
            if may {
                assert_eq!(grown, Grown::Done);
                assert!(size_of(&target) > (u64::from(size_gib) << 30) * 9 / 10, "{}", size_of(&target));
            } else {
                // The kernel asks for this capability; without it the growth waits for the next use.
                assert_eq!(grown, Grown::AtNextUse { lacks_capability: true });
            }
        }
        let occupied = volume.allocated_bytes().unwrap();
        println!("{occupied} bytes are occupied");
        fs::write(target.join("upper/more"), vec![1; 1 << 20]).unwrap();
        drop(open);
        umount(&target).unwrap();
        assert_no_loops(&root);
        volume.check(Check::IfMarked).unwrap();
        assert_whole(&volume);
        let attached = volume.attach().unwrap();
        mount_ext4(&attached.device, &target);
        assert!(size_of(&target) > 90 << 30, "{}", size_of(&target));
        assert_eq!(fs::read(target.join("upper/note")).unwrap(), b"kept");
        umount(&target).unwrap();
        drop(attached);
        assert_no_loops(&root);
    });
}
