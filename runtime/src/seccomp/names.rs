//! From the names of system calls to numbers, per architecture.
//!
//! Owns what the tables of the `syscalls` crate lack: the numbers of x32, and the i386 calls `socketcall` and `ipc`
//! that carry others inside. A name that an architecture does not have gives nothing there.

use std::collections::BTreeMap;
use std::str::FromStr;

use super::rules::{Action, Arch, Condition, Op, Rules};

/// The bit that marks a call of the x32 ABI.
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// The rules of one call number, in the order of the entries.
pub(super) type Table = BTreeMap<u32, Vec<Rule>>;

/// An entry as it applies to one number.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Rule {
    pub(super) conditions: Vec<Condition>,
    pub(super) action: Action,
}

/// True if any supported architecture has a call of this name.
pub(crate) fn is_known(name: &str) -> bool {
    Arch::ALL.iter().any(|&arch| number(arch, name).is_some()) || inner_call(name).is_some()
}

/// The number of `name`, or None when `arch` has no such call of its own.
pub(super) fn number(arch: Arch, name: &str) -> Option<u32> {
    let id = match arch {
        Arch::X86_64 => syscalls::x86_64::Sysno::from_str(name).ok()?.id(),
        Arch::X86 => syscalls::x86::Sysno::from_str(name).ok()?.id(),
        Arch::Aarch64 => syscalls::aarch64::Sysno::from_str(name).ok()?.id(),
        Arch::X32 => return x32_number(name),
    };
    u32::try_from(id).ok()
}

/// Every rule of `rules` by the call number it applies to under `arch`.
pub(super) fn table(rules: &Rules, arch: Arch) -> Table {
    let mut table = Table::new();
    for entry in &rules.entries {
        for name in &entry.names {
            let rule = Rule { conditions: entry.conditions.clone(), action: entry.action };
            if arch == Arch::X86
                && let Some((outer, inner)) = inner_call(name).and_then(|call| carried(call, &rule))
            {
                table.entry(outer).or_default().push(inner);
            }
            if let Some(nr) = number(arch, name) {
                table.entry(nr).or_default().push(rule);
            }
        }
    }
    table
}

/// Calls of 64-bit x86 that x32 lacks.
const NOT_IN_X32: [&str; 11] = [
    "_sysctl",
    "create_module",
    "epoll_ctl_old",
    "epoll_wait_old",
    "get_kernel_syms",
    "get_thread_area",
    "nfsservctl",
    "query_module",
    "set_thread_area",
    "uselib",
    "vserver",
];

/// Calls that x32 numbers on its own, from [`X32_OWN_FIRST`] on, since their structures hold pointers.
const X32_OWN: [&str; 36] = [
    "rt_sigaction",
    "rt_sigreturn",
    "ioctl",
    "readv",
    "writev",
    "recvfrom",
    "sendmsg",
    "recvmsg",
    "execve",
    "ptrace",
    "rt_sigpending",
    "rt_sigtimedwait",
    "rt_sigqueueinfo",
    "sigaltstack",
    "timer_create",
    "mq_notify",
    "kexec_load",
    "waitid",
    "set_robust_list",
    "get_robust_list",
    "vmsplice",
    "move_pages",
    "preadv",
    "pwritev",
    "rt_tgsigqueueinfo",
    "recvmmsg",
    "sendmmsg",
    "process_vm_readv",
    "process_vm_writev",
    "setsockopt",
    "getsockopt",
    "io_setup",
    "io_submit",
    "execveat",
    "preadv2",
    "pwritev2",
];
const X32_OWN_FIRST: u32 = 512;

fn x32_number(name: &str) -> Option<u32> {
    if NOT_IN_X32.contains(&name) {
        return None;
    }
    let nr = match X32_OWN.iter().position(|own| *own == name) {
        Some(at) => X32_OWN_FIRST + at as u32,
        None => number(Arch::X86_64, name)?,
    };
    Some(X32_BIT | nr)
}

/// A call inside `socketcall` or `ipc`: the carrier's name and the code in its first argument.
#[derive(Clone, Copy, Debug)]
struct InnerCall {
    carrier: &'static str,
    code: u32,
}

/// `linux/net.h`, from code 1 on.
const SOCKETCALL: [&str; 20] = [
    "socket",
    "bind",
    "connect",
    "listen",
    "accept",
    "getsockname",
    "getpeername",
    "socketpair",
    "send",
    "recv",
    "sendto",
    "recvfrom",
    "shutdown",
    "setsockopt",
    "getsockopt",
    "sendmsg",
    "recvmsg",
    "accept4",
    "recvmmsg",
    "sendmmsg",
];

/// `linux/ipc.h`.
const IPC: [(&str, u32); 12] = [
    ("semop", 1),
    ("semget", 2),
    ("semctl", 3),
    ("semtimedop", 4),
    ("msgsnd", 11),
    ("msgrcv", 12),
    ("msgget", 13),
    ("msgctl", 14),
    ("shmat", 21),
    ("shmdt", 22),
    ("shmget", 23),
    ("shmctl", 24),
];

fn inner_call(name: &str) -> Option<InnerCall> {
    if let Some(at) = SOCKETCALL.iter().position(|call| *call == name) {
        return Some(InnerCall { carrier: "socketcall", code: at as u32 + 1 });
    }
    let (_, code) = IPC.iter().find(|(call, _)| *call == name)?;
    Some(InnerCall { carrier: "ipc", code: *code })
}

/// `rule` as it applies to the carrier of `call`.
///
/// The carrier's arguments lie in memory, where a filter cannot look. So a rule with conditions fails closed: one
/// that would let the call pass says nothing about the carrier, one that would stop it stops it with all
/// arguments. A profile that means otherwise names the carrier itself.
fn carried(call: InnerCall, rule: &Rule) -> Option<(u32, Rule)> {
    let passes = matches!(rule.action, Action::Allow | Action::Log | Action::Trace(_) | Action::Notify);
    if passes && !rule.conditions.is_empty() {
        return None;
    }
    // The upper half of ipc's code is a version; the kernel cuts socketcall's to an int.
    let mask = if call.carrier == "ipc" { 0xffff } else { 0xffff_ffff };
    let condition = Condition::low32(0, Op::MaskedEq { mask }, call.code);
    Some((number(Arch::X86, call.carrier)?, Rule { conditions: vec![condition], action: rule.action }))
}
