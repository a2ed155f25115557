//! `/v1`: our own name space.

pub(super) mod boxes;
pub mod wire;
