//! Leftovers without an owner.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::doctor::Treated;
use crate::domain::Orphan;

/// Answer of `GET /v1/doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DoctorAnswer {
    /// What has no owner.
    pub orphans: Vec<OrphanAnswer>,
}

/// Something without an owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OrphanAnswer {
    /// What it is, such as `disk`, `snapshot`, `layer`, `cgroup`.
    pub kind: String,
    /// Its id, or its path.
    pub name: String,
    /// Bytes that it occupies, where they are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Why it could not be removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Answer of `POST /v1/doctor/repair`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RepairAnswer {
    /// What was removed.
    pub removed: Vec<OrphanAnswer>,
    /// What could not be removed.
    pub failed: Vec<OrphanAnswer>,
}

impl From<Orphan> for OrphanAnswer {
    fn from(orphan: Orphan) -> Self {
        Self { kind: orphan.kind.as_str().to_owned(), name: orphan.name, bytes: orphan.bytes, error: None }
    }
}

impl DoctorAnswer {
    /// The answer with what was found.
    #[must_use]
    pub fn new(found: Vec<Orphan>) -> Self {
        Self { orphans: found.into_iter().map(OrphanAnswer::from).collect() }
    }
}

impl RepairAnswer {
    /// The answer with what became of each.
    #[must_use]
    pub fn new(treated: Vec<Treated>) -> Self {
        let mut answer = Self { removed: Vec::new(), failed: Vec::new() };
        for Treated { orphan, failed } in treated {
            // The operator of the host may read the cause.
            let shown = OrphanAnswer { error: failed.map(|refusal| refusal.chain()), ..orphan.into() };
            if shown.error.is_none() { &mut answer.removed } else { &mut answer.failed }.push(shown);
        }
        answer
    }
}
