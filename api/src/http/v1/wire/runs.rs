//! Runs with all recorded fields.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::db::RunRow;
use crate::http::v2::wire::BoxRunData;

/// One run, as `GET /v1/boxes/{id}/runs` lists it: the fields of `/v2`, and ours.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RunRecord {
    /// The fields of `/v2`.
    #[serde(flatten)]
    pub run: BoxRunData,
    /// The exit code; 128 + n after signal n.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Most memory used at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_peak_bytes: Option<u64>,
    /// The end of the output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// Reason of its failure, beyond its exit code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
}

/// Answer of `GET /v1/boxes/{id}/runs`, newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RunRecords {
    /// The runs.
    pub runs: Vec<RunRecord>,
}

impl RunRecord {
    /// A recorded run of a box of this account.
    pub fn new(row: RunRow, account_id: &str) -> Self {
        Self {
            exit_code: row.exit_code,
            memory_peak_bytes: row.memory_peak_bytes,
            output: row.output.clone(),
            error_message: row.error_message.clone(),
            run: BoxRunData::new(row, account_id),
        }
    }
}
