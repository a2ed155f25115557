//! The replay: the guest's disk as it was at its flushes, and whether what was acknowledged is on it.
//!
//! The recording is applied to a copy of the disk as it was at first. That copy lies on an XFS of its own, so that each look
//! is at a clone of it, which is mounted as after a power cut (the kernel replays the journals), and thrown away. All
//! mounts are in a mount namespace of this process.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::model::Known;
use crate::recording::{self, Look, Recording};
use crate::{report, rest};

/// Of the file system that the copies lie on. It is sparse.
const GROUND_BYTES: u64 = 64 << 30;
/// After so many looks at which something is wrong, the others are left out.
const WRONG_LOOKS_MAX: usize = 5;

/// A file system on a loop device, mounted until this is dropped.
#[derive(Debug)]
pub(crate) struct Mounted(PathBuf);

impl Mounted {
    /// Mounts the file at a directory, which is made. An error is what mount(8) says.
    pub(crate) fn new(kind: &str, options: &str, file: &Path, at: &Path) -> Result<Self, String> {
        fs::create_dir_all(at).expect("make a mount point");
        let mut command = Command::new("mount");
        let output = command.args(["-t", kind, "-o", options]).arg(file).arg(at).output().expect("run mount");
        if output.status.success() {
            Ok(Self(at.to_owned()))
        } else {
            Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
        }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::empty()).expect("unmount");
    }
}

/// Looks at the recording in this directory, at most so many times. What is wrong is reported.
pub(crate) fn replay(dir: &Path, count: usize) {
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("make the mounts private");
    let recording = Recording::open(dir);
    let events = &recording.events;
    let mut looks = recording::boundaries(events, count);
    let (all, usual) = (recording::boundaries(events, usize::MAX).len(), looks.len());
    looks.extend(recording::forgetful(events));
    looks.sort_unstable();
    println!("{usual} of {all} flushes are looked at, those before acknowledgements first");

    let ground = ground(dir);
    let base = ground.root().join("base.img");
    let copied = Command::new("cp").arg("--sparse=always").arg(dir.join("base.img")).arg(&base).status();
    assert!(copied.expect("run cp").success(), "the disk cannot be copied");
    let disk = File::options().read(true).write(true).open(&base).expect("open the disk");
    let (began, mut done, mut tally) = (Instant::now(), 0, Tally::default());
    for look in looks {
        recording.apply(done..look.at + 1, &disk);
        done = look.at + 1;
        let known = Known::from_lines(&recording::told(events, look)).expect("what was told");
        let cut = ground.root().join("cut.img");
        let clone = File::create(&cut).expect("make a clone");
        rustix::fs::ioctl_ficlone(&clone, &disk).expect("clone the disk");
        drop(clone);
        let found = rest::look(&cut, &dir.join("mounts"), &known);
        fs::remove_file(&cut).expect("remove the clone");
        tally.take(look, found);
        if tally.wrong_looks >= WRONG_LOOKS_MAX {
            println!("the other looks are left out");
            break;
        }
    }
    println!("{:.2} s for each look", began.elapsed().as_secs_f64() / f64::from(tally.looks.max(1)));
    tally.conclude();
}

/// A file system that can clone, for the copies.
fn ground(dir: &Path) -> Mounted {
    let file = dir.join("ground.xfs");
    File::create(&file).and_then(|made| made.set_len(GROUND_BYTES)).expect("make a file system");
    let made = Command::new("mkfs.xfs").args(["-q", "-m", "reflink=1"]).arg(&file).output().expect("run mkfs.xfs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let mounted = Mounted::new("xfs", "loop", &file, &dir.join("ground"));
    mounted.unwrap_or_else(|why| panic!("the replay needs an XFS with reflink in the kernel: {why}"))
}

/// What the looks have found.
#[derive(Debug, Default)]
struct Tally {
    looks: u32,
    facts: usize,
    wrong_looks: usize,
    /// Looks at a forgetful disk, and the first thing that was wrong at each of them.
    forgetful: usize,
    missed: Vec<String>,
}

impl Tally {
    fn take(&mut self, look: Look, found: rest::Found) {
        self.looks += 1;
        if look.forgets {
            self.forgetful += 1;
            self.missed.extend(found.wrong.into_iter().next());
            return;
        }
        self.facts += found.facts;
        self.wrong_looks += usize::from(!found.wrong.is_empty());
        for wrong in found.wrong {
            report::violation(&format!("after the flush at entry {}: {wrong}", look.at));
        }
    }

    fn conclude(self) {
        let (found, of) = (self.missed.len(), self.forgetful);
        println!("of {of} looks at a disk that ignores flushes, {found} find it: {:?}", self.missed.first());
        if self.wrong_looks == 0 && found == 0 {
            report::violation("no look finds that the disk ignores flushes: none would see one that is missing");
        }
        report::checked(self.facts);
    }
}
