//! Every raw system call of this crate. Nothing outside this module is unsafe.

pub(crate) mod bpf;
