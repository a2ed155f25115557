//! `/v1`: our own name space.

pub(super) mod boxes;
pub(super) mod files;
pub mod wire;
