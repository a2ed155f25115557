//! Seccomp: plain-data rules, a compiler to classic BPF, the profiles of a sandbox, and the load.
//!
//! [`Rules`] say what a filter means, [`compile()`] turns them into a [`Program`], [`load`] hands that to the kernel.
//! Only `load` touches the process. Invariants: a call of an architecture that the rules do not list kills the process,
//! an x32 number without [`Arch::X32`] is answered by ENOSYS, and `no_new_privs` is never set here.
//!
//! Left out: reading OCI profiles (`bundle::seccomp`), serving a notify listener, deciding when a filter is loaded.

mod bpf;
mod compile;
mod error;
#[cfg(test)]
pub(crate) mod machine;
mod names;
pub mod profile;
mod rules;
#[cfg(test)]
mod tests;

pub use bpf::Insn;
pub use compile::{Program, compile};
pub use error::Error;
pub use rules::{Action, Arch, Condition, Entry, Flags, Op, Rules, Width};

pub(crate) use names::is_known;

use std::os::fd::OwnedFd;

/// Installs `program` for the calling thread (for all threads with [`Flags::tsync`]).
///
/// Returns the listener when the program can answer NOTIFY. The caller must have set `no_new_privs` or hold
/// CAP_SYS_ADMIN in its user namespace. Allocates nothing, so it is safe between fork and exec.
pub fn load(program: &Program) -> Result<Option<OwnedFd>, Error> {
    crate::sys::seccomp::set_filter(&program.insns, program.flags)
}

/// Whether this kernel would take `program`, as far as it tells without loading it: it offers filters, with these flags.
pub(crate) fn check(program: &Program) -> std::io::Result<()> {
    crate::sys::seccomp::check_flags(program.flags)
}
