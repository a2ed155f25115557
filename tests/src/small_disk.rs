//! A small disk of the test's own, to be filled: a file system on a loop device, mounted where an `iceboxd` keeps its data.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, umount2};

use crate::daemon::{scratch_dir, unique};

/// A mounted file system. Dropping it unmounts and removes it, so it must outlive the daemon that uses it.
#[derive(Debug)]
pub struct SmallDisk {
    name: String,
    home: PathBuf,
    image: PathBuf,
}

impl SmallDisk {
    /// An ext4 of `mib` MiB.
    pub fn new(mib: u64) -> Self {
        let name = unique("icebox-disk");
        let home = scratch_dir().join(&name);
        let image = scratch_dir().join(format!("{name}.img"));
        let disk = Self { home, image, name };
        fs::create_dir_all(disk.data()).expect("make the mount point");
        File::create(&disk.image).and_then(|file| file.set_len(mib << 20)).expect("make the image");
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&disk.image));
        run(Command::new("mount").args(["-o", "loop"]).arg(&disk.image).arg(disk.data()));
        disk
    }

    /// A name for the daemon.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory above the data directory; it is on the machine's own disk.
    pub fn home(&self) -> &Path {
        &self.home
    }

    fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    /// Free bytes, without those that are reserved for root.
    pub fn free_bytes(&self) -> u64 {
        let found = nix::sys::statvfs::statvfs(&self.data()).expect("statvfs");
        found.blocks_available() * found.fragment_size()
    }

    /// Takes what is still free, root's reserve too, until [`SmallDisk::give_back`].
    pub fn take_rest(&self) {
        let file = File::create(self.ballast()).expect("make the ballast");
        let block = vec![0_u8; 64 << 10];
        let mut offset = 0;
        while let Ok(written) = std::os::unix::fs::FileExt::write_at(&file, &block, offset) {
            offset += written as u64;
        }
        // A full disk cannot flush what it has not got; the blocks are what counts.
        let _ = file.sync_all();
    }

    /// Takes all but so many bytes, until [`SmallDisk::give_back`].
    pub fn take_all_but(&self, left: u64) {
        let file = File::create(self.ballast()).expect("make the ballast");
        let size = self.free_bytes().checked_sub(left).expect("the disk has so many free bytes");
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, size).expect("fill the disk");
    }

    /// Frees what [`SmallDisk::take_rest`] or [`SmallDisk::take_all_but`] took.
    pub fn give_back(&self) {
        fs::remove_file(self.ballast()).expect("remove the ballast");
    }

    fn ballast(&self) -> PathBuf {
        self.data().join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: after a failed test something of a box may still be there.
        if let Err(cause) = umount2(&self.data(), MntFlags::MNT_DETACH) {
            eprintln!("cannot unmount {}: {cause}", self.data().display());
        }
        let _ = fs::remove_dir_all(&self.home);
        let _ = fs::remove_file(&self.image);
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|cause| panic!("{command:?}: {cause}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
