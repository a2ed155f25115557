//! The Icebox OCI runtime.

pub mod cgroup;
#[allow(unsafe_code)]
mod sys;
