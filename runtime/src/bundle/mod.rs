//! Translation of an OCI bundle's `config.json` into the runtime's own plain data.

pub(crate) mod seccomp;
