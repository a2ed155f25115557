//! Configuration of what the disks of boxes lie on.

use std::path::PathBuf;

use icebox_rootfs::PoolSettings;
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
        }
    }
}
