//! `/v2`: the protocol of the public box clients.

pub(super) mod account;
pub(super) mod boxes;
pub(super) mod create;
pub(super) mod exec;
pub(super) mod files;
pub(super) mod lifecycle;
pub(super) mod not_implemented;
pub(super) mod public_urls;
pub(super) mod session;
pub(super) mod settings;
pub(super) mod snapshots;
mod stream_body;
pub(super) mod upload;
pub mod wire;
