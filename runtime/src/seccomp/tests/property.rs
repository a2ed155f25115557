//! The compiled program against a naive reading of the rules.

use std::borrow::Cow;

use proptest::prelude::*;

use crate::seccomp::machine::{Call, run, verify};
use crate::seccomp::names::number;
use crate::seccomp::{Action, Arch, Condition, Entry, Error, Flags, Op, Rules, Width, compile};

/// Neighbours, far ones, names of one architecture only, and x32's own. None that i386's carriers carry.
const NAMES: [&str; 30] = [
    "read",
    "write",
    "open",
    "close",
    "stat",
    "ioctl",
    "readv",
    "execve",
    "clone",
    "fork",
    "kill",
    "uname",
    "ptrace",
    "mount",
    "getpid",
    "personality",
    "openat",
    "waitpid",
    "_llseek",
    "mmap2",
    "clock_gettime64",
    "clone3",
    "faccessat2",
    "mseal",
    "io_submit",
    "uselib",
    "preadv2",
    "rt_sigreturn",
    "arch_prctl",
    "fchmodat2",
];

fn naive(rules: &Rules, arch: Arch, nr: u32, args: [u64; 6]) -> Action {
    let enosys = Action::Errno(38);
    let listed = |arch| {
        if rules.arches.is_empty() { arch == Arch::NATIVE } else { rules.arches.contains(&arch) }
    };
    // x32 and x86-64 share an audit number; bit 30 and above tell them apart.
    let arch = match arch {
        Arch::X86_64 | Arch::X32 if nr >= 0x4000_0000 => Arch::X32,
        Arch::X86_64 | Arch::X32 => Arch::X86_64,
        other => other,
    };
    if !listed(arch) {
        return match arch {
            Arch::X32 if listed(Arch::X86_64) => enosys,
            _ => Action::KillProcess,
        };
    }
    let numbers = |entry: &Entry| entry.names.iter().filter_map(|name| number(arch, name)).collect::<Vec<_>>();
    let last = rules.entries.iter().flat_map(numbers).max();
    if rules.enosys_above_last && last.is_some_and(|last| nr > last) {
        return enosys;
    }
    let holds = |entry: &&Entry| entry.conditions.iter().all(|condition| naive_holds(condition, args));
    let mut named = rules.entries.iter().filter(|entry| numbers(entry).contains(&nr));
    named.find(holds).map_or(rules.default, |entry| entry.action)
}

fn naive_holds(condition: &Condition, args: [u64; 6]) -> bool {
    let cut = |value: u64| match condition.width {
        Width::Low32 => value & 0xffff_ffff,
        Width::Full64 => value,
    };
    let (arg, value) = (cut(args[usize::from(condition.index)]), cut(condition.value));
    match condition.op {
        Op::Ne => arg != value,
        Op::Lt => arg < value,
        Op::Le => arg <= value,
        Op::Eq => arg == value,
        Op::Ge => arg >= value,
        Op::Gt => arg > value,
        Op::MaskedEq { mask } => arg & cut(mask) == value & cut(mask),
    }
}

fn return_value(action: Action) -> u32 {
    match action {
        Action::KillProcess => 0x8000_0000,
        Action::KillThread => 0x0000_0000,
        Action::Trap => 0x0003_0000,
        Action::Errno(data) => 0x0005_0000 + u32::from(data),
        Action::Notify => 0x7fc0_0000,
        Action::Trace(data) => 0x7ff0_0000 + u32::from(data),
        Action::Log => 0x7ffc_0000,
        Action::Allow => 0x7fff_0000,
    }
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        3 => Just(Action::Allow),
        1 => Just(Action::Log),
        3 => (0u16..=4095).prop_map(Action::Errno),
        1 => Just(Action::Trap),
        1 => Just(Action::KillThread),
        1 => Just(Action::KillProcess),
        1 => any::<u16>().prop_map(Action::Trace),
        1 => Just(Action::Notify),
    ]
}

fn arch() -> impl Strategy<Value = Arch> {
    prop::sample::select(Arch::ALL.to_vec())
}

/// Few distinct halves, so that comparisons meet equality in the upper, the lower and both halves.
fn value() -> impl Strategy<Value = u64> {
    let half = || prop::sample::select(vec![0u64, 1, 2, 0x11, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff]);
    prop_oneof![9 => (half(), half()).prop_map(|(high, low)| high << 32 | low), 1 => any::<u64>()]
}

fn condition() -> impl Strategy<Value = Condition> {
    let op = prop_oneof![
        Just(Op::Ne),
        Just(Op::Lt),
        Just(Op::Le),
        Just(Op::Eq),
        Just(Op::Ge),
        Just(Op::Gt),
        value().prop_map(|mask| Op::MaskedEq { mask }),
    ];
    let width = prop_oneof![Just(Width::Low32), Just(Width::Full64)];
    (0u8..6, width, op, value()).prop_map(|(index, width, op, value)| Condition { index, width, op, value })
}

fn entry() -> impl Strategy<Value = Entry> {
    let names = prop::collection::vec(prop::sample::select(NAMES.to_vec()).prop_map(Cow::Borrowed), 0..5);
    let conditions = prop_oneof![
        3 => Just(Vec::new()),
        5 => prop::collection::vec(condition(), 1..4),
        1 => prop::collection::vec(condition(), 30..33),
    ];
    (names, action(), conditions).prop_map(|(names, action, conditions)| Entry { names, action, conditions })
}

fn rules() -> impl Strategy<Value = Rules> {
    let arches = prop::collection::vec(arch(), 0..5);
    let entries = prop::collection::vec(entry(), 0..25);
    (action(), any::<bool>(), arches, entries).prop_map(|(default, enosys_above_last, arches, entries)| Rules {
        default,
        enosys_above_last,
        arches,
        flags: Flags::default(),
        entries,
    })
}

/// Named numbers, their neighbours, and the edges of the number space.
fn number_near() -> impl Strategy<Value = (Arch, u32)> {
    let named = (arch(), prop::sample::select(NAMES.to_vec()), -1i32..=1).prop_map(|(arch, name, by)| {
        let nr = number(arch, name).unwrap_or(0);
        (arch, nr.wrapping_add_signed(by))
    });
    let edges = vec![0, 1, 600, 0x3fff_ffff, 0x4000_0000, 0x4000_0300, 0x7fff_ffff, 0x8000_0000, u32::MAX];
    prop_oneof![8 => named, 1 => (arch(), prop::sample::select(edges)), 1 => (arch(), any::<u32>())]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn program_means_what_the_rules_say(
        rules in rules(),
        calls in prop::collection::vec((number_near(), prop::array::uniform6(value())), 64),
    ) {
        let program = match compile(&rules) {
            // Possible with many long entries for four architectures; the kernel would take no more either.
            Err(Error::TooLong { .. }) => return Ok(()),
            result => result.unwrap(),
        };
        verify(&program.insns);
        for ((arch, nr), args) in calls {
            let expected = return_value(naive(&rules, arch, nr, args));
            let got = run(&program.insns, &Call::new(arch, nr, args));
            prop_assert_eq!(got, expected, "{:?} {:#x} {:x?}", arch, nr, args);
        }
        // The arguments that a condition names, exactly and one off, under every name.
        for entry in &rules.entries {
            for (name, arch) in entry.names.iter().flat_map(|name| Arch::ALL.map(|arch| (name, arch))) {
                let Some(nr) = number(arch, name) else { continue };
                for by in [-1i64, 0, 1, 1 << 32] {
                    let mut args = [0; 6];
                    for condition in &entry.conditions {
                        args[usize::from(condition.index)] = condition.value.wrapping_add_signed(by);
                    }
                    let expected = return_value(naive(&rules, arch, nr, args));
                    let got = run(&program.insns, &Call::new(arch, nr, args));
                    prop_assert_eq!(got, expected, "{:?} {} {:x?}", arch, name, args);
                }
            }
        }
    }

    #[test]
    fn an_architecture_without_a_block_is_killed(rules in rules(), audit in any::<u32>(), nr in any::<u32>()) {
        let known = [0xc000_003e, 0x4000_0003, 0xc000_00b7];
        prop_assume!(!known.contains(&audit));
        let Ok(program) = compile(&rules) else { return Ok(()) };
        let call = Call { audit, nr, args: [0; 6] };
        prop_assert_eq!(run(&program.insns, &call), 0x8000_0000);
    }
}
