//! The profiles, call by call.

use crate::seccomp::machine::{Call, is_const_allow, run, verify};
use crate::seccomp::profile::{agent, agent_init, deny_clone3};
use crate::seccomp::{Arch, Program, compile};

const ALLOW: u32 = 0x7fff_0000;
const KILL_PROCESS: u32 = 0x8000_0000;
const AGENT_INSNS_MAX: usize = 600;
const DENY_CLONE3_INSNS_MAX: usize = 9;

fn errno(errno: i32) -> u32 {
    0x5_0000 | errno as u32
}

fn outcome(program: &Program, name: &str, args: &[u64]) -> u32 {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    run(&program.insns, &Call::named(Arch::NATIVE, name, all))
}

#[test]
fn sizes() {
    for rules in [agent(), agent_init()] {
        let program = compile(&rules).unwrap();
        verify(&program.insns);
        assert!(program.insns.len() < AGENT_INSNS_MAX, "{} instructions", program.insns.len());
    }
    let program = compile(&deny_clone3()).unwrap();
    verify(&program.insns);
    assert!(program.insns.len() <= DENY_CLONE3_INSNS_MAX, "{} instructions", program.insns.len());
}

/// The kernel answers these from its bitmap only when no load of an argument is on their way.
#[test]
fn hot_calls_are_constant() {
    let hot = "read write close openat newfstatat fstat lseek mmap munmap mprotect brk futex epoll_wait epoll_pwait
        epoll_ctl poll ppoll recvfrom sendto recvmsg sendmsg readv writev pread64 pwrite64 fcntl getpid gettid
        clock_gettime nanosleep clock_nanosleep sched_yield rt_sigaction rt_sigprocmask rt_sigreturn execve exit_group
        wait4 getdents64 readlink statx accept4 connect madvise getrandom rseq pipe2 dup2 dup3 eventfd2 unlinkat";
    for rules in [agent(), agent_init()] {
        let program = compile(&rules).unwrap();
        for name in hot.split_whitespace() {
            let call = Call::named(Arch::NATIVE, name, [0; 6]);
            assert!(is_const_allow(&program.insns, &call), "{name}");
        }
        // The check itself must be able to say no.
        for name in ["ioctl", "clone", "mount"] {
            let call = Call::named(Arch::NATIVE, name, [0; 6]);
            assert!(!is_const_allow(&program.insns, &call), "{name}");
        }
    }
    let program = compile(&deny_clone3()).unwrap();
    for nr in (0..600).filter(|nr| *nr != 435) {
        assert!(is_const_allow(&program.insns, &Call::new(Arch::NATIVE, nr, [0; 6])), "{nr}");
    }
}

#[test]
fn sockets() {
    let program = compile(&agent()).unwrap();
    let (inet, inet6, unix, netlink) = (2, 10, 1, 16);
    for family in 0..=50u64 {
        for kind in 0..=15u64 {
            for protocol in (0..=64).chain([132, 136, 255, 262, 0xffff_ffff]) {
                let allowed = match (family, kind, protocol) {
                    (f, 1, 0 | 6) | (f, 2, 0 | 17 | 1 | 58) if f == inet || f == inet6 => true,
                    (f, 1 | 2 | 5, 0 | 1) if f == unix => true,
                    (f, 2 | 3, 0) if f == netlink => true,
                    _ => false,
                };
                let expected = match (allowed, [inet, inet6, unix, netlink].contains(&family)) {
                    (true, _) => ALLOW,
                    (false, true) => errno(libc::EPROTONOSUPPORT),
                    (false, false) => errno(libc::EAFNOSUPPORT),
                };
                // SOCK_NONBLOCK, SOCK_CLOEXEC, and what a caller may leave in the upper halves.
                for noise in [0, 0o4000 | 0o2000000, 1 << 32] {
                    let args = [family | noise >> 32 << 32, kind | noise, protocol | noise >> 32 << 32];
                    for name in ["socket", "socketpair"] {
                        assert_eq!(outcome(&program, name, &args), expected, "{name} {args:x?}");
                    }
                }
            }
        }
    }
}

#[test]
fn socket_options() {
    let program = compile(&agent()).unwrap();
    let denied = [(6, 31), (17, 100), (1, 26), (1, 50), (1, 51), (1, 52)];
    for level in 0..300 {
        for option in 0..120 {
            let expected = if denied.contains(&(level, option)) { errno(libc::ENOPROTOOPT) } else { ALLOW };
            assert_eq!(outcome(&program, "setsockopt", &[3, level, option]), expected, "{level} {option}");
            let noisy = [3, level | 1 << 40, option | 1 << 63];
            assert_eq!(outcome(&program, "setsockopt", &noisy), expected, "{level} {option}");
        }
    }
}

#[test]
fn namespaces() {
    let program = compile(&agent()).unwrap();
    let new = [0x2_0000, 0x200_0000, 0x400_0000, 0x800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000u64];
    for flag in new {
        assert_eq!(outcome(&program, "clone", &[flag | 17]), errno(libc::EPERM), "{flag:#x}");
        assert_eq!(outcome(&program, "clone", &[flag | 17 | 1 << 32]), errno(libc::EPERM), "{flag:#x}");
    }
    // fork, pthread_create, posix_spawn
    for flags in [0x120_0011, 0x3d_0f00, 0x4111] {
        assert_eq!(outcome(&program, "clone", &[flags]), ALLOW, "{flags:#x}");
    }
    for name in ["unshare", "setns", "mount", "pivot_root", "chroot", "open_tree", "pidfd_getfd", "bpf"] {
        assert_eq!(outcome(&program, name, &[]), errno(libc::EPERM), "{name}");
    }
}

#[test]
fn single_arguments() {
    let program = compile(&agent()).unwrap();
    let eperm = errno(libc::EPERM);
    let check = |name, args: &[u64], expected| assert_eq!(outcome(&program, name, args), expected, "{name} {args:x?}");
    for noise in [0, 1 << 32, 0xffff_ffff_0000_0000] {
        check("ioctl", &[0, 0x5412 | noise], eperm);
        check("ioctl", &[0, 0x541c | noise], eperm);
        check("ioctl", &[0, 0x5413 | noise], ALLOW);
        check("prctl", &[35 | noise], eperm);
        check("prctl", &[38 | noise], ALLOW);
        for (value, expected) in [(0, ALLOW), (8, ALLOW), (0x2_0000, ALLOW), (0x2_0008, ALLOW), (0xffff_ffff, ALLOW)] {
            check("personality", &[value | noise], expected);
        }
        for value in [1, 0x4_0000, 0x40_0000, 0xffff_fffe] {
            check("personality", &[value | noise], eperm);
        }
        let kinds = [
            (0, ALLOW),
            (0x1000, ALLOW),
            (0x8000, ALLOW),
            (0xc000, ALLOW),
            (0x2000, eperm),
            (0x6000, eperm),
            (0x4000, eperm),
            (0xa000, eperm),
        ];
        for (kind, expected) in kinds {
            check("mknodat", &[3, 0, kind | 0o644 | noise], expected);
            // The kernel cuts the mode to 16 bits, so bit 16 must not hide the type.
            check("mknodat", &[3, 0, kind | 0o644 | 1 << 16], expected);
            if cfg!(target_arch = "x86_64") {
                check("mknod", &[0, kind | 0o644 | noise], expected);
            }
        }
    }
}

#[test]
fn clone3_tells_the_profiles_apart() {
    let enosys = errno(libc::ENOSYS);
    assert_eq!(outcome(&compile(&agent()).unwrap(), "clone3", &[]), enosys);
    assert_eq!(outcome(&compile(&deny_clone3()).unwrap(), "clone3", &[]), enosys);
    assert_eq!(outcome(&compile(&agent_init()).unwrap(), "clone3", &[]), ALLOW);
    let (agent, init) = (compile(&agent()).unwrap(), compile(&agent_init()).unwrap());
    for nr in (0..1000).filter(|nr| *nr != 435) {
        for args in [[0; 6], [u64::MAX; 6], [0x1000_0011, 0x5412, 1, 2, 3, 4]] {
            let call = Call::new(Arch::NATIVE, nr, args);
            assert_eq!(run(&agent.insns, &call), run(&init.insns, &call), "{call:?}");
        }
    }
}

#[test]
fn numbers_that_the_profile_does_not_know_and_other_architectures() {
    let program = compile(&agent()).unwrap();
    let enosys = errno(libc::ENOSYS);
    for name in ["io_uring_setup", "io_uring_enter", "io_uring_register"] {
        assert_eq!(outcome(&program, name, &[]), enosys, "{name}");
    }
    for nr in [337, 400, 470, 512, 547, 600, 0x3fff_ffff] {
        assert_eq!(run(&program.insns, &Call::new(Arch::X86_64, nr, [0; 6])), enosys, "{nr}");
    }
    for nr in [0, 39, 512, 547, 0x3fff_ffff] {
        let call = Call::new(Arch::X32, 0x4000_0000 | nr, [0; 6]);
        assert_eq!(run(&program.insns, &call), enosys, "{nr}");
    }
    for nr in 0..500 {
        for arch in [Arch::X86, Arch::Aarch64] {
            assert_eq!(run(&program.insns, &Call::new(arch, nr, [0; 6])), KILL_PROCESS, "{arch:?} {nr}");
        }
    }
}
