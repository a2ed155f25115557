//! Translation of the specification's seccomp section, case by case.

use oci_spec::runtime::LinuxSeccomp;

use super::from_oci;
use crate::seccomp::machine::{Call, run};
use crate::seccomp::{Action, Arch, Error, Op, Rules, Width, compile};

const ALLOW: u32 = 0x7fff_0000;
const KILL_PROCESS: u32 = 0x8000_0000;
const EPERM: u32 = 0x5_0001;
const ENOSYS: u32 = 0x5_0026;

fn rules(json: &str) -> Result<Rules, Error> {
    let oci: LinuxSeccomp = serde_json::from_str(json).expect("a profile that oci-spec reads");
    from_oci(&oci)
}

fn outcome(rules: &Rules, arch: Arch, name: &str, args: [u64; 6]) -> u32 {
    run(&compile(rules).unwrap().insns, &Call::named(arch, name, args))
}

/// The shape of Docker's default profile after Docker has cut what does not apply.
const DOCKER_LIKE: &str = r#"{
  "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
  "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_S390X"],
  "flags": ["SECCOMP_FILTER_FLAG_LOG"],
  "syscalls": [
    {"names": ["read", "write", "openat", "fcntl64", "_llseek", "s390_pci_mmio_read", "no_such_call", "futex_time64"],
     "action": "SCMP_ACT_ALLOW"},
    {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 38, "op": "SCMP_CMP_LT"}]},
    {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 39, "op": "SCMP_CMP_EQ"}]},
    {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_GT"}]},
    {"names": ["personality"], "action": "SCMP_ACT_ALLOW",
     "args": [{"index": 0, "value": 4294967295, "op": "SCMP_CMP_EQ"}]},
    {"names": ["clone"], "action": "SCMP_ACT_ALLOW",
     "args": [{"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
    {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}
  ]}"#;

#[test]
fn docker_like_profile() {
    let rules = rules(DOCKER_LIKE).unwrap();
    assert!(rules.flags.log);
    for arch in [Arch::X86_64, Arch::X86, Arch::X32] {
        let is = |name: &str, args: [u64; 6], expected: u32| {
            assert_eq!(outcome(&rules, arch, name, args), expected, "{arch:?} {name} {args:x?}");
        };
        is("read", [0; 6], ALLOW);
        is("mount", [0; 6], EPERM);
        is("socket", [37, 0, 0, 0, 0, 0], ALLOW);
        is("socket", [38, 0, 0, 0, 0, 0], EPERM);
        is("socket", [39, 0, 0, 0, 0, 0], ALLOW);
        is("socket", [40, 0, 0, 0, 0, 0], EPERM);
        is("socket", [41, 0, 0, 0, 0, 0], ALLOW);
        is("personality", [0xffff_ffff, 0, 0, 0, 0, 0], ALLOW);
        is("personality", [0, 0, 0, 0, 0, 0], EPERM);
        is("clone", [0x11, 0, 0, 0, 0, 0], ALLOW);
        is("clone", [0x1000_0011, 0, 0, 0, 0, 0], EPERM);
        is("clone3", [0; 6], ENOSYS);
        is("mount_setattr", [0; 6], ENOSYS);
    }
    // Names of i386 alone; the last named number is 435 (clone3) on both.
    let i386 = outcome(&rules, Arch::X86, "_llseek", [0; 6]);
    assert_eq!(i386, ALLOW);
    // 32-bit socketcall hides the family, so the conditional entries say nothing about it.
    assert_eq!(outcome(&rules, Arch::X86, "socketcall", [1, 0, 0, 0, 0, 0]), EPERM);
    assert_eq!(outcome(&rules, Arch::Aarch64, "read", [0; 6]), KILL_PROCESS);
}

#[test]
fn an_unlisted_architecture_is_killed_and_x32_is_unknown() {
    let rules = rules(r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#).unwrap();
    assert_eq!(rules.arches, [Arch::NATIVE]);
    assert_eq!(outcome(&rules, Arch::X86_64, "read", [0; 6]), ALLOW);
    assert_eq!(outcome(&rules, Arch::X86, "read", [0; 6]), KILL_PROCESS);
    assert_eq!(outcome(&rules, Arch::X32, "read", [0; 6]), ENOSYS);
}

#[test]
fn masked_eq_has_its_mask_first() {
    let json = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["kill"], "action": "SCMP_ACT_ERRNO",
        "args": [{"index": 1, "value": 240, "valueTwo": 32, "op": "SCMP_CMP_MASKED_EQ"}]}]}"#;
    let rules = rules(json).unwrap();
    let condition = rules.entries[0].conditions[0];
    assert_eq!(condition.op, Op::MaskedEq { mask: 240 });
    assert_eq!((condition.value, condition.width), (32, Width::Full64));
    assert_eq!(outcome(&rules, Arch::NATIVE, "kill", [0, 0x2f, 0, 0, 0, 0]), EPERM);
    assert_eq!(outcome(&rules, Arch::NATIVE, "kill", [0, 0x3f, 0, 0, 0, 0]), ALLOW);
}

#[test]
fn a_repeated_argument_makes_every_condition_an_alternative() {
    let json = r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["kill"], "action": "SCMP_ACT_ALLOW",
        "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 2, "op": "SCMP_CMP_EQ"},
                 {"index": 1, "value": 9, "op": "SCMP_CMP_EQ"}]}]}"#;
    let rules = rules(json).unwrap();
    assert_eq!(rules.entries.len(), 3);
    for args in [[1, 0, 0, 0, 0, 0], [2, 0, 0, 0, 0, 0], [7, 9, 0, 0, 0, 0]] {
        assert_eq!(outcome(&rules, Arch::NATIVE, "kill", args), ALLOW, "{args:?}");
    }
    assert_eq!(outcome(&rules, Arch::NATIVE, "kill", [7, 8, 0, 0, 0, 0]), EPERM);
}

#[test]
fn different_arguments_must_all_hold() {
    let json = r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["kill"], "action": "SCMP_ACT_ALLOW",
        "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 1, "value": 9, "op": "SCMP_CMP_EQ"}]}]}"#;
    let rules = rules(json).unwrap();
    assert_eq!(outcome(&rules, Arch::NATIVE, "kill", [1, 9, 0, 0, 0, 0]), ALLOW);
    assert_eq!(outcome(&rules, Arch::NATIVE, "kill", [1, 8, 0, 0, 0, 0]), EPERM);
    assert_eq!(outcome(&rules, Arch::NATIVE, "kill", [2, 9, 0, 0, 0, 0]), EPERM);
}

#[test]
fn an_entry_without_conditions_wins_and_the_default_action_has_no_effect() {
    let json = r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        {"names": ["kill"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]},
        {"names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 22},
        {"names": ["tkill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
        {"names": ["tkill"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]}]}"#;
    let rules = rules(json).unwrap();
    assert_eq!(outcome(&rules, Arch::NATIVE, "kill", [1, 0, 0, 0, 0, 0]), 0x5_0016);
    assert_eq!(outcome(&rules, Arch::NATIVE, "tkill", [1, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(outcome(&rules, Arch::NATIVE, "tkill", [2, 0, 0, 0, 0, 0]), EPERM);
}

#[test]
fn default_errno_and_per_entry_actions() {
    let json = r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 95, "syscalls": [
        {"names": ["getppid"], "action": "SCMP_ACT_TRACE", "errnoRet": 7},
        {"names": ["getpid"], "action": "SCMP_ACT_KILL"}, {"names": ["getuid"], "action": "SCMP_ACT_KILL_PROCESS"},
        {"names": ["getgid"], "action": "SCMP_ACT_TRAP"}, {"names": ["geteuid"], "action": "SCMP_ACT_LOG"},
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO"}]}"#;
    let rules = rules(json).unwrap();
    let is = |name, expected| assert_eq!(outcome(&rules, Arch::NATIVE, name, [0; 6]), expected, "{name}");
    is("getppid", 0x7ff0_0007);
    is("getpid", 0);
    is("getuid", KILL_PROCESS);
    is("getgid", 0x3_0000);
    is("geteuid", 0x7ffc_0000);
    is("clone3", EPERM);
    is("close", 0x5_005f);
    is("mount_setattr", ENOSYS);
}

#[test]
fn what_is_refused() {
    let error = |json: &str| rules(json).unwrap_err().to_string();
    let notify =
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["kill"], "action": "SCMP_ACT_NOTIFY"}]}"#;
    assert_eq!(error(notify), "seccomp: SCMP_ACT_NOTIFY is not supported");
    assert!(error(r#"{"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}"#).contains("takes none"));
    assert!(error(r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 70000}"#).contains("70000"));
    let high = r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 5000}"#;
    assert!(matches!(compile(&rules(high).unwrap()), Err(Error::Errno { errno: 5000 })));
    let index = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["kill"], "action": "SCMP_ACT_ERRNO",
        "args": [{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]}]}"#;
    assert!(matches!(compile(&rules(index).unwrap()), Err(Error::ArgumentIndex { index: 6, .. })));
}

#[test]
fn unknown_names_leave_no_entry() {
    let json = r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        {"names": ["swapcontext", "future_call"], "action": "SCMP_ACT_ALLOW"}]}"#;
    let rules = rules(json).unwrap();
    assert!(rules.entries.is_empty());
    assert_eq!(rules.default, Action::Errno(1));
    compile(&rules).unwrap();
}
