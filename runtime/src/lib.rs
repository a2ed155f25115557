//! The Icebox OCI runtime, from scratch: one-shot and single-threaded, no async, no HTTP.
//!
//! `bundle` reads a `config.json` into a [`plan::Plan`]; [`launch`] carries a plan out; [`process`] becomes the program;
//! `container` keeps the OCI verbs and their state directory; [`cgroup`] and [`seccomp`] are usable alone.

// What only bundles and verbs use is unused without them. With the feature, as the workspace is checked, every lint counts.
#![cfg_attr(not(feature = "oci"), allow(dead_code, unused_imports))]

#[allow(unsafe_code)]
mod sys;

#[cfg(feature = "oci")]
mod bundle;
pub mod cgroup;
#[cfg(feature = "oci")]
pub mod container;
mod error;
pub mod identity;
pub mod launch;
pub mod plan;
pub mod process;
pub mod sealed;
pub mod seccomp;
pub mod stdio;
mod step;

#[cfg(feature = "oci")]
pub use bundle::features;
pub use error::{Error, Kind, Result};
pub use step::Step;
