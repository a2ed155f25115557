//! Reading the `linux.seccomp` object.
