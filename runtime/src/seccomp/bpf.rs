//! Classic BPF: one instruction and an assembler that writes a program from its end to its start.
//!
//! cBPF jumps only forwards, and a conditional jump reaches 255 instructions. Written backwards, every target is
//! known when the jump is written, so the one place that knows the limit is [`Assembler::branch`].

use std::collections::HashMap;

pub(super) const LD_W_ABS: u16 = 0x20;
pub(super) const JA: u16 = 0x05;
pub(super) const JEQ_K: u16 = 0x15;
pub(super) const JGE_K: u16 = 0x35;
pub(super) const RET_K: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
pub(super) const OFFSET_NR: u32 = 0;
pub(super) const OFFSET_ARCH: u32 = 4;

/// The largest value of `jt` and `jf`.
const BRANCH_INSNS_MAX: usize = 255;

/// One instruction, laid out as the kernel's `struct sock_filter`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insn {
    /// Operation.
    pub code: u16,
    /// Instructions to skip when a test holds.
    pub jt: u8,
    /// Instructions to skip when it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// A place in the program: how many instructions follow its start, itself included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Label(usize);

/// A program in the making; the first instruction pushed is the last one executed.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    reversed: Vec<Insn>,
    /// The nearest RET of each value.
    returns: HashMap<u32, Label>,
}

impl Assembler {
    /// Writes an instruction that is no conditional jump.
    pub(super) fn push(&mut self, code: u16, k: u32) -> Label {
        self.push_raw(Insn { code, jt: 0, jf: 0, k })
    }

    /// Writes a block whose jumps stay inside it or lead to the instruction after the next one.
    pub(super) fn push_block(&mut self, block: Vec<Insn>) -> Label {
        self.reversed.extend(block.into_iter().rev());
        Label(self.reversed.len())
    }

    /// A place that returns `value`: a new RET only when the last one is out of reach of a branch.
    pub(super) fn ret(&mut self, value: u32) -> Label {
        if let Some(&label) = self.returns.get(&value)
            && self.distance(label) < BRANCH_INSNS_MAX
        {
            return label;
        }
        self.push_ret(value)
    }

    /// Writes a RET here, even if an equal one is within reach of a jump.
    pub(super) fn push_ret(&mut self, value: u32) -> Label {
        let label = self.push(RET_K, value);
        self.returns.insert(value, label);
        label
    }

    /// Writes `if A <test> k goto yes else goto no`, with a long jump beside it for a target out of reach.
    pub(super) fn branch(&mut self, test: u16, k: u32, yes: Label, no: Label) -> Label {
        // The long jump of one target moves the other one by an instruction, so the bound is one less than the limit.
        let yes = self.within_reach(yes);
        let no = self.within_reach(no);
        let (jt, jf) = (self.distance(yes) as u8, self.distance(no) as u8);
        self.push_raw(Insn { code: test, jt, jf, k })
    }

    /// Continues at `label` when it is not what follows anyway.
    pub(super) fn goto(&mut self, label: Label) -> Label {
        match self.distance(label) {
            0 => label,
            far => self.push(JA, far as u32),
        }
    }

    /// The program in the order of execution.
    pub(super) fn finish(self) -> Vec<Insn> {
        self.reversed.into_iter().rev().collect()
    }

    fn within_reach(&mut self, label: Label) -> Label {
        match self.distance(label) {
            near if near < BRANCH_INSNS_MAX => label,
            far => self.push(JA, far as u32),
        }
    }

    /// Instructions between the next one to be written and `label`.
    fn distance(&self, label: Label) -> usize {
        self.reversed.len() - label.0
    }

    fn push_raw(&mut self, insn: Insn) -> Label {
        self.reversed.push(insn);
        Label(self.reversed.len())
    }
}
