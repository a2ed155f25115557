//! What is wanted below the volumes, what there is, and the sizes.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::statvfs;

use crate::block::BlockSettings;
use crate::error::{At, Result, Step};

/// Hint in the names of unfinished pools.
pub(super) const TEMP_HINT: &str = "pool";
/// The least that mkfs.xfs accepts.
const POOL_BYTES_MIN: u64 = 300 << 20;
/// The largest file of ext4 has 16 TiB.
const FILE_BYTES_MAX: u64 = 15 << 40;

/// What the operator wants below the volumes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PoolSettings {
    /// Make no pool. One that exists is still used for the volumes in it.
    pub off: bool,
    /// Size of the pool's file; by default that of the file system around it. It only grows.
    pub size: Option<u64>,
    /// A block device for the pool.
    pub device: Option<PathBuf>,
    /// Format the device even if it has content that is not ours.
    pub force: bool,
    /// Free bytes of the file system around the pool's file that volumes may not use up.
    pub margin: u64,
    /// Block devices for the disks of boxes.
    pub block: Option<BlockSettings>,
}

/// The file system that new volumes lie on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backing {
    /// The data directory's own: it can clone.
    Own,
    /// A pool in a file of the data directory.
    File,
    /// A pool on a block device of the operator's.
    Device(PathBuf),
    /// Sparse copies in the data directory.
    Sparse {
        /// Why there is no pool.
        reason: String,
    },
}

/// Bytes of one file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes {
    /// Its size.
    pub total: u64,
    /// Free for volumes.
    pub free: u64,
}

/// Total and free bytes of the file system of `path`.
pub(crate) fn bytes_of(path: &Path) -> io::Result<Bytes> {
    let found = statvfs(path)?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Ok(Bytes { total: bytes(found.f_blocks), free: bytes(found.f_bavail) })
}

/// The size that the pool's file has now: as configured, or as large as the file system around it.
pub(super) fn wanted_bytes(data_dir: &Path, settings: &PoolSettings) -> Result<u64> {
    let outer = bytes_of(data_dir).at(Step::OpenPool, data_dir)?;
    let wanted = settings.size.unwrap_or(outer.total).clamp(POOL_BYTES_MIN, FILE_BYTES_MAX);
    Ok(wanted >> 20 << 20)
}
