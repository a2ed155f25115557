//! The only home of `unsafe`: one file per kernel interface, each a thin wrapper without policy.

pub(crate) mod seccomp;
