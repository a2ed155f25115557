//! The device filter of cgroup v2: an eBPF program made from a rule list.
//!
//! Owns the translation and the exchange of one filter of ours for the next. Filters of others (systemd attaches one
//! to a unit with `DevicePolicy=`) stay: the kernel grants what all of them grant.

use std::os::fd::AsFd as _;

use rustix::io::Errno;

use super::devices::{Access, DeviceKind, DeviceRule};
use super::error::{Error, Result};
use super::file::Dir;
use crate::sys::bpf::{self, Insn};

/// The name by which this runtime recognises its own filters. At most 15 bytes, letters, digits, `_` and `.`.
const PROGRAM_NAME: &str = "icebox_devices";

// eBPF: class | operation | source. JMP32 compares the low halves, so numbers above 2^31 need no sign care.
const LDX_W: u8 = 0x61;
const MOV32_REG: u8 = 0xbc;
const MOV64_IMM: u8 = 0xb7;
const AND32_IMM: u8 = 0x54;
const RSH32_IMM: u8 = 0x74;
const JEQ32_IMM: u8 = 0x16;
const JNE32_IMM: u8 = 0x56;
const EXIT: u8 = 0x95;

/// `BPF_DEVCG_DEV_BLOCK` and `_CHAR`.
const TYPE_BLOCK: i32 = 1;
const TYPE_CHAR: i32 = 2;

// Registers: the verdict; the context and later scratch; type; the access not granted yet; major; minor.
const R0: u8 = 0;
const R1: u8 = 1;
const TYPE: u8 = 2;
const WANTED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

const fn insn(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Insn {
    Insn { code, regs: src << 4 | dst, off, imm }
}

/// The program. Walks the list from its end with the set of access kinds not decided yet: a matching "deny" of one of
/// them ends it, a matching "allow" takes its kinds out, and an empty set is a grant.
pub(super) fn compile(rules: &[DeviceRule]) -> Vec<Insn> {
    let mut program = vec![
        // struct bpf_cgroup_dev_ctx { u32 access_type /* access << 16 | type */, major, minor }
        insn(LDX_W, TYPE, R1, 0, 0),
        insn(MOV32_REG, WANTED, TYPE, 0, 0),
        insn(RSH32_IMM, WANTED, 0, 0, 16),
        insn(AND32_IMM, TYPE, 0, 0, 0xffff),
        insn(LDX_W, MAJOR, R1, 4, 0),
        insn(LDX_W, MINOR, R1, 8, 0),
        // No access requested: no rule applies.
        insn(JNE32_IMM, WANTED, 0, 2, 0),
    ];
    program.extend(verdict(false));
    for rule in rules.iter().rev() {
        let decisive = emit(&mut program, rule);
        if decisive {
            // The verifier refuses instructions that cannot be reached.
            return program;
        }
    }
    program.extend(verdict(false));
    program
}

const fn verdict(allow: bool) -> [Insn; 2] {
    [insn(MOV64_IMM, R0, 0, 0, allow as i32), insn(EXIT, 0, 0, 0, 0)]
}

/// Emits one rule. True if the rule decides every request that reaches it.
fn emit(program: &mut Vec<Insn>, rule: &DeviceRule) -> bool {
    let total = rule.access == Access::ALL;
    let access = i32::from(rule.access.bits());
    let mut body = Vec::with_capacity(4);
    match (rule.allow, total) {
        (_, true) => {}
        (true, false) => {
            body.push(insn(AND32_IMM, WANTED, 0, 0, !access & 7));
            body.push(insn(JNE32_IMM, WANTED, 0, 2, 0));
        }
        (false, false) => {
            body.push(insn(MOV32_REG, R1, WANTED, 0, 0));
            body.push(insn(AND32_IMM, R1, 0, 0, access));
            body.push(insn(JEQ32_IMM, R1, 0, 2, 0));
        }
    }
    body.extend(verdict(rule.allow));

    let kind = match rule.kind {
        DeviceKind::All => None,
        DeviceKind::Block => Some(TYPE_BLOCK),
        DeviceKind::Char => Some(TYPE_CHAR),
    };
    let tests = [(TYPE, kind), (MAJOR, rule.major.map(u32::cast_signed)), (MINOR, rule.minor.map(u32::cast_signed))];
    let tests: Vec<_> = tests.into_iter().filter_map(|(register, value)| value.map(|v| (register, v))).collect();
    let decisive = total && tests.is_empty();
    for (i, (register, value)) in tests.iter().enumerate() {
        // Over the tests that are left and the body: at most 7 instructions.
        let over = tests.len() - i - 1 + body.len();
        program.push(insn(JNE32_IMM, *register, 0, over as i16, *value));
    }
    program.extend(body);
    decisive
}

/// Makes `rules` the device filter of this cgroup. The new one is attached before the old one goes, so meanwhile both
/// apply and nothing is granted that either denies.
pub(super) fn apply(dir: &Dir, rules: &[DeviceRule]) -> Result<()> {
    let fail = |operation| {
        move |e: std::io::Error| {
            Error::errno(operation, dir.path(), Errno::from_io_error(&e).unwrap_or(Errno::IO))
                .detail("eBPF device filter")
        }
    };
    let old = bpf::device_filters(dir.fd()).map_err(fail("list"))?;
    let new = bpf::load_device_filter(&compile(rules), PROGRAM_NAME).map_err(fail("load"))?;
    bpf::attach_device_filter(dir.fd(), new.as_fd()).map_err(fail("attach"))?;
    for id in old {
        let program = bpf::program_by_id(id).map_err(fail("open old"))?;
        if bpf::program_name(program.as_fd()).map_err(fail("name old"))? == PROGRAM_NAME {
            bpf::detach_device_filter(dir.fd(), program.as_fd()).map_err(fail("detach old"))?;
        }
    }
    let now = bpf::device_filters(dir.fd()).map_err(fail("read back"))?;
    if now.is_empty() {
        return Err(Error::errno("attach", dir.path(), Errno::IO).detail("the device filter is not there"));
    }
    Ok(())
}

impl super::Cgroup {
    /// The ids of the eBPF device filters of this cgroup itself, ours and others'. None where v1 has the device
    /// controller.
    ///
    /// # Errors
    /// Those of bpf(2).
    pub fn device_filters(&self) -> Result<Vec<u32>> {
        let Some(dir) = &self.unified else { return Ok(Vec::new()) };
        bpf::device_filters(dir.fd()).map_err(|e| {
            Error::errno("list", dir.path(), Errno::from_io_error(&e).unwrap_or(Errno::IO)).detail("eBPF device filter")
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::devices::tests::{naive, requests, rules};
    use super::*;

    /// A little eBPF machine that also refuses what the verifier refuses: running off the end, unknown instructions,
    /// backward jumps, and reads of registers never written.
    fn run(program: &[Insn], block: bool, major: u32, minor: u32, access: u8) -> bool {
        let kind = if block { TYPE_BLOCK } else { TYPE_CHAR };
        let context = [u32::from(access) << 16 | kind.cast_unsigned(), major, minor];
        let mut registers: [Option<u32>; 11] = [None; 11];
        registers[usize::from(R1)] = Some(0);
        let mut pc = 0;
        loop {
            let i = program[pc];
            let (dst, src) = (usize::from(i.regs & 15), usize::from(i.regs >> 4));
            let imm = i.imm.cast_unsigned();
            let mut jump = false;
            match i.code {
                LDX_W => {
                    assert_eq!(src, usize::from(R1));
                    assert_eq!(registers[src], Some(0), "context pointer overwritten");
                    registers[dst] = Some(context[usize::try_from(i.off / 4).unwrap()]);
                }
                MOV32_REG => registers[dst] = Some(registers[src].unwrap()),
                MOV64_IMM => registers[dst] = Some(imm),
                AND32_IMM => registers[dst] = Some(registers[dst].unwrap() & imm),
                RSH32_IMM => registers[dst] = Some(registers[dst].unwrap() >> imm),
                JEQ32_IMM => jump = registers[dst].unwrap() == imm,
                JNE32_IMM => jump = registers[dst].unwrap() != imm,
                EXIT => return registers[usize::from(R0)].unwrap() == 1,
                other => panic!("instruction {other:#x}"),
            }
            pc += 1;
            if jump {
                pc += usize::try_from(i.off).unwrap();
            }
        }
    }

    /// Every instruction is reachable and no path leaves the program: the verifier's control flow check.
    fn check_flow(program: &[Insn]) {
        let mut reached = vec![false; program.len()];
        let mut todo = vec![0];
        while let Some(pc) = todo.pop() {
            if std::mem::replace(&mut reached[pc], true) {
                continue;
            }
            match program[pc].code {
                EXIT => {}
                JEQ32_IMM | JNE32_IMM => {
                    todo.push(pc + 1);
                    todo.push(pc + 1 + usize::try_from(program[pc].off).unwrap());
                }
                _ => todo.push(pc + 1),
            }
        }
        assert!(reached.iter().all(|r| *r), "unreachable instruction");
    }

    #[test]
    fn two_allows_add_up_and_a_deny_of_one_kind_holds() {
        let null =
            DeviceRule { allow: true, kind: DeviceKind::Char, major: Some(1), minor: Some(3), access: Access::READ };
        let write = DeviceRule { access: Access::WRITE, ..null };
        assert!(run(&compile(&[null, write]), false, 1, 3, 6));
        assert!(!run(&compile(&[null, write]), false, 1, 3, 7));
        assert!(!run(&compile(&[null, write]), true, 1, 3, 6));
        let all = DeviceRule { access: Access::ALL, ..null };
        let no_write = DeviceRule { allow: false, ..write };
        assert!(!run(&compile(&[all, no_write]), false, 1, 3, 6), "rw must not slip past a denied w");
        assert!(run(&compile(&[all, no_write]), false, 1, 3, 2));
        assert!(!run(&compile(&[DeviceRule::all(true)]), false, 1, 3, 0), "nothing wanted");
        assert!(!run(&compile(&[]), false, 1, 3, 2));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn program_is_the_rule_list(rules in rules()) {
            let program = compile(&rules);
            check_flow(&program);
            for (block, major, minor, access) in requests() {
                let expected = naive(&rules, block, major, minor, access);
                prop_assert_eq!(run(&program, block, major, minor, access), expected,
                    "{} {}:{} {}", block, major, minor, access);
            }
        }
    }
}
