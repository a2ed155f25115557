//! The small filter that every program of a run stacks on the box's own.
//!
//! The box's filter must let the init use clone3 (it forks into cgroups), and a filter cannot look into clone3's
//! arguments; so each program loses clone3 altogether and falls back to clone, whose flags are filtered.
//!
//! It is `profile::deny_clone3` of the runtime, written out: the compiler's tables of call names would be a twentieth
//! of the init, which every box holds in memory. A test proves that both say the same.

use icebox_runtime::seccomp::{Insn, Program};

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;

const LOAD_WORD: u16 = 0x20;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_NOT_BELOW: u16 = 0x35;
const RETURN: u16 = 0x06;
/// Offsets in `struct seccomp_data`.
const NUMBER_AT: u32 = 0;
const ARCH_AT: u32 = 4;
/// Numbers of x32, a second way to the same calls.
const X32_BIT: u32 = 0x4000_0000;
const ALLOW: u32 = 0x7fff_0000;
const KILL_PROCESS: u32 = 0x8000_0000;
const ERRNO: u32 = 0x0005_0000;

/// The filter, ready to load.
#[derive(Debug)]
pub(crate) struct Filter {
    program: Program,
}

impl Filter {
    /// Builds the filter.
    pub(crate) fn prepare() -> Self {
        let insn = |code, jt, jf, k| Insn { code, jt, jf, k };
        let insns = vec![
            insn(LOAD_WORD, 0, 0, ARCH_AT),
            insn(JUMP_EQUAL, 1, 0, ARCH),
            insn(RETURN, 0, 0, KILL_PROCESS),
            insn(LOAD_WORD, 0, 0, NUMBER_AT),
            insn(JUMP_NOT_BELOW, 2, 0, X32_BIT),
            insn(JUMP_EQUAL, 1, 0, libc::SYS_clone3 as u32),
            insn(RETURN, 0, 0, ALLOW),
            insn(RETURN, 0, 0, ERRNO | libc::ENOSYS as u32),
        ];
        Self { program: Program { insns, flags: 0 } }
    }

    /// What is loaded.
    pub(crate) fn program(&self) -> &Program {
        &self.program
    }
}

#[cfg(test)]
mod tests {
    use icebox_runtime::seccomp;

    use super::*;

    /// The kernel's answer to a call.
    fn verdict(program: &Program, arch: u32, number: u32) -> u32 {
        let (mut at, mut word) = (0, 0);
        loop {
            let Insn { code, jt, jf, k } = program.insns[at];
            let skip = match code {
                LOAD_WORD if k == ARCH_AT => {
                    word = arch;
                    0
                }
                LOAD_WORD if k == NUMBER_AT => {
                    word = number;
                    0
                }
                JUMP_EQUAL => {
                    if word == k {
                        jt
                    } else {
                        jf
                    }
                }
                JUMP_NOT_BELOW => {
                    if word >= k {
                        jt
                    } else {
                        jf
                    }
                }
                RETURN => return k,
                other => panic!("instruction {other:#x}"),
            };
            at += 1 + usize::from(skip);
        }
    }

    #[test]
    fn it_says_what_the_profile_says() {
        let profile = seccomp::compile(&seccomp::profile::deny_clone3()).unwrap();
        let own = Filter::prepare().program;
        assert_eq!(own.flags, profile.flags);
        let interesting = [X32_BIT - 1, X32_BIT, X32_BIT + 56, X32_BIT + 435, u32::MAX - 1, u32::MAX];
        for arch in [ARCH, 0x4000_0003, 0] {
            for number in (0..2000).chain(interesting) {
                let (a, b) = (verdict(&own, arch, number), verdict(&profile, arch, number));
                assert_eq!(a, b, "arch {arch:#x}, number {number:#x}");
            }
        }
        assert_eq!(verdict(&own, ARCH, 435), ERRNO | libc::ENOSYS as u32);
        assert_eq!(verdict(&own, ARCH, 56), ALLOW);
    }
}
