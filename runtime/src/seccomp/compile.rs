//! The compiler: [`Rules`] to a classic BPF program.
//!
//! ```text
//! load arch -> block of the architecture, or KILL_PROCESS
//! block:  load nr -> balanced tree over ranges of numbers with one verdict
//! verdict: RET action, or a chain { conditions, RET action }... RET action
//! ```
//!
//! The x32 bit and "above the last number" are ranges of the tree like any other. A call whose verdict needs no
//! argument never loads one, so the kernel sees a constant and answers it from its bitmap (since 5.11) without
//! running the program. Conditions are compiled by seccompiler; everything else about its filters (one action, one
//! architecture, linear search, its own loader) is not used.

use std::collections::HashMap;

use seccompiler::{BpfProgram, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

use super::bpf::{Assembler, Insn, JEQ_K, JGE_K, LD_W_ABS, Label, OFFSET_ARCH, OFFSET_NR, RET_K};
use super::error::Error;
use super::names::{self, Rule, Table, X32_BIT};
use super::rules::{Action, Arch, Condition, Entry, Op, Rules, Width};
use crate::sys::seccomp as sys;

/// The kernel's BPF_MAXINSNS.
const PROGRAM_INSNS_MAX: usize = 4096;
/// Conditions of one entry: above any use, and short enough that seccompiler's jumps stay inside one branch.
const CONDITIONS_PER_ENTRY_MAX: usize = 32;
/// The kernel's MAX_ERRNO.
const ERRNO_MAX: u16 = 4095;
const ARGUMENT_INDEX_MAX: u8 = 5;

/// A filter ready to load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The instructions, in order.
    pub insns: Vec<Insn>,
    /// SECCOMP_FILTER_FLAG_* bits for seccomp(2).
    pub flags: u32,
}

/// Compiles `rules`.
pub fn compile(rules: &Rules) -> Result<Program, Error> {
    check(rules)?;
    let mut asm = Assembler::default();
    let mut chains = Chains::new();
    let mut blocks = Vec::new();
    for (audit, ranges) in machines(rules) {
        blocks.push((audit, block(&mut asm, &mut chains, &ranges)?));
    }
    dispatch(&mut asm, &blocks);
    let insns = asm.finish();
    if insns.len() > PROGRAM_INSNS_MAX {
        return Err(Error::TooLong { insns: insns.len() });
    }
    let flags = flag_bits(rules, &insns);
    Ok(Program { insns, flags })
}

fn check(rules: &Rules) -> Result<(), Error> {
    check_action(rules.default)?;
    for entry in &rules.entries {
        check_action(entry.action)?;
        check_conditions(entry)?;
        if let Some(name) = entry.names.iter().find(|name| !names::is_known(name)) {
            return Err(Error::UnknownSyscall { name: name.to_string() });
        }
    }
    Ok(())
}

fn check_action(action: Action) -> Result<(), Error> {
    match action {
        Action::Errno(errno) if errno > ERRNO_MAX => Err(Error::Errno { errno: errno.into() }),
        _ => Ok(()),
    }
}

fn check_conditions(entry: &Entry) -> Result<(), Error> {
    let first = || entry.names.first().map(|name| name.to_string()).unwrap_or_default();
    let count = entry.conditions.len();
    if count > CONDITIONS_PER_ENTRY_MAX {
        return Err(Error::TooManyConditions { name: first(), count });
    }
    match entry.conditions.iter().find(|condition| condition.index > ARGUMENT_INDEX_MAX) {
        Some(condition) => Err(Error::ArgumentIndex { name: first(), index: condition.index.into() }),
        None => Ok(()),
    }
}

/// The verdict for the numbers from `start` up to the next range.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Range {
    start: u32,
    verdict: Verdict,
}

/// Rules with conditions, then the action when none holds. Empty rules: a constant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Verdict {
    rules: Vec<Rule>,
    otherwise: Action,
}

impl Verdict {
    fn constant(action: Action) -> Self {
        Self { rules: Vec::new(), otherwise: action }
    }

    /// Cuts what cannot change the outcome: rules behind an unconditional one, and last rules that say the same.
    fn of(rules: &[Rule], default: Action) -> Self {
        let always = rules.iter().position(|rule| rule.conditions.is_empty());
        let otherwise = always.map_or(default, |at| rules[at].action);
        let mut rules = rules[..always.unwrap_or(rules.len())].to_vec();
        while rules.last().is_some_and(|rule| rule.action == otherwise) {
            rules.pop();
        }
        Self { rules, otherwise }
    }
}

/// The audit numbers (`linux/audit.h`) that the rules accept, each with its ranges from 0 up.
fn machines(rules: &Rules) -> Vec<(u32, Vec<Range>)> {
    let lists = |arch| rules.arches.contains(&arch) || (rules.arches.is_empty() && arch == Arch::NATIVE);
    let mut machines = Vec::new();
    for arch in [Arch::Aarch64, Arch::X86] {
        if lists(arch) {
            machines.push((audit_number(arch), arch_ranges(rules, arch)));
        }
    }
    // Written last, so it comes first: on x86-64 nearly every call is of this architecture.
    if lists(Arch::X86_64) || lists(Arch::X32) {
        let mut ranges = match lists(Arch::X86_64) {
            true => arch_ranges(rules, Arch::X86_64),
            false => vec![Range { start: 0, verdict: Verdict::constant(Action::KillProcess) }],
        };
        match lists(Arch::X32) {
            true => ranges.extend(arch_ranges(rules, Arch::X32)),
            false => ranges.push(Range { start: X32_BIT, verdict: Verdict::constant(Action::Errno(ENOSYS)) }),
        }
        machines.push((audit_number(Arch::X86_64), ranges));
    }
    for (_, ranges) in &mut machines {
        ranges.dedup_by(|next, range| next.verdict == range.verdict);
    }
    machines
}

const ENOSYS: u16 = libc::ENOSYS as u16;

fn audit_number(arch: Arch) -> u32 {
    match arch {
        Arch::X86_64 | Arch::X32 => 0xc000_003e,
        Arch::X86 => 0x4000_0003,
        Arch::Aarch64 => 0xc000_00b7,
    }
}

/// Ranges of call numbers, from the architecture's first one to the last of the numbers' type.
fn arch_ranges(rules: &Rules, arch: Arch) -> Vec<Range> {
    let table: Table = names::table(rules, arch);
    let first = if arch == Arch::X32 { X32_BIT } else { 0 };
    let default = Verdict::constant(rules.default);
    let mut ranges = Vec::with_capacity(2 * table.len() + 1);
    let mut next = first;
    for (&nr, rules_of_nr) in &table {
        if nr > next {
            ranges.push(Range { start: next, verdict: default.clone() });
        }
        ranges.push(Range { start: nr, verdict: Verdict::of(rules_of_nr, rules.default) });
        next = nr + 1;
    }
    let above = match rules.enosys_above_last && !table.is_empty() {
        true => Verdict::constant(Action::Errno(ENOSYS)),
        false => default,
    };
    ranges.push(Range { start: next, verdict: above });
    ranges
}

/// The chains written so far. Their conditions are of no architecture, so all blocks share them.
type Chains = HashMap<Verdict, Label>;

/// Writes the block of one architecture; the accumulator holds its audit number on entry.
fn block(asm: &mut Assembler, chains: &mut Chains, ranges: &[Range]) -> Result<Label, Error> {
    // From the last range to the first, so that the chains of low numbers lie near the tree.
    for verdict in ranges.iter().rev().map(|range| &range.verdict) {
        if !verdict.rules.is_empty() && !chains.contains_key(verdict) {
            let label = chain(asm, verdict)?;
            chains.insert(verdict.clone(), label);
        }
    }
    let root = tree(asm, ranges, chains);
    asm.goto(root);
    Ok(asm.push(LD_W_ABS, OFFSET_NR))
}

/// Writes a search for the range that holds the accumulator; its depth is the logarithm of their count.
fn tree(asm: &mut Assembler, ranges: &[Range], chains: &Chains) -> Label {
    if let [range] = ranges {
        return match chains.get(&range.verdict) {
            Some(&label) => label,
            None => asm.ret(return_value(range.verdict.otherwise)),
        };
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let high_label = tree(asm, high, chains);
    let low_label = tree(asm, low, chains);
    asm.branch(JGE_K, high[0].start, high_label, low_label)
}

/// Writes the rules of one verdict: each falls into its RET when it holds and jumps over it when it does not.
fn chain(asm: &mut Assembler, verdict: &Verdict) -> Result<Label, Error> {
    let mut label = asm.push_ret(return_value(verdict.otherwise));
    for rule in verdict.rules.iter().rev() {
        asm.push_ret(return_value(rule.action));
        label = asm.push_block(conditions(&rule.conditions)?);
    }
    Ok(label)
}

/// Continues with the first matching block, tried from the last one written.
fn dispatch(asm: &mut Assembler, blocks: &[(u32, Label)]) {
    let mut otherwise = asm.ret(return_value(Action::KillProcess));
    for (audit, label) in blocks {
        otherwise = asm.branch(JEQ_K, *audit, *label, otherwise);
    }
    asm.goto(otherwise);
    asm.push(LD_W_ABS, OFFSET_ARCH);
}

/// Instructions that fall through when all conditions hold and jump over the next instruction when one does not.
fn conditions(conditions: &[Condition]) -> Result<Vec<Insn>, Error> {
    let compiled: Result<Vec<_>, _> = conditions.iter().map(condition).collect();
    let rule = SeccompRule::new(compiled?).map_err(|source| Error::Condition { source })?;
    let program = BpfProgram::from(rule);
    // seccompiler opens a rule with a jump over a jump that nothing reaches, and which leads one instruction too far
    // for the last rule of a program. Further helper jumps it writes only above CONDITIONS_PER_ENTRY_MAX.
    let insns = program.iter().skip(RULE_PROLOGUE_INSNS);
    Ok(insns.map(|insn| Insn { code: insn.code, jt: insn.jt, jf: insn.jf, k: insn.k }).collect())
}

const RULE_PROLOGUE_INSNS: usize = 2;

fn condition(condition: &Condition) -> Result<SeccompCondition, Error> {
    let width = match condition.width {
        Width::Low32 => SeccompCmpArgLen::Dword,
        Width::Full64 => SeccompCmpArgLen::Qword,
    };
    let op = match condition.op {
        Op::Ne => SeccompCmpOp::Ne,
        Op::Lt => SeccompCmpOp::Lt,
        Op::Le => SeccompCmpOp::Le,
        Op::Eq => SeccompCmpOp::Eq,
        Op::Ge => SeccompCmpOp::Ge,
        Op::Gt => SeccompCmpOp::Gt,
        Op::MaskedEq { mask } => SeccompCmpOp::MaskedEq(mask),
    };
    SeccompCondition::new(condition.index, width, op, condition.value).map_err(|source| Error::Condition { source })
}

/// `SECCOMP_RET_*` of `linux/seccomp.h` with its data.
const fn return_value(action: Action) -> u32 {
    match action {
        Action::KillProcess => 0x8000_0000,
        Action::KillThread => 0,
        Action::Trap => 0x0003_0000,
        Action::Errno(errno) => 0x0005_0000 | errno as u32,
        Action::Notify => 0x7fc0_0000,
        Action::Trace(data) => 0x7ff0_0000 | data as u32,
        Action::Log => 0x7ffc_0000,
        Action::Allow => 0x7fff_0000,
    }
}

fn flag_bits(rules: &Rules, insns: &[Insn]) -> u32 {
    let notifies = insns.iter().any(|insn| insn.code == RET_K && insn.k == return_value(Action::Notify));
    let bits = [
        (rules.flags.tsync, sys::TSYNC),
        (rules.flags.log, sys::LOG),
        (rules.flags.spec_allow, sys::SPEC_ALLOW),
        (notifies, sys::NEW_LISTENER),
        // A listener and TSYNC both want the result of the call; the kernel takes the pair only with this (5.7).
        (notifies && rules.flags.tsync, sys::TSYNC_ESRCH),
        // Refused by the kernel without a listener.
        (notifies && rules.flags.wait_killable_recv, sys::WAIT_KILLABLE_RECV),
    ];
    bits.iter().filter(|(wanted, _)| *wanted).fold(0, |flags, (_, bit)| flags | bit)
}
