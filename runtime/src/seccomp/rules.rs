//! The meaning of a filter, as plain data, independent of BPF.
//!
//! Meaning of [`Rules`] for one call: the entries are tried in order; the first one that names the call and whose
//! conditions all hold gives the action; else [`Rules::default`] does.

use std::borrow::Cow;

/// The kernel's action on a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Run it.
    Allow,
    /// Run it and write a record to the audit log.
    Log,
    /// Do not run it; the caller sees this errno.
    Errno(u16),
    /// Do not run it; send SIGSYS to the thread.
    Trap,
    /// End the thread.
    KillThread,
    /// End the process.
    KillProcess,
    /// Stop for a ptrace tracer, which reads this number; ENOSYS without a tracer.
    Trace(u16),
    /// Ask the holder of the listener; ENOSYS once the listener is closed.
    Notify,
}

/// An instruction set with its own table of call numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Arch {
    /// 64-bit x86.
    X86_64,
    /// x86-64 with 32-bit pointers: shares the audit number of `X86_64`, its calls carry bit 30.
    X32,
    /// 32-bit x86 (i386), also as the compat mode of a 64-bit kernel.
    X86,
    /// 64-bit ARM.
    Aarch64,
}

impl Arch {
    /// Every architecture that the compiler knows.
    pub const ALL: [Self; 4] = [Self::X86_64, Self::X32, Self::X86, Self::Aarch64];

    /// The architecture that this program was built for.
    #[cfg(target_arch = "x86_64")]
    pub const NATIVE: Self = Self::X86_64;
    /// The architecture that this program was built for.
    #[cfg(target_arch = "aarch64")]
    pub const NATIVE: Self = Self::Aarch64;
}

/// The comparison of an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// argument != value
    Ne,
    /// argument < value, unsigned
    Lt,
    /// argument <= value, unsigned
    Le,
    /// argument == value
    Eq,
    /// argument >= value, unsigned
    Ge,
    /// argument > value, unsigned
    Gt,
    /// argument & mask == value & mask
    MaskedEq {
        /// The bits that count.
        mask: u64,
    },
}

/// The compared width of an argument register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Width {
    /// The low 32 bits, for parameters that the kernel itself cuts to an int: a caller may put anything above them.
    Low32,
    /// All 64 bits.
    Full64,
}

/// A test of one argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Condition {
    /// Index of the argument, 0 to 5.
    pub index: u8,
    /// The compared width.
    pub width: Width,
    /// The comparison.
    pub op: Op,
    /// The value it is compared with; with [`Width::Low32`] only the low 32 bits count.
    pub value: u64,
}

impl Condition {
    /// A test of the low 32 bits of argument `index`.
    pub const fn low32(index: u8, op: Op, value: u32) -> Self {
        Self { index, width: Width::Low32, op, value: value as u64 }
    }

    /// A test of all 64 bits of argument `index`.
    pub const fn full64(index: u8, op: Op, value: u64) -> Self {
        Self { index, width: Width::Full64, op, value }
    }
}

/// One line of a profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The calls it names. A name that an architecture lacks is skipped there; a name unknown to all is an error.
    pub names: Vec<Cow<'static, str>>,
    /// The action when all conditions hold.
    pub action: Action,
    /// All must hold; empty means always.
    pub conditions: Vec<Condition>,
}

/// Options of seccomp(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// Bring every thread of the process under the filter.
    pub tsync: bool,
    /// Write a record for every action but Allow.
    pub log: bool,
    /// Keep the speculative store bypass on.
    pub spec_allow: bool,
    /// A notified call waits for the answer in a state that only a fatal signal ends. Without meaning, and left
    /// away, when nothing is notified.
    pub wait_killable_recv: bool,
}

/// A whole filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// For a call that no entry decides.
    pub default: Action,
    /// Answer ENOSYS, not the default, for a number above the highest one that the entries name (per architecture):
    /// a C library takes ENOSYS for "old kernel" and falls back, but EPERM for a final answer.
    pub enosys_above_last: bool,
    /// Architectures that may call; empty means the native one. Any other ends the process.
    pub arches: Vec<Arch>,
    /// Options of the load.
    pub flags: Flags,
    /// First match decides.
    pub entries: Vec<Entry>,
}
