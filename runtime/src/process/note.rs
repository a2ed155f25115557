//! What becoming the program tells beside failures.

use crate::plan::Rlimit;

/// What could not be done as asked and is no failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// Raising a hard limit takes CAP_SYS_RESOURCE in the initial user namespace.
    HardLimitKept {
        /// The limit as asked for.
        wanted: Rlimit,
        /// The limit as set.
        set: Rlimit,
    },
    /// Capabilities that this process does not hold itself, as a mask.
    CapabilitiesMissing(u64),
}
