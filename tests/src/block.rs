//! Block devices of the test's own, for the disks of boxes: loop devices with sparse files behind them.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::daemon::{scratch_dir, unique};

/// Bytes of a device that say what Icebox does with it.
const HEADER_BYTES: usize = 512;

/// A directory with names of devices. Dropping it detaches them, so it must outlive the daemon that uses them.
#[derive(Debug)]
pub struct Devices {
    home: PathBuf,
    name: String,
    devices: Vec<String>,
}

impl Devices {
    /// Devices `box-0` and on, each of `gib` GiB.
    pub fn new(count: usize, gib: u64) -> Self {
        let name = unique("icebox-block");
        let home = scratch_dir().join(&name);
        fs::create_dir_all(home.join("dev")).expect("make a directory");
        let mut devices = Self { home, name, devices: Vec::new() };
        for number in 0..count {
            let image = devices.home.join(format!("device-{number}.img"));
            File::create(&image).and_then(|file| file.set_len(gib << 30)).expect("make an image");
            let output = Command::new("losetup").args(["--find", "--show"]).arg(&image).output().expect("run losetup");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let device = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            symlink(&device, devices.path(number)).expect("name the device");
            devices.devices.push(device);
        }
        devices
    }

    /// A name for the daemon.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory for the daemon.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// The configuration that gives them to boxes.
    pub fn config(&self) -> String {
        let pattern = self.home.join("dev/box-*");
        format!("[storage]\ndriver = \"block\"\n[storage.block]\ndevices = [\"{}\"]\n", pattern.display())
    }

    /// One of them.
    pub fn path(&self, number: usize) -> PathBuf {
        self.home.join(format!("dev/box-{number}"))
    }

    /// Bytes of one that are not a hole: the loop driver makes a hole of what it is asked to zero.
    pub fn allocated(&self, number: usize) -> u64 {
        let image = self.home.join(format!("device-{number}.img"));
        fs::metadata(image).expect("the file of a device").blocks() * 512
    }

    /// What Icebox says on the devices: of each the state, and the box.
    pub fn uses(&self) -> Vec<(String, String)> {
        let read = |number| {
            let mut bytes = vec![0; HEADER_BYTES];
            File::open(self.path(number)).and_then(|file| file.read_exact_at(&mut bytes, 0)).expect("read a device");
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let words: Vec<&str> = text.lines().next().unwrap_or_default().split(' ').collect();
            let word = |place: usize| words.get(place).map_or_else(String::new, |word| (*word).to_owned());
            (word(2), word(4))
        };
        (0..self.devices.len()).map(read).collect()
    }

    /// The number of devices in this state.
    pub fn count(&self, state: &str) -> usize {
        self.uses().iter().filter(|(one, _)| one == state).count()
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        for device in &self.devices {
            let _ = Command::new("losetup").arg("--detach").arg(device).status();
        }
        let _ = fs::remove_dir_all(&self.home);
    }
}
