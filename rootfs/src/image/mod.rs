//! The read-only layers below every box: the Debian base image and the layer with our own tools.
//!
//! Layout of an image directory: `trixie-<recipe8>/{rootfs/,manifest.json}` and `tools-<sha8>/usr/local/bin/sudo`.
//! Invariants: what has its final name is complete and was made durable first; names that begin with `.tmp-` are
//! unfinished and are removed by the next build. One build at a time, kept by an `flock` on `lock`.

pub(crate) mod account;
mod build;
mod debootstrap;
mod find;
mod finish;
mod mirror;
mod tools;
pub(crate) mod tree;
mod types;

pub(crate) use build::debian;
pub use build::{build, minimal};
pub use find::{by_id, find};
pub(crate) use find::{list, remove};
pub use tools::tools_layer;
pub use types::{BaseImage, Manifest, Package, Phase, Progress};
