//! The pool of an `iceboxd`, as seen from outside: a file system that is mounted at no place.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, umount2};

/// The pool's file in a data directory.
pub const POOL_FILE: &str = "pool.xfs";

/// Loop devices of a data directory: (device, file). A file of the pool is shown as `<data dir>/pool/<path in it>`. The
/// pool's own device is not among them.
pub fn loops_below(data_dir: &Path) -> BTreeSet<(String, String)> {
    let (mut found, pool) = (BTreeSet::new(), device_of(data_dir));
    for (name, file) in attached() {
        if Path::new(&file).starts_with(data_dir) {
            if Some(&name) != pool.as_ref().map(|(name, _)| name) {
                found.insert((name, file));
            }
        } else if let Some((_, number)) = &pool
            && backing_device(&name).as_ref() == Some(number)
        {
            found.insert((name, format!("{}/pool{file}", data_dir.display())));
        }
    }
    found
}

/// The name and the number (`7:1`) of the loop device that has the pool's file behind it.
pub fn device_of(data_dir: &Path) -> Option<(String, String)> {
    let file = data_dir.join(POOL_FILE);
    let (name, _) = attached().into_iter().find(|(_, backing)| Path::new(backing) == file)?;
    let number = fs::read_to_string(format!("/sys/block/{name}/dev")).ok()?;
    Some((name, number.trim().to_owned()))
}

/// Loop devices with the paths of their files.
fn attached() -> Vec<(String, String)> {
    let Ok(entries) = fs::read_dir("/sys/block") else { return Vec::new() };
    let of = |entry: fs::DirEntry| {
        let file = fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
        Some((entry.file_name().to_string_lossy().into_owned(), file.trim_end().to_owned()))
    };
    entries.flatten().filter_map(of).collect()
}

/// The number of the device of the file system that the file behind a loop device lies on. The loop driver tells it by an
/// ioctl only.
fn backing_device(name: &str) -> Option<String> {
    let device = format!("/dev/{name}");
    let arguments = ["--list", "--noheadings", "--output", "BACK-MAJ:MIN", &device];
    let output = Command::new("losetup").args(arguments).output().expect("run losetup");
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (!text.is_empty()).then_some(text)
}

/// The root of the pool, through a descriptor of the running `iceboxd`.
pub fn root_of(pid: i32, data_dir: &Path) -> Option<PathBuf> {
    let (_, number) = device_of(data_dir)?;
    let (major, minor) = number.split_once(':')?;
    let wanted = nix::sys::stat::makedev(major.parse().ok()?, minor.parse().ok()?);
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let is_root = |path: &PathBuf| {
        fs::read_link(path).is_ok_and(|target| target == Path::new("/"))
            && fs::metadata(path).is_ok_and(|found| found.dev() == wanted)
    };
    descriptors.flatten().map(|entry| entry.path()).find(is_root)
}

/// Where the disks of an `iceboxd` lie: in the pool, or in the data directory.
pub fn volumes_of(pid: i32, data_dir: &Path) -> PathBuf {
    root_of(pid, data_dir).unwrap_or_else(|| data_dir.to_owned()).join("volumes")
}

/// The pool of an `iceboxd` that has stopped, mounted until this is dropped. Without a pool it is the data directory.
#[derive(Debug)]
pub struct Opened {
    root: PathBuf,
    mounted: bool,
}

impl Opened {
    /// Mounts it at a directory beside the data directory.
    pub fn of(data_dir: &Path) -> Self {
        let file = data_dir.join(POOL_FILE);
        if File::open(&file).is_err() {
            return Self { root: data_dir.to_owned(), mounted: false };
        }
        let root = data_dir.with_file_name("pool");
        fs::create_dir_all(&root).expect("make a mount point");
        let mounted = Command::new("mount").args(["-t", "xfs", "-o", "loop"]).arg(&file).arg(&root).output();
        let mounted = mounted.expect("run mount");
        assert!(mounted.status.success(), "{}", String::from_utf8_lossy(&mounted.stderr));
        Self { root, mounted: true }
    }

    /// The directory of the disks.
    pub fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if self.mounted {
            umount2(&self.root, MntFlags::empty()).expect("unmount the pool");
            fs::remove_dir(&self.root).expect("remove the mount point");
        }
    }
}
