//! The Icebox OCI runtime.
