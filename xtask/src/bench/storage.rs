//! Disks of boxes: the time until a new one is mounted, its flushes, and its throughput, beside what a machine has without
//! Icebox.
//!
//! All of it is mounted in a mount namespace of the measuring thread, so nothing is left if the benchmark ends early.
//! What a box adds is the overlay above its disk, which passes these calls on to the same files.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use icebox_rootfs::{Backing, PoolSettings, Store};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use super::context::{Context, WARM_UP_ROUNDS, failed, make_dir, shown};
use super::stats::{Case, Report};
use crate::error::{Result, While};
use crate::run as program;

const ROUNDS: usize = 50;
const FLUSHES: usize = 200;
const SEQUENTIAL_ROUNDS: usize = 5;
const SEQUENTIAL_MIB: usize = 512;
const SIZE_GIB: u32 = 10;
/// A new disk is mounted within this.
const MOUNTED_MILLISECONDS: f64 = 6.0;
/// Throughput, at least this part of the host's.
const SEQUENTIAL_SHARE: f64 = 0.8;
/// As the disks of boxes are mounted.
const OPTIONS: &str = "discard,noinit_itable";

const POOL: &str = "disk in a pool";
const COPY: &str = "disk as a copy";
const MKFS: &str = "mkfs + losetup + mount";
const HOST: &str = "host's file system";
const DIRECT: &str = "ext4 on a direct loop";

/// `cargo xtask bench storage`.
pub(super) fn storage(context: &Context) -> Result<Vec<Report>> {
    std::thread::scope(|scope| {
        let measuring = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS)
                .map_err(io::Error::from)
                .or_fail("make", "a mount namespace")?;
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
                .map_err(io::Error::from)
                .or_fail("make private", "/")?;
            measure(context)
        });
        measuring.join().map_err(|_| failed("measure", "storage", "the thread panicked"))?
    })
}

fn measure(context: &Context) -> Result<Vec<Report>> {
    let dir = context.scratch.join("storage");
    let open = |name: &str, off| {
        let settings = PoolSettings { off, margin: 256 << 20, ..PoolSettings::default() };
        Store::open_with(&dir.join(name), &settings).map_err(io::Error::other).or_fail("open", name)
    };
    make_dir(&dir)?;
    let (pool, copies) = (open("pool", false)?, open("copies", true)?);
    let mut reports = vec![mounts(context, &dir, &pool, &copies)?];
    let places = [(HOST, dir.join("host")), (DIRECT, mount_direct(&dir)?), (POOL, mount_volume(&pool, &dir)?)];
    make_dir(&places[0].1)?;
    reports.push(flushes(context, &places)?);
    reports.extend(sequential(&places)?);
    for (_, place) in &places[1..] {
        unmount(place)?;
    }
    let reason = match pool.backing() {
        Backing::File => "the pool is an XFS in a file of the host's file system".to_owned(),
        other => format!("there is no pool in a file: {other:?}"),
    };
    let last = reports.len() - 1;
    reports[last] = reports[last].clone().note(reason);
    Ok(reports)
}

/// From nothing to a mounted disk.
fn mounts(context: &Context, dir: &Path, pool: &Store, copies: &Store) -> Result<Report> {
    let target = dir.join("mounted");
    make_dir(&target)?;
    let rounds = context.rounds.unwrap_or(ROUNDS);
    let mut cases = [POOL, COPY, MKFS].map(|name| Case::new(name, ""));
    for round in 0..rounds + WARM_UP_ROUNDS {
        let times = [volume_time(pool, &target)?, volume_time(copies, &target)?, mkfs_time(dir, &target)?];
        if round >= WARM_UP_ROUNDS {
            cases.iter_mut().zip(times).for_each(|(case, time)| case.add(time));
        }
    }
    let reached = cases[0].median();
    let title = format!("a new disk of {SIZE_GIB} GiB, until it is mounted");
    Ok(Report::new(title, "ms", cases.into()).ratio_to(MKFS).mark(
        "median of a disk in a pool, ms",
        reached,
        MOUNTED_MILLISECONDS,
    ))
}

fn volume_time(store: &Store, target: &Path) -> Result<Duration> {
    let began = Instant::now();
    let (volume, _) = store.create_volume("bench", SIZE_GIB).map_err(io::Error::other).or_fail("make", "a volume")?;
    let attached = volume.attach().map_err(io::Error::other).or_fail("attach", "a volume")?;
    mount_ext4(&attached.device, target)?;
    let took = began.elapsed();
    unmount(target)?;
    drop(attached);
    store.remove_volume("bench").map_err(io::Error::other).or_fail("remove", "a volume")?;
    Ok(took)
}

/// What a script does that makes a disk each time.
fn mkfs_time(dir: &Path, target: &Path) -> Result<Duration> {
    let image = dir.join("mkfs.img");
    let began = Instant::now();
    make_image(&image)?;
    program::quiet(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image))?;
    let device = losetup(&image)?;
    mount_ext4(&device, target)?;
    let took = began.elapsed();
    unmount(target)?;
    program::quiet(Command::new("losetup").arg("--detach").arg(&device))?;
    fs::remove_file(&image).or_fail("remove", shown(&image))?;
    Ok(took)
}

fn make_image(path: &Path) -> Result<()> {
    let file = File::create(path).or_fail("make", shown(path))?;
    file.set_len(u64::from(SIZE_GIB) << 30).or_fail("make", shown(path))
}

fn losetup(image: &Path) -> Result<PathBuf> {
    let mut command = Command::new("losetup");
    command.args(["--find", "--show", "--direct-io=on", "--sector-size=4096"]).arg(image);
    Ok(PathBuf::from(program::quiet(&mut command)?.trim()))
}

fn mount_ext4(device: &Path, target: &Path) -> Result<()> {
    mount(Some(device), target, Some("ext4"), MsFlags::MS_NODEV, Some(OPTIONS))
        .map_err(io::Error::from)
        .or_fail("mount", shown(device))
}

fn unmount(target: &Path) -> Result<()> {
    umount2(target, MntFlags::empty()).map_err(io::Error::from).or_fail("unmount", shown(target))
}

fn mount_direct(dir: &Path) -> Result<PathBuf> {
    let (image, target) = (dir.join("direct.img"), dir.join("direct"));
    make_image(&image)?;
    make_dir(&target)?;
    program::quiet(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image))?;
    let device = losetup(&image)?;
    mount_ext4(&device, &target)?;
    // The mount keeps it.
    program::quiet(Command::new("losetup").arg("--detach").arg(&device))?;
    Ok(target)
}

fn mount_volume(store: &Store, dir: &Path) -> Result<PathBuf> {
    let target = dir.join("volume");
    make_dir(&target)?;
    let (volume, _) =
        store.create_volume("measured", SIZE_GIB).map_err(io::Error::other).or_fail("make", "a volume")?;
    let attached = volume.attach().map_err(io::Error::other).or_fail("attach", "a volume")?;
    mount_ext4(&attached.device, &target)?;
    Ok(target)
}

/// Appends 4 KiB and flushes.
fn flushes(context: &Context, places: &[(&'static str, PathBuf)]) -> Result<Report> {
    let rounds = context.rounds.map_or(FLUSHES, |rounds| rounds * 4);
    let mut cases: Vec<Case> = places.iter().map(|(name, _)| Case::new(*name, "")).collect();
    let open = |(_, place): &(_, PathBuf)| File::create(place.join("appended")).or_fail("make", shown(place));
    let mut files = places.iter().map(open).collect::<Result<Vec<_>>>()?;
    let block = [7; 4096];
    for round in 0..rounds + WARM_UP_ROUNDS {
        for (file, case) in files.iter_mut().zip(&mut cases) {
            let began = Instant::now();
            file.write_all(&block).and_then(|()| file.sync_all()).or_fail("write", "a block")?;
            if round >= WARM_UP_ROUNDS {
                case.add(began.elapsed());
            }
        }
    }
    let ratio = cases[2].median() / cases[1].median();
    Ok(Report::new("4 KiB appended and flushed (fsync)", "ms", cases).ratio_to(DIRECT).mark(
        "disk in a pool / ext4 on a direct loop",
        ratio,
        1.0,
    ))
}

/// Writes a file that was written before, with a flush at the end, and reads it from the disk.
fn sequential(places: &[(&'static str, PathBuf)]) -> Result<Vec<Report>> {
    let cases = || places.iter().map(|(name, _)| Case::new(*name, "")).collect::<Vec<Case>>();
    let (mut written, mut read) = (cases(), cases());
    let mut chunk = vec![7; 1 << 20];
    #[expect(clippy::cast_precision_loss, reason = "it is small")]
    let rate = |took: Duration| SEQUENTIAL_MIB as f64 / took.as_secs_f64();
    for round in 0..=SEQUENTIAL_ROUNDS {
        for (index, (_, place)) in places.iter().enumerate() {
            let path = place.join("sequential");
            let mut file = File::options().create(true).truncate(false).write(true).open(&path);
            let began = Instant::now();
            let done = file.as_mut().map_err(|error| io::Error::from(error.kind())).and_then(|file| {
                (0..SEQUENTIAL_MIB).try_for_each(|_| file.write_all(&chunk))?;
                file.sync_all()
            });
            done.or_fail("write", shown(&path))?;
            let wrote = began.elapsed();
            fs::write("/proc/sys/vm/drop_caches", "3").or_fail("write", "/proc/sys/vm/drop_caches")?;
            let mut file = File::open(&path).or_fail("open", shown(&path))?;
            let began = Instant::now();
            (0..SEQUENTIAL_MIB).try_for_each(|_| file.read_exact(&mut chunk)).or_fail("read", shown(&path))?;
            // The first round allocates.
            if round > 0 {
                written[index].add_value(rate(wrote));
                read[index].add_value(rate(began.elapsed()));
            }
        }
    }
    let report = |title: &str, cases: Vec<Case>| {
        // A mark is a figure that should be small.
        let share = SEQUENTIAL_SHARE * cases[0].median() / cases[2].median();
        Report::new(title, "MiB/s", cases).ratio_to(HOST).mark("0.8 x host / disk in a pool", share, 1.0)
    };
    Ok(vec![report("512 MiB written and flushed", written), report("512 MiB read from the disk", read)])
}
