//! What the volumes of a data directory take.

use std::fs::File;
use std::os::fd::AsFd;

use crate::block::DeviceReport;
use crate::error::{At, Result, Step};
use crate::pool::{Backing, Bytes, bytes_of};
use crate::store::Store;
use crate::sys::fiemap;
use crate::template::Kind;
use crate::volume::Volume;

/// Bytes of volumes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken {
    /// The size.
    pub promised: u64,
    /// Blocks that it has.
    pub allocated: u64,
    /// Blocks among them that another file has too: the template, a snapshot or another volume.
    pub shared: u64,
}

/// What the volumes of a data directory take, and what there is for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// What new volumes lie on.
    pub backing: Backing,
    /// All volumes together, the disks of boxes and those of files. A block that several share counts for each.
    pub taken: Taken,
    /// The file system around the data directory.
    pub disk: Bytes,
    /// The pool, if new volumes lie in one, without what the disk has no space for.
    pub pool: Option<Bytes>,
    /// The block devices of the operator's, if there are any.
    pub devices: Option<DeviceReport>,
}

impl Volume {
    /// Measures it.
    pub fn taken(&self) -> Result<Taken> {
        if self.devices.is_some() {
            let bytes = self.size_bytes()?;
            return Ok(Taken { promised: bytes, allocated: bytes, shared: 0 });
        }
        let file = File::open(self.path()).at(Step::MeasureVolume, self.path())?;
        // A file system without extents (tmpfs, for one) shares none.
        let shared = fiemap::shared_bytes(file.as_fd()).unwrap_or(0);
        Ok(Taken { promised: self.size_bytes()?, allocated: self.allocated_bytes()?, shared })
    }
}

impl Store {
    /// Bytes that all volumes have. A block that several share counts for each.
    pub fn allocated_bytes(&self) -> Result<u64> {
        let mut bytes = 0;
        for kind in [Kind::Disk, Kind::Data] {
            for id in self.ids(kind)? {
                bytes += self.find(kind, &id)?.map_or(Ok(0), |volume| volume.allocated_bytes())?;
            }
        }
        Ok(bytes)
    }

    /// Measures all. It costs one look at each volume.
    pub fn usage(&self) -> Result<Usage> {
        self.balance()?;
        let mut taken = Taken::default();
        for kind in [Kind::Disk, Kind::Data] {
            for id in self.ids(kind)? {
                if let Some(volume) = self.find(kind, &id)? {
                    let one = volume.taken()?;
                    taken.promised += one.promised;
                    taken.allocated += one.allocated;
                    taken.shared += one.shared;
                }
            }
        }
        let disk = bytes_of(self.data_dir()).at(Step::MeasureVolume, self.data_dir())?;
        let mut usage = Usage { backing: self.backing().clone(), taken, disk, pool: None, devices: self.devices() };
        if let Some(pool) = self.pool() {
            let bytes = pool.bytes()?;
            usage.pool = Some(Bytes { total: bytes.total.saturating_sub(pool.withheld_bytes()?), free: bytes.free });
        }
        Ok(usage)
    }
}
