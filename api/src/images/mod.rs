//! The images of this host, for its operator: listing, getting, removing and handing out.
//!
//! Owns: the use cases of images and their reports. The store is `icebox_rootfs::images`; which images boxes use is known by
//! `boxes`. Leaves out: HTTP, and who may do what.

mod import;
mod report;
mod service;
mod transfer;

pub use import::Source;
pub use report::Report;
pub use service::{Images, Listed};
