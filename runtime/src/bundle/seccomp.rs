//! From `linux.seccomp` of an OCI `config.json` to the compiler's [`Rules`].
//!
//! Where the specification is silent, this module follows runc with libseccomp, so that profiles written for Docker
//! and Podman mean the same here:
//! - a name that no supported architecture has is ignored; so is an architecture that this kernel cannot run;
//! - for one call an entry without conditions wins over all that have some, and of several the first one; among
//!   entries with conditions, where libseccomp promises no order, the first that holds decides;
//! - an entry that says the same as the default has no effect;
//! - two conditions on the same argument in one entry mean OR between ALL conditions of the entry, not AND: runc adds
//!   each of them as a rule of its own then, and old profiles rely on it;
//! - numbers above the highest one that the profile names get ENOSYS, unless the default lets calls pass.
//!
//! Not as runc: SPEC_ALLOW is set only on request, and a call of an architecture that is not listed ends the process,
//! not the thread; conditions compare all 64 bits for x32 too, where libseccomp looks at 32.
//! Left out, and refused: SCMP_ACT_NOTIFY. [`super::fields`] refuses its listener.

use std::borrow::Cow;

use oci_spec::runtime::{
    Arch as OciArch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
    LinuxSyscall,
};

use crate::seccomp::{self, Action, Arch, Condition, Entry, Error, Flags, Op, Rules};

/// The meaning of an OCI profile.
pub(crate) fn from_oci(oci: &LinuxSeccomp) -> Result<Rules, Error> {
    let default = action(oci.default_action(), oci.default_errno_ret())?;
    let mut entries = Vec::new();
    for syscall in oci.syscalls().iter().flatten() {
        entries.extend(entries_of(syscall)?);
    }
    // Stable: what is equal in rank keeps the order of the profile. What says the same as the default comes last and
    // stays only for its names, which count for "above the highest one".
    entries.sort_by_key(|entry| (entry.action == default, !entry.conditions.is_empty()));
    Ok(Rules {
        default,
        enosys_above_last: !matches!(default, Action::Allow | Action::Log | Action::Trace(_)),
        arches: arches(oci.architectures().iter().flatten()),
        flags: flags(oci.flags().iter().flatten()),
        entries,
    })
}

fn entries_of(syscall: &LinuxSyscall) -> Result<Vec<Entry>, Error> {
    let action = action(syscall.action(), syscall.errno_ret())?;
    let names: Vec<Cow<'static, str>> =
        syscall.names().iter().filter(|name| seccomp::is_known(name)).cloned().map(Cow::Owned).collect();
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let mut conditions = Vec::new();
    for arg in syscall.args().iter().flatten() {
        conditions.push(condition(&names[0], arg)?);
    }
    if has_repeated_argument(&conditions) {
        let alone = |condition| Entry { names: names.clone(), action, conditions: vec![condition] };
        return Ok(conditions.into_iter().map(alone).collect());
    }
    Ok(vec![Entry { names, action, conditions }])
}

fn has_repeated_argument(conditions: &[Condition]) -> bool {
    let repeated =
        |(at, condition): (usize, &Condition)| conditions[..at].iter().any(|earlier| earlier.index == condition.index);
    conditions.iter().enumerate().any(repeated)
}

fn condition(name: &str, arg: &LinuxSeccompArg) -> Result<Condition, Error> {
    let Ok(index) = u8::try_from(arg.index()) else {
        return Err(Error::ArgumentIndex { name: name.to_owned(), index: arg.index() });
    };
    let value = arg.value();
    let (op, value) = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => (Op::Ne, value),
        LinuxSeccompOperator::ScmpCmpLt => (Op::Lt, value),
        LinuxSeccompOperator::ScmpCmpLe => (Op::Le, value),
        LinuxSeccompOperator::ScmpCmpEq => (Op::Eq, value),
        LinuxSeccompOperator::ScmpCmpGe => (Op::Ge, value),
        LinuxSeccompOperator::ScmpCmpGt => (Op::Gt, value),
        // Here `value` is the mask and `valueTwo` the datum.
        LinuxSeccompOperator::ScmpCmpMaskedEq => (Op::MaskedEq { mask: value }, arg.value_two().unwrap_or(0)),
    };
    Ok(Condition::full64(index, op, value))
}

/// The specification wants an error for an errno with an action that takes none.
fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<Action, Error> {
    let number = match errno {
        Some(errno) => u16::try_from(errno).map_err(|_| Error::Errno { errno })?,
        None => libc::EPERM as u16,
    };
    let action = match action {
        LinuxSeccompAction::ScmpActErrno => return Ok(Action::Errno(number)),
        LinuxSeccompAction::ScmpActTrace => return Ok(Action::Trace(number)),
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => Action::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => Action::KillProcess,
        LinuxSeccompAction::ScmpActTrap => Action::Trap,
        LinuxSeccompAction::ScmpActLog => Action::Log,
        LinuxSeccompAction::ScmpActAllow => Action::Allow,
        LinuxSeccompAction::ScmpActNotify => {
            return Err(Error::Unsupported { what: "SCMP_ACT_NOTIFY" });
        }
    };
    match errno {
        Some(errno) => Err(Error::ErrnoWithoutUse { errno, action }),
        None => Ok(action),
    }
}

/// The native architecture, and of the listed ones those that a native kernel can run besides.
fn arches<'a>(listed: impl Iterator<Item = &'a OciArch>) -> Vec<Arch> {
    let mut arches = vec![Arch::NATIVE];
    for arch in listed.filter_map(|oci| arch(*oci)) {
        if !arches.contains(&arch) {
            arches.push(arch);
        }
    }
    arches
}

/// The architecture, if a native kernel runs its programs.
fn arch(oci: OciArch) -> Option<Arch> {
    let (arch, of) = match oci {
        OciArch::ScmpArchX86_64 => (Arch::X86_64, Arch::X86_64),
        OciArch::ScmpArchX32 => (Arch::X32, Arch::X86_64),
        OciArch::ScmpArchX86 => (Arch::X86, Arch::X86_64),
        OciArch::ScmpArchAarch64 => (Arch::Aarch64, Arch::Aarch64),
        _ => return None,
    };
    (of == Arch::NATIVE).then_some(arch)
}

fn flags<'a>(listed: impl Iterator<Item = &'a LinuxSeccompFilterFlag>) -> Flags {
    let mut flags = Flags::default();
    for flag in listed {
        match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => flags.tsync = true,
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => flags.log = true,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => flags.spec_allow = true,
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => flags.wait_killable_recv = true,
        }
    }
    flags
}

/// The names of a profile that this module takes, for `icerun features`.
pub(super) struct Names {
    pub(super) actions: Vec<LinuxSeccompAction>,
    pub(super) operators: Vec<LinuxSeccompOperator>,
    pub(super) arches: Vec<OciArch>,
    pub(super) flags: Vec<LinuxSeccompFilterFlag>,
}

/// Every action, operator, architecture and flag of the specification that has an effect here.
pub(super) fn names() -> Names {
    use LinuxSeccompAction as A;
    use LinuxSeccompFilterFlag as F;
    use LinuxSeccompOperator as O;
    let actions = [
        A::ScmpActKill,
        A::ScmpActKillThread,
        A::ScmpActKillProcess,
        A::ScmpActTrap,
        A::ScmpActErrno,
        A::ScmpActNotify,
        A::ScmpActTrace,
        A::ScmpActLog,
        A::ScmpActAllow,
    ];
    let operators =
        [O::ScmpCmpNe, O::ScmpCmpLt, O::ScmpCmpLe, O::ScmpCmpEq, O::ScmpCmpGe, O::ScmpCmpGt, O::ScmpCmpMaskedEq];
    let arches = [OciArch::ScmpArchX86_64, OciArch::ScmpArchX32, OciArch::ScmpArchX86, OciArch::ScmpArchAarch64];
    let flags = [
        F::SeccompFilterFlagTsync,
        F::SeccompFilterFlagLog,
        F::SeccompFilterFlagSpecAllow,
        F::SeccompFilterFlagWaitKillableRecv,
    ];
    Names {
        actions: actions.into_iter().filter(|oci| action(*oci, None).is_ok()).collect(),
        operators: operators.to_vec(),
        arches: arches.into_iter().filter(|oci| arch(*oci).is_some()).collect(),
        flags: flags.to_vec(),
    }
}

#[cfg(test)]
mod tests;
