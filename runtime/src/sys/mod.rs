//! The only home of `unsafe`: one file per kernel interface, each a thin wrapper without policy.

pub(crate) mod bpf;
pub(crate) mod fd;
pub(crate) mod mount;
pub(crate) mod process;
pub(crate) mod seccomp;
