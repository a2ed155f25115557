//! `/v1`: our own name space.

pub(super) mod boxes;
pub(super) mod build;
mod event_body;
pub(super) mod events;
pub(super) mod files;
pub(super) mod forks;
pub(super) mod images;
mod pieces;
pub(super) mod portable;
pub(super) mod runtimes;
pub(super) mod schedule;
pub(super) mod storage;
pub(super) mod undo;
pub(super) mod volumes;
pub mod wire;
