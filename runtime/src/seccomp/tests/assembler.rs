//! Checks of the assembler: jumps, their limits, and the text of a program.

use std::borrow::Cow;

use crate::seccomp::bpf::{Assembler, JEQ_K, LD_W_ABS, OFFSET_NR};
use crate::seccomp::machine::{Call, run, verify};
use crate::seccomp::{Action, Arch, Condition, Entry, Error, Flags, Op, Rules, compile};

fn rules(entries: Vec<Entry>) -> Rules {
    Rules { default: Action::Errno(1), enosys_above_last: false, arches: Vec::new(), flags: Flags::default(), entries }
}

fn entry(name: &str, action: Action, conditions: Vec<Condition>) -> Entry {
    Entry { names: vec![Cow::Owned(name.to_owned())], action, conditions }
}

/// Both targets of one branch at every distance around the limit of 255.
#[test]
fn branches_reach_targets_at_any_distance() {
    for filler in 0..600 {
        for gap in [0, 1, 253, 254, 255, 256, 300] {
            let mut asm = Assembler::default();
            let no = asm.push_ret(2);
            for _ in 0..gap {
                asm.push(LD_W_ABS, OFFSET_NR);
            }
            let yes = asm.push_ret(1);
            for _ in 0..filler {
                asm.push(LD_W_ABS, OFFSET_NR);
            }
            let branch = asm.branch(JEQ_K, 7, yes, no);
            asm.goto(branch);
            asm.push(LD_W_ABS, OFFSET_NR);
            let program = asm.finish();
            verify(&program);
            for (nr, expected) in [(7, 1), (8, 2)] {
                let call = Call::new(Arch::X86_64, nr, [0; 6]);
                assert_eq!(run(&program, &call), expected, "filler {filler}, gap {gap}, number {nr}");
            }
        }
    }
}

#[test]
fn a_program_above_the_kernels_limit_is_refused() {
    let conditions: Vec<_> = (0..32).map(|value| Condition::full64(0, Op::Ne, value)).collect();
    let one = entry("read", Action::Allow, conditions);
    let error = compile(&rules(vec![one; 40])).unwrap_err();
    assert!(matches!(error, Error::TooLong { insns } if insns > 4096), "{error}");
}

#[test]
fn too_many_conditions_are_refused() {
    let conditions = vec![Condition::full64(0, Op::Ne, 1); 33];
    let error = compile(&rules(vec![entry("read", Action::Allow, conditions)])).unwrap_err();
    assert!(matches!(error, Error::TooManyConditions { count: 33, .. }), "{error}");
}

#[test]
fn a_name_that_no_architecture_has_is_refused() {
    let error = compile(&rules(vec![entry("raed", Action::Allow, Vec::new())])).unwrap_err();
    assert!(matches!(error, Error::UnknownSyscall { ref name } if name == "raed"), "{error}");
}

#[test]
fn flags_of_the_load() {
    let mut rules = rules(vec![entry("read", Action::Allow, Vec::new())]);
    rules.flags = Flags { tsync: true, log: true, spec_allow: true, wait_killable_recv: true };
    // WAIT_KILLABLE_RECV has no meaning without a listener.
    assert_eq!(compile(&rules).unwrap().flags, 0b00_0111);
    rules.entries.push(entry("write", Action::Notify, Vec::new()));
    assert_eq!(compile(&rules).unwrap().flags, 0b11_1111);
    rules.flags = Flags::default();
    assert_eq!(compile(&rules).unwrap().flags, 0b00_1000);
}

/// socketcall and ipc carry other calls, so a ban on `socket` or `semop` must hold there too.
#[test]
fn carriers_of_i386_follow_the_calls_inside() {
    let mut rules = rules(vec![
        entry("socket", Action::Errno(13), vec![Condition::full64(0, Op::Eq, 38)]),
        entry("connect", Action::Errno(14), Vec::new()),
        entry("semop", Action::Errno(15), Vec::new()),
    ]);
    rules.default = Action::Allow;
    rules.arches = vec![Arch::X86];
    let program = compile(&rules).unwrap().insns;
    verify(&program);
    let outcome = |name, args| run(&program, &Call::named(Arch::X86, name, args));
    assert_eq!(outcome("socket", [38, 0, 0, 0, 0, 0]), 0x5_000d);
    assert_eq!(outcome("socket", [2, 0, 0, 0, 0, 0]), 0x7fff_0000);
    // SYS_SOCKET: the family is out of sight, so the ban covers every family.
    assert_eq!(outcome("socketcall", [1, 0, 0, 0, 0, 0]), 0x5_000d);
    assert_eq!(outcome("socketcall", [3, 0, 0, 0, 0, 0]), 0x5_000e);
    assert_eq!(outcome("socketcall", [2, 0, 0, 0, 0, 0]), 0x7fff_0000);
    // The upper half of ipc's first argument is a version.
    assert_eq!(outcome("ipc", [0x1_0001, 0, 0, 0, 0, 0]), 0x5_000f);
    assert_eq!(outcome("ipc", [2, 0, 0, 0, 0, 0]), 0x7fff_0000);
}

/// Numbers from asm/unistd_x32.h.
#[test]
fn x32_numbers() {
    use crate::seccomp::names::number;
    let nr = |name| number(Arch::X32, name).map(|nr| nr - 0x4000_0000);
    assert_eq!(nr("read"), Some(0));
    assert_eq!(nr("clone3"), Some(435));
    assert_eq!(nr("rt_sigaction"), Some(512));
    assert_eq!(nr("execve"), Some(520));
    assert_eq!(nr("kexec_load"), Some(528));
    assert_eq!(nr("process_vm_writev"), Some(540));
    assert_eq!(nr("execveat"), Some(545));
    assert_eq!(nr("pwritev2"), Some(547));
    assert_eq!(nr("uselib"), None);
}
