//! Real filters in a forked child: what the kernel answers under them. Needs no privileges.

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use icebox_runtime::seccomp::profile::{agent, agent_init, deny_clone3};
use icebox_runtime::seccomp::{Action, Arch, Entry, Flags, Program, Rules, compile};

use sys::{Ended, call, in_child};

/// The only unsafe part: fork, raw calls, and the pipe for the child's results.
#[allow(unsafe_code)]
mod sys {
    use std::io::{self, Read};
    use std::os::fd::AsRawFd;
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    pub(super) struct Ended {
        pub(super) seen: Vec<i64>,
        pub(super) status: ExitStatus,
    }

    /// A raw call: its result, or minus its errno.
    pub(super) fn call(nr: i64, args: [u64; 6]) -> i64 {
        let [a, b, c, d, e, f] = args;
        // SAFETY: the tests pass numbers and null pointers only; the kernel checks every pointer.
        let rc = unsafe { libc::syscall(nr, a, b, c, d, e, f) };
        match rc {
            0.. => rc,
            _ => -i64::from(io::Error::last_os_error().raw_os_error().unwrap_or(0)),
        }
    }

    pub(super) fn exec_shell(script: &std::ffi::CStr) {
        let argv = [c"sh".as_ptr(), c"-c".as_ptr(), script.as_ptr(), std::ptr::null()];
        let envp = [c"PATH=/usr/bin:/bin".as_ptr(), std::ptr::null()];
        // SAFETY: both lists end with a null pointer and live until the call returns, which it does only on failure.
        unsafe { libc::execve(c"/bin/sh".as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    }

    /// getpid of the 32-bit ABI.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn getpid_of_i386() -> i64 {
        let result: i64;
        // SAFETY: getpid touches no memory; the kernel may lose r8 to r11 on this way in.
        unsafe {
            std::arch::asm!(
                "int 0x80",
                inlateout("rax") 20i64 => result,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
                options(nostack),
            );
        }
        result
    }

    /// Runs `body` in a forked child with no_new_privs; it reports numbers and must not allocate.
    pub(super) fn in_child(body: impl FnOnce(&mut dyn FnMut(i64))) -> Ended {
        let (mut reader, writer) = io::pipe().expect("pipe");
        let fd = writer.as_raw_fd();
        // SAFETY: the harness has threads, so the child does nothing but system calls and ends by _exit.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork");
        if pid == 0 {
            // SAFETY: no pointers are passed.
            unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
            body(&mut |value: i64| {
                let bytes = value.to_ne_bytes();
                // SAFETY: write reads 8 bytes of a live array.
                unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
            });
            // SAFETY: ends the child without running the harness's exit handlers.
            unsafe { libc::_exit(0) };
        }
        drop(writer);
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).expect("what the child saw");
        let mut status = 0;
        // SAFETY: the child of this process, which has no other waiter; `status` is a live int.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        let word = |word: &[u8]| i64::from_ne_bytes(word.try_into().expect("8 bytes"));
        Ended { seen: bytes.chunks_exact(8).map(word).collect(), status: ExitStatus::from_raw(status) }
    }
}

/// 0: loaded; 1: loaded, with a listener (closed at once); -1: refused.
fn load(program: &Program) -> i64 {
    match icebox_runtime::seccomp::load(program) {
        Ok(None) => 0,
        Ok(Some(_)) => 1,
        Err(_) => -1,
    }
}

/// A raw system call and its errno; None for any success.
type Case = (&'static str, i64, [u64; 6], Option<i32>);

const ANY: u64 = u64::MAX;

const CASES: &[Case] = &[
    ("getpid", libc::SYS_getpid, [0; 6], None),
    ("socket inet stream", libc::SYS_socket, [2, 1, 0, 0, 0, 0], None),
    ("socket unix seqpacket", libc::SYS_socket, [1, 5 | 0o2000000, 0, 0, 0, 0], None),
    ("socket netlink route", libc::SYS_socket, [16, 3, 0, 0, 0, 0], None),
    ("socket alg", libc::SYS_socket, [38, 5, 0, 0, 0, 0], Some(libc::EAFNOSUPPORT)),
    ("socket inet raw", libc::SYS_socket, [2, 3, 1, 0, 0, 0], Some(libc::EPROTONOSUPPORT)),
    ("socket netlink audit", libc::SYS_socket, [16, 3, 9, 0, 0, 0], Some(libc::EPROTONOSUPPORT)),
    ("unshare user", libc::SYS_unshare, [0x1000_0000, 0, 0, 0, 0, 0], Some(libc::EPERM)),
    ("clone user", libc::SYS_clone, [0x1000_0011, 0, 0, 0, 0, 0], Some(libc::EPERM)),
    ("clone3", libc::SYS_clone3, [0; 6], Some(libc::ENOSYS)),
    ("io_uring_setup", libc::SYS_io_uring_setup, [0; 6], Some(libc::ENOSYS)),
    ("TIOCSTI", libc::SYS_ioctl, [ANY, 0x5412, 0, 0, 0, 0], Some(libc::EPERM)),
    ("TIOCSTI, high bits", libc::SYS_ioctl, [ANY, 0x1_0000_5412, 0, 0, 0, 0], Some(libc::EPERM)),
    ("another ioctl", libc::SYS_ioctl, [ANY, 0x5413, 0, 0, 0, 0], Some(libc::EBADF)),
    ("TCP_ULP", libc::SYS_setsockopt, [ANY, 6, 31, 0, 0, 0], Some(libc::ENOPROTOOPT)),
    ("TCP_NODELAY", libc::SYS_setsockopt, [ANY, 6, 1, 0, 0, 0], Some(libc::EBADF)),
    ("PR_SET_MM", libc::SYS_prctl, [35, 0, 0, 0, 0, 0], Some(libc::EPERM)),
    ("PR_GET_NO_NEW_PRIVS", libc::SYS_prctl, [39, 0, 0, 0, 0, 0], None),
    ("personality query", libc::SYS_personality, [0xffff_ffff, 0, 0, 0, 0, 0], None),
    ("personality no randomize", libc::SYS_personality, [0x4_0000, 0, 0, 0, 0, 0], Some(libc::EPERM)),
    ("mknodat block device", libc::SYS_mknodat, [ANY, 0, 0x6000, 0, 0, 0], Some(libc::EPERM)),
    ("a number from the future", 1000, [0; 6], Some(libc::ENOSYS)),
    ("x32 getpid", 0x4000_0000 | libc::SYS_getpid, [0; 6], Some(libc::ENOSYS)),
];

#[test]
fn agent_answers() {
    let program = compile(&agent()).expect("compile");
    let Ended { seen, status } = in_child(|report| {
        report(load(&program));
        for (_, nr, args, _) in CASES {
            report(call(*nr, *args));
        }
    });
    assert!(status.success(), "{status}");
    assert_eq!(seen[0], 0, "load");
    assert_eq!(seen.len(), CASES.len() + 1);
    for ((name, _, args, expected), seen) in CASES.iter().zip(&seen[1..]) {
        match expected {
            Some(errno) => assert_eq!(*seen, -i64::from(*errno), "{name} {args:x?}"),
            None => assert!(*seen >= 0, "{name} {args:x?}: errno {}", -seen),
        }
    }
}

/// Without the filter some of the same calls end otherwise, so the test above tests the filter.
#[test]
fn the_same_calls_without_the_filter() {
    let Ended { seen, .. } = in_child(|report| {
        for (name, nr, args, _) in CASES {
            // These would change the child.
            let skip = name.starts_with("clone") || name.starts_with("unshare");
            report(if skip { 0 } else { call(*nr, *args) });
        }
    });
    let result = |wanted: &str| seen[CASES.iter().position(|case| case.0 == wanted).expect("a case")];
    assert_eq!(result("TIOCSTI, high bits"), -i64::from(libc::EBADF));
    assert_eq!(result("TCP_ULP"), -i64::from(libc::EBADF));
    assert_eq!(result("mknodat block device"), -i64::from(libc::EFAULT));
}

#[test]
fn programs_run_under_agent() {
    let program = compile(&agent()).expect("compile");
    let script = c"set -e; ls / | sort | head -n 1 >/dev/null; x=$(echo 1 | cat); test \"$x\" = 1; \
        mkfifo /tmp/icebox-seccomp-$$; rm /tmp/icebox-seccomp-$$";
    let Ended { seen, status } = in_child(|report| {
        report(load(&program));
        sys::exec_shell(script);
        report(-2);
    });
    assert_eq!(seen, [0]);
    assert!(status.success(), "{status}");
}

#[test]
fn deny_clone3_stacks_on_agent_init() {
    let (init, deny) = (compile(&agent_init()).expect("init"), compile(&deny_clone3()).expect("deny"));
    let Ended { seen, status } = in_child(|report| {
        report(load(&init));
        report(call(libc::SYS_clone3, [0; 6]));
        report(load(&deny));
        report(call(libc::SYS_clone3, [0; 6]));
        report(call(libc::SYS_unshare, [0x1000_0000, 0, 0, 0, 0, 0]));
        report(i64::from(call(libc::SYS_getpid, [0; 6]) > 0));
    });
    assert!(status.success(), "{status}");
    assert_eq!(seen, [0, -i64::from(libc::EINVAL), 0, -i64::from(libc::ENOSYS), -i64::from(libc::EPERM), 1]);
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_32_bit_call_ends_the_process() {
    let bare = in_child(|report| report(sys::getpid_of_i386()));
    let program = compile(&agent()).expect("compile");
    let Ended { seen, status } = in_child(|report| {
        report(load(&program));
        report(sys::getpid_of_i386());
    });
    assert_eq!(seen, [0], "the call must not return");
    // A kernel without 32-bit calls answers the instruction itself with SIGSEGV.
    let expected = if bare.status.success() { libc::SIGSYS } else { libc::SIGSEGV };
    assert_eq!(status.signal(), Some(expected), "{status}");
}

fn one_call(name: &'static str, action: Action, flags: Flags) -> Rules {
    let entry = Entry { names: vec![name.into()], action, conditions: Vec::new() };
    Rules { default: Action::Allow, enosys_above_last: false, arches: vec![Arch::NATIVE], flags, entries: vec![entry] }
}

#[test]
fn every_action_and_flag_loads() {
    let none = Flags::default();
    let all = Flags { tsync: true, log: true, spec_allow: true, wait_killable_recv: true };
    let enosys = -i64::from(libc::ENOSYS);
    let cases = [
        (Action::Errno(95), all, 0, Some(-95)),
        (Action::Trace(7), none, 0, Some(enosys)),
        (Action::Log, none, 0, Some(1)),
        // load() closes the listener at once, which ends every notified call with ENOSYS.
        (Action::Notify, none, 1, Some(enosys)),
        (Action::Notify, all, 1, Some(enosys)),
        (Action::Trap, none, 0, None),
        (Action::KillThread, none, 0, None),
        (Action::KillProcess, none, 0, None),
    ];
    for (action, flags, loaded, result) in cases {
        // Not getsid: it answers 0 where the session's leader lives outside the PID namespace, as in a container.
        let program = compile(&one_call("getpid", action, flags)).expect("compile");
        let Ended { seen, status } = in_child(|report| {
            report(load(&program));
            report(call(libc::SYS_getpid, [0; 6]).min(1));
        });
        match result {
            Some(result) => assert_eq!(seen, [loaded, result], "{action:?} {flags:?}"),
            None => {
                assert_eq!(seen, [loaded], "{action:?}");
                assert_eq!(status.signal(), Some(libc::SIGSYS), "{action:?}: {status}");
            }
        }
    }
}

#[test]
fn load_says_why_it_failed() {
    let mut program = compile(&agent()).expect("compile");
    program.insns.truncate(3);
    let error = icebox_runtime::seccomp::load(&program).expect_err("a program whose jumps lead outside");
    assert_eq!(error.to_string(), "seccomp: cannot load the filter of 3 instructions");
    assert!(std::error::Error::source(&error).is_some());
}

/// Figures for a reader: run with `--nocapture`.
#[test]
fn how_long_agent_takes() {
    let start = Instant::now();
    let program = compile(&agent()).expect("compile");
    let compiled = start.elapsed();
    let Ended { seen, .. } = in_child(|report| {
        let start = Instant::now();
        report(load(&program));
        report(i64::try_from(start.elapsed().as_nanos()).unwrap_or(i64::MAX));
    });
    assert_eq!(seen[0], 0);
    let loaded = Duration::from_nanos(seen[1].unsigned_abs());
    println!("agent: {} instructions, compiled in {compiled:?}, loaded in {loaded:?}", program.insns.len());
}
