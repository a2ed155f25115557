//! The Icebox OCI runtime.

#[allow(unsafe_code)]
mod sys;

mod bundle;
pub mod seccomp;
