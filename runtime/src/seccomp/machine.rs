//! Test only: a machine for the part of classic BPF that the kernel's seccomp takes, and the kernel's own test for
//! "constant allow". Checks what `bpf_check_classic` and `seccomp_check_filter` check, as it runs.

use super::bpf::Insn;
use super::names;
use super::rules::Arch;

/// One system call as a filter sees it.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) audit: u32,
    pub(crate) nr: u32,
    pub(crate) args: [u64; 6],
}

impl Call {
    pub(crate) fn new(arch: Arch, nr: u32, args: [u64; 6]) -> Self {
        let audit = match arch {
            Arch::X86_64 | Arch::X32 => libc_audit(62, true),
            Arch::X86 => libc_audit(3, false),
            Arch::Aarch64 => libc_audit(183, true),
        };
        Self { audit, nr, args }
    }

    pub(crate) fn named(arch: Arch, name: &str, args: [u64; 6]) -> Self {
        let nr = names::number(arch, name).unwrap_or_else(|| panic!("{arch:?} has no {name}"));
        Self::new(arch, nr, args)
    }

    /// `struct seccomp_data` on a little-endian machine, as the words that a load can name.
    fn word(&self, offset: u32) -> u32 {
        match offset {
            0 => self.nr,
            4 => self.audit,
            16..64 if offset.is_multiple_of(4) => {
                let arg = self.args[(offset as usize - 16) / 8];
                if offset.is_multiple_of(8) { arg as u32 } else { (arg >> 32) as u32 }
            }
            _ => panic!("load of offset {offset}"),
        }
    }
}

/// `linux/audit.h`: the ELF machine, little endian, perhaps 64-bit.
fn libc_audit(machine: u32, wide: bool) -> u32 {
    machine | 0x4000_0000 | if wide { 0x8000_0000 } else { 0 }
}

/// The value that `program` returns for `call`.
pub(crate) fn run(program: &[Insn], call: &Call) -> u32 {
    execute(program, |offset| Some(call.word(offset))).expect("every word is known")
}

/// True if the kernel would put the call into its bitmap (`seccomp_is_const_allow`): it runs the program with the
/// number and the architecture alone and gives up at any other load.
pub(crate) fn is_const_allow(program: &[Insn], call: &Call) -> bool {
    let known = |offset| (offset < 8).then(|| call.word(offset));
    execute(program, known) == Some(0x7fff_0000)
}

fn execute(program: &[Insn], word: impl Fn(u32) -> Option<u32>) -> Option<u32> {
    let mut a = 0u32;
    let mut pc = 0usize;
    loop {
        let insn = program[pc];
        pc += 1;
        let test = match insn.code {
            0x20 => {
                a = word(insn.k)?;
                continue;
            }
            0x54 => {
                a &= insn.k;
                continue;
            }
            0x05 => {
                pc += insn.k as usize;
                continue;
            }
            0x06 => return Some(insn.k),
            0x15 => a == insn.k,
            0x25 => a > insn.k,
            0x35 => a >= insn.k,
            code => panic!("instruction {code:#x} at {}", pc - 1),
        };
        pc += usize::from(if test { insn.jt } else { insn.jf });
    }
}

/// What the kernel demands of a program before it runs: known instructions, every jump inside, a RET at the end.
pub(crate) fn verify(program: &[Insn]) {
    for (at, insn) in program.iter().enumerate() {
        let inside = |skip: usize| at + 1 + skip < program.len();
        let fine = match insn.code {
            0x20 => insn.k < 64 && insn.k.is_multiple_of(4),
            0x54 => true,
            0x06 => continue,
            0x05 => inside(insn.k as usize),
            0x15 | 0x25 | 0x35 => inside(insn.jt.into()) && inside(insn.jf.into()),
            _ => false,
        };
        assert!(fine, "instruction {at}: {insn:?}");
    }
    assert_eq!(program.last().map(|insn| insn.code), Some(0x06), "the last instruction returns");
}
