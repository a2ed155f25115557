//! Volumes of files.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::boxes::{VolumeReport, VolumeUser};

/// Body of `POST /v1/volumes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVolume {
    /// A name, unique in the account.
    pub name: String,
    /// Its size; 10 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_gib: Option<u32>,
}

/// Body of `POST /v1/volumes/{name}/resize`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResizeVolume {
    /// The new size.
    pub size_gib: u32,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeAnswer {
    /// Its name.
    pub name: String,
    /// Its size, which is its quota.
    pub size_gib: u32,
    /// Bytes that it occupies, and that are billed.
    pub allocated_bytes: u64,
    /// Unix milliseconds.
    pub created_ms: i64,
    /// The boxes that have it: one that writes to it, or any number that read it.
    pub boxes: Vec<VolumeBox>,
    /// Why its file system grows at its next use only; absent if it has grown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_because: Option<String>,
}

/// A box that has a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeBox {
    /// Id of the box.
    pub id: String,
    /// Where it sees the volume.
    pub path: String,
    /// It can only read it.
    pub read_only: bool,
}

/// Answer of `GET /v1/volumes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Volumes {
    /// By name.
    pub volumes: Vec<VolumeAnswer>,
}

impl From<VolumeReport> for VolumeAnswer {
    fn from(VolumeReport { volume, allocated_bytes, users }: VolumeReport) -> Self {
        let boxes = users.into_iter().map(|VolumeUser { box_id, path, read_only, .. }| VolumeBox {
            id: box_id,
            path,
            read_only,
        });
        Self {
            name: volume.name,
            size_gib: volume.size_gib,
            allocated_bytes,
            created_ms: volume.created_ms,
            boxes: boxes.collect(),
            waits_because: None,
        }
    }
}
