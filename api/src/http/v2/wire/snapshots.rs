//! Snapshots.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::CreateBox;
use crate::domain;

/// A snapshot as the clients see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Snapshot {
    /// Id.
    pub id: String,
    /// The name given by its owner.
    pub name: String,
    /// The box it was taken of, which may be gone.
    pub box_id: String,
    /// Bytes that it occupies; 0 while it is being made.
    pub size_bytes: u64,
    /// `creating`, `ready`, `error` or `deleted`.
    pub status: String,
    /// Unix seconds.
    pub created_at: i64,
    /// Reason why it cannot be used (our extension).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl From<domain::Snapshot> for Snapshot {
    fn from(snapshot: domain::Snapshot) -> Self {
        Self {
            id: snapshot.id,
            name: snapshot.name,
            box_id: snapshot.box_id,
            size_bytes: snapshot.size_bytes,
            status: snapshot.status.as_str().to_owned(),
            created_at: snapshot.created_ms.div_euclid(1000),
            error: snapshot.error,
        }
    }
}

/// Body of `POST …/snapshots`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreateSnapshot {
    /// A name; it need not be unique.
    pub name: String,
}

/// Answer of the lists of snapshots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Snapshots {
    /// The oldest first.
    pub snapshots: Vec<Snapshot>,
}

/// Body of `POST /v2/box/from-snapshot`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FromSnapshot {
    /// Id of the snapshot.
    pub snapshot_id: String,
    /// Settings of the new box. What is left out comes from the snapshot: size, environment, agent, network policy, git's
    /// identity.
    #[serde(flatten)]
    pub create: CreateBox,
}

/// Body of `DELETE /v2/box/snapshots`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeleteSnapshots {
    /// The snapshots to delete. An empty list is an error, never "all"; all are meant by an object without this field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ids: Option<Vec<String>>,
}

/// Answer of `DELETE /v2/box/snapshots`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotsDeleted {
    /// Number of deleted snapshots.
    pub deleted: usize,
}
