//! Configuration of what the disks of boxes lie on.

use std::path::PathBuf;

use icebox_rootfs::{BlockSettings, BlockSource, PoolSettings};
use serde::Deserialize;

/// Largest pool: 1 PiB.
const POOL_GIB_MAX: u64 = 1 << 20;
/// A thousand times the space.
const PROMISED_PERCENT_MAX: u32 = 100_000;

/// If a pool is made where the data directory's file system cannot clone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PoolMode {
    /// It is made if it can be.
    #[default]
    Auto,
    /// Disks are sparse copies in the data directory.
    Off,
}

/// What the disk of a box is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// An image file on a loop device.
    #[default]
    Image,
    /// A block device of the operator's.
    Block,
}

/// The section `storage.block`: block devices for the disks of boxes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Block {
    /// The devices. The last part of a path may have one `*`.
    pub devices: Vec<String>,
    /// A program that makes and deletes devices, and its first arguments.
    pub command: Vec<String>,
    /// Take devices of the list even if they have content that is not Icebox's.
    pub force: bool,
}

impl Block {
    fn check(&self) -> Result<(), (&'static str, &'static str)> {
        if self.devices.is_empty() == self.command.is_empty() {
            return Err(("storage.block", "must have either `devices` or `command`"));
        }
        let is_pattern = |path: &String| {
            let (dir, name) = path.rsplit_once('/').unwrap_or_default();
            path.starts_with('/') && !dir.contains('*') && !name.is_empty() && name.matches('*').count() <= 1
        };
        if !self.devices.iter().all(is_pattern) {
            return Err(("storage.block.devices", "must be absolute paths, with one `*` at most, in the last part"));
        }
        if self.command.first().is_some_and(|program| !program.starts_with('/')) {
            return Err(("storage.block.command", "must begin with the absolute path of a program"));
        }
        if self.force && self.devices.is_empty() {
            return Err(("storage.block.force", "is for `devices` only"));
        }
        Ok(())
    }
}

/// What happens to boxes that run when the space for disks is used up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WhenFull {
    /// They go on, and their writes fail.
    #[default]
    Enospc,
    /// They are paused until there is space again.
    Pause,
}

/// The section `storage`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Storage {
    /// What the disk of a new box is.
    pub driver: Driver,
    /// The block devices for the driver `block`. Disks on them stay usable with another driver.
    pub block: Option<Block>,
    /// If there is a pool.
    pub pool: PoolMode,
    /// Size of the pool's file. Default: that of the disk around it. It only grows.
    pub pool_size_gib: Option<u64>,
    /// A block device for the pool. It must be empty, or have been a pool before.
    pub pool_device: Option<PathBuf>,
    /// Format that device, whatever is on it.
    pub pool_device_force: bool,
    /// What happens to boxes that run when the space for disks is used up.
    pub when_full: WhenFull,
    /// What disks and volumes may be promised together, in percent of the space that there is for them. Default: any.
    pub promised_percent_max: Option<u32>,
}

impl Storage {
    /// The invalid key, and its expected value.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        if self.pool_size_gib.is_some_and(|gib| !(1..=POOL_GIB_MAX).contains(&gib)) {
            return Err(("storage.pool_size_gib", "must be 1 to 1048576"));
        }
        if self.pool_device.as_ref().is_some_and(|path| !path.is_absolute()) {
            return Err(("storage.pool_device", "must be an absolute path"));
        }
        if self.promised_percent_max.is_some_and(|percent| !(1..=PROMISED_PERCENT_MAX).contains(&percent)) {
            return Err(("storage.promised_percent_max", "must be 1 to 100000"));
        }
        if self.pool == PoolMode::Off && self.pool_device.is_some() {
            return Err(("storage.pool_device", "contradicts `pool = \"off\"`"));
        }
        if let Some(block) = &self.block {
            block.check()?;
        }
        if self.driver == Driver::Block {
            if self.block.is_none() {
                return Err(("storage.block", "is needed for `driver = \"block\"`"));
            }
            if self.promised_percent_max.is_some() {
                return Err((
                    "storage.promised_percent_max",
                    "does not go with `driver = \"block\"`: a device is never promised twice",
                ));
            }
        }
        Ok(())
    }

    /// What the store is told. `free_bytes_min`: the free space of the disk below which no box is created. Half of it
    /// is left to the disk by the boxes that there are.
    #[must_use]
    pub fn pool_settings(&self, free_bytes_min: u64) -> PoolSettings {
        PoolSettings {
            off: self.pool == PoolMode::Off,
            size: self.pool_size_gib.map(|gib| gib << 30),
            device: self.pool_device.clone(),
            force: self.pool_device_force,
            margin: free_bytes_min / 2,
            block: self.block.as_ref().map(|block| BlockSettings {
                source: match block.command.is_empty() {
                    true => BlockSource::List(block.devices.clone()),
                    false => BlockSource::Program(block.command.clone()),
                },
                for_new: self.driver == Driver::Block,
                force: block.force,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> Result<(), &'static str> {
        let storage: Storage = toml::from_str(text).expect("TOML");
        storage.check().map_err(|(key, _)| key)
    }

    #[test]
    fn devices_are_a_list_or_a_command() {
        let block = |inner: &str| checked(&format!("driver = \"block\"\n[block]\n{inner}\n"));
        assert_eq!(block("devices = [\"/dev/sdb\", \"/dev/disk/by-id/box-*\"]\nforce = true"), Ok(()));
        assert_eq!(block("command = [\"/usr/local/sbin/lvm-thin\", \"vg0\"]"), Ok(()));
        assert_eq!(block(""), Err("storage.block"));
        assert_eq!(block("devices = [\"/dev/a\"]\ncommand = [\"/bin/a\"]"), Err("storage.block"));
        for bad in ["dev/a", "/dev/*/a", "/dev/a*b*", "/dev/"] {
            assert_eq!(block(&format!("devices = [\"{bad}\"]")), Err("storage.block.devices"), "{bad}");
        }
        assert_eq!(block("command = [\"a\"]"), Err("storage.block.command"));
        assert_eq!(block("command = [\"/bin/a\"]\nforce = true"), Err("storage.block.force"));
        assert_eq!(checked("driver = \"block\""), Err("storage.block"));
        let promised = "driver = \"block\"\npromised_percent_max = 100\n[block]\ndevices = [\"/dev/a\"]";
        assert_eq!(checked(promised), Err("storage.promised_percent_max"));
        // Devices that are left over from another driver.
        assert_eq!(checked("[block]\ndevices = [\"/dev/a\"]"), Ok(()));
        assert!(toml::from_str::<Storage>("driver = \"other\"").is_err());
    }
}
