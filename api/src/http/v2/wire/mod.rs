//! The wire types of `/v2/…`, as the public clients expect them: only what goes over HTTP.
//!
//! Owns the JSON shapes and their conversions from and to the domain. Plain data; only `http` uses them. Invariants: in
//! requests `null` means the same as a missing key; in answers an optional field is left out rather than sent as
//! `null`, because one of the clients distinguishes them.

mod boxes;
mod exec;
mod files;
mod session;
mod snapshots;
mod urls;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use boxes::*;
pub use exec::*;
pub use files::*;
pub use session::*;
pub use snapshots::*;
pub use urls::*;

/// The body of every answer that is not 2xx.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// Description of the error, for a person.
    pub error: String,
}

/// The body of answers that carry no information: an empty JSON object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Empty {}

#[cfg(test)]
mod tests;
