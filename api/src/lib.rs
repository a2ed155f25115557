//! The Icebox HTTP API: box records, operations, idle and wake, billing and HTTP.
//!
//! This crate decides; it never clones a process, writes a cgroup file or opens a path inside a box by itself:
//! `icebox-shim` and `icebox-rootfs` do that.

pub mod boxes;
pub mod builds;
pub mod clock;
pub mod config;
pub mod daemon;
pub mod db;
pub mod doctor;
pub mod domain;
pub mod error;
pub mod events;
pub mod files;
pub mod http;
pub mod ids;
pub mod images;
pub mod ledger;
pub mod lifecycle;
pub mod metrics;
pub mod public_urls;
pub mod refusal;
pub mod runs;
pub mod text;
