//! Translation of an OCI bundle's `config.json` into the runtime's own plain data.

#[allow(dead_code)] // until the bundle reader calls it
pub(crate) mod seccomp;
