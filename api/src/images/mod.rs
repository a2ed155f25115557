//! The images of this host, for its operator: listing, getting, removing and handing out.
//!
//! Owns: the use cases of images and their reports. The store is `icebox_rootfs::images`; which images boxes use is known by
//! `boxes`. Leaves out: HTTP, and who may do what.

mod import;
mod service;

pub use import::{Report, Source};
pub use service::{Images, Listed};
