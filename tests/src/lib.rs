//! Helpers of the end to end tests.
//!
//! They start a real `iceboxd` with directories of its own, talk to it over HTTP as any client does, and read what the
//! kernel says about the result. They own no knowledge of how Icebox works inside: what a test asserts comes from the
//! wire contract, from `/proc`, or from the cgroup files.
//!
//! Everything here panics with a message instead of returning errors: a helper that fails is a test that fails.

pub mod api;
pub mod block;
pub mod boxfile;
pub mod daemon;
pub mod killer;
pub mod leaks;
pub mod machine;
pub mod net;
pub mod netns;
pub mod oci;
pub mod pool;
pub mod registry;
pub mod runtimes;
pub mod sdk;
pub mod small_disk;
pub mod swap;
pub mod systemd;
pub mod visit;
pub mod wait;

pub use api::{Api, Reply, TestBox};
pub use daemon::Daemon;
pub use leaks::LeakGuard;
pub use wait::{PATIENCE, wait_for, wait_until};
