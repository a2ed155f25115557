//! Disks of boxes.

use icebox_rootfs::{Backing, Bytes, DeviceReport, Taken, Usage};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::boxes::{Disk, Resized};

/// Body of `POST /v1/boxes/{id}/resize`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResizeRequest {
    /// The new size of the disk.
    pub disk_gib: u32,
}

/// Answer of `POST /v1/boxes/{id}/resize`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ResizeAnswer {
    /// The size of the disk.
    pub disk_gib: u32,
    /// Why the file system on it grows at the next start of the box only (`restart` does it); absent if it has grown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_because: Option<String>,
}

impl From<Resized> for ResizeAnswer {
    fn from(done: Resized) -> Self {
        Self { disk_gib: done.size_gib, waits_because: done.waits_because.map(str::to_owned) }
    }
}

/// Answer of `GET /v1/storage`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StorageAnswer {
    /// What new disks lie on: `own` (the data directory, which can clone), `file` or `device` (a pool), `sparse` (copies in
    /// the data directory), `block` (each is a block device of its own).
    pub backing: String,
    /// Why disks are copies; absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The disks of all boxes together. A block that several share counts for each.
    pub all: TakenAnswer,
    /// The disk around the data directory.
    pub disk: SpaceAnswer,
    /// The pool of disks, if there is one. Its size is what the disk has for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<SpaceAnswer>,
    /// The block devices for disks, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices: Option<DevicesAnswer>,
    /// The disks of the account's boxes.
    pub boxes: Vec<DiskAnswer>,
}

/// Block devices of the operator's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DevicesAnswer {
    /// Those that have the disk of a box.
    pub disks: usize,
    /// Those that a new box can have. A program of the operator's makes them as they are needed.
    pub free: usize,
    /// Those that are being overwritten or deleted.
    pub wiping: usize,
    /// Those that are not used, and why.
    pub refused: Vec<RefusedDevice>,
}

/// A block device that is not used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RefusedDevice {
    /// Its path.
    pub path: String,
    /// Why.
    pub reason: String,
}

impl From<DeviceReport> for DevicesAnswer {
    fn from(DeviceReport { disks, free, wiping, refused, .. }: DeviceReport) -> Self {
        let refused = refused.into_iter();
        let refused = refused.map(|one| RefusedDevice { path: one.path.display().to_string(), reason: one.why });
        Self { disks, free, wiping, refused: refused.collect() }
    }
}

/// Bytes of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SpaceAnswer {
    /// Its size.
    pub total_bytes: u64,
    /// Free bytes.
    pub free_bytes: u64,
}

/// The disk of a box.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskAnswer {
    /// Id of the box.
    pub id: String,
    /// What it takes.
    #[serde(flatten)]
    pub taken: TakenAnswer,
}

/// What disks take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TakenAnswer {
    /// The size.
    pub promised_bytes: u64,
    /// Blocks that it has.
    pub allocated_bytes: u64,
    /// Blocks among them that another file has too: the template, a snapshot or another disk.
    pub shared_bytes: u64,
}

impl From<Taken> for TakenAnswer {
    fn from(taken: Taken) -> Self {
        let Taken { promised, allocated, shared } = taken;
        Self { promised_bytes: promised, allocated_bytes: allocated, shared_bytes: shared }
    }
}

impl From<Bytes> for SpaceAnswer {
    fn from(bytes: Bytes) -> Self {
        Self { total_bytes: bytes.total, free_bytes: bytes.free }
    }
}

/// What disks lie on, and why they are copies if they are.
pub(super) fn backing_words<'a>(
    backing: &'a Backing,
    devices: Option<&DeviceReport>,
) -> (&'static str, Option<&'a str>) {
    if devices.is_some_and(|devices| devices.for_new) {
        return ("block", None);
    }
    match backing {
        Backing::Own => ("own", None),
        Backing::File => ("file", None),
        Backing::Device(_) => ("device", None),
        Backing::Sparse { reason } => ("sparse", Some(reason)),
    }
}

impl StorageAnswer {
    /// The answer with the disks of one account.
    #[must_use]
    pub fn new(usage: Usage, disks: Vec<Disk>) -> Self {
        let (backing, reason) = backing_words(&usage.backing, usage.devices.as_ref());
        let answer = |disk: Disk| DiskAnswer { id: disk.id, taken: disk.taken.into() };
        Self {
            backing: backing.to_owned(),
            reason: reason.map(str::to_owned),
            all: usage.taken.into(),
            disk: usage.disk.into(),
            pool: usage.pool.map(SpaceAnswer::from),
            devices: usage.devices.map(DevicesAnswer::from),
            boxes: disks.into_iter().map(answer).collect(),
        }
    }
}
