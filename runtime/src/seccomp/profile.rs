//! The filters of a sandbox, as tables.
//!
//! [`agent()`] is an allow-list for unreviewed programs: a call that is not on it fails with EPERM, or with
//! ENOSYS where programs have a fallback for an old kernel only (clone3, io_uring, aio) or where the profile does not
//! know the number. It never kills for a native call, since C libraries and language runtimes probe. Frequent calls
//! are allowed without a look at arguments, so the kernel answers them from its bitmap.
//!
//! Arguments that the kernel cuts to 32 bits are compared on 32 bits: a caller may leave anything above them.

mod calls;

use std::borrow::Cow;

use super::rules::{Action, Condition, Entry, Flags, Op, Rules};

const EPERM: Action = errno(libc::EPERM);
const ENOSYS: Action = errno(libc::ENOSYS);
const EAFNOSUPPORT: Action = errno(libc::EAFNOSUPPORT);
const EPROTONOSUPPORT: Action = errno(libc::EPROTONOSUPPORT);
const ENOPROTOOPT: Action = errno(libc::ENOPROTOOPT);

/// The profile of every process that a user runs in a sandbox. Native architecture only: calls of another one end the
/// process, since the 32-bit `socketcall` cannot be filtered by family.
pub fn agent() -> Rules {
    agent_with_clone3(ENOSYS)
}

/// [`agent()`] with clone3 allowed, for the resident first process of a sandbox, which starts processes in their cgroup
/// by CLONE_INTO_CGROUP. Filters are inherited, so each process that it starts must stack [`deny_clone3()`].
pub fn agent_init() -> Rules {
    agent_with_clone3(Action::Allow)
}

fn agent_with_clone3(clone3: Action) -> Rules {
    let mut entries: Vec<Entry> = calls::ALLOWED.iter().map(|group| always(Action::Allow, group)).collect();
    entries.push(always(EPERM, calls::DENIED));
    entries.push(always(ENOSYS, calls::UNAVAILABLE));
    for table in [SOCKET, SETSOCKOPT, CLONE, IOCTL, PRCTL, PERSONALITY, MKNOD, MKNODAT] {
        entries.extend(table.iter().map(Line::entry));
    }
    entries.push(always(clone3, CLONE3));
    Rules { default: ENOSYS, enosys_above_last: false, arches: Vec::new(), flags: Flags::default(), entries }
}

/// Answers ENOSYS to clone3 and allows everything else that the filters below it allow.
///
/// clone3 takes its flags from memory, where no filter can look; ENOSYS sends C libraries to clone.
pub fn deny_clone3() -> Rules {
    Rules {
        default: Action::Allow,
        enosys_above_last: false,
        arches: Vec::new(),
        flags: Flags::default(),
        entries: vec![always(ENOSYS, CLONE3)],
    }
}

const CLONE3: &str = "clone3";

/// One line of the tables below: for `calls`, when all of `when` hold, `then`. The first line that holds decides.
struct Line {
    calls: &'static str,
    when: &'static [Condition],
    then: Action,
}

impl Line {
    fn entry(&self) -> Entry {
        Entry { conditions: self.when.to_vec(), ..always(self.then, self.calls) }
    }
}

const fn line(calls: &'static str, when: &'static [Condition], then: Action) -> Line {
    Line { calls, when, then }
}

const fn is(index: u8, value: i32) -> Condition {
    Condition::low32(index, Op::Eq, value as u32)
}

const fn isnt(index: u8, value: i32) -> Condition {
    Condition::low32(index, Op::Ne, value as u32)
}

const fn above(index: u8, value: i32) -> Condition {
    Condition::low32(index, Op::Gt, value as u32)
}

const fn masked(index: u8, mask: u32, value: u32) -> Condition {
    Condition::low32(index, Op::MaskedEq { mask: mask as u64 }, value)
}

/// socket(family, type, protocol): the type's upper bits are SOCK_NONBLOCK and SOCK_CLOEXEC (SOCK_TYPE_MASK).
const fn kind(value: i32) -> Condition {
    masked(1, 0xf, value as u32)
}

const fn errno(errno: i32) -> Action {
    Action::Errno(errno as u16)
}

fn always(action: Action, calls: &'static str) -> Entry {
    let names = calls.split_ascii_whitespace().map(Cow::Borrowed).collect();
    Entry { names, action, conditions: Vec::new() }
}

/// Local, IPv4, IPv6 and route-netlink sockets without raw access. Every other family (AF_ALG, AF_PACKET, AF_VSOCK,
/// AF_RXRPC, ...) is kernel surface with a history of privilege escalation (CVE-2026-31431 "Copy Fail" for AF_ALG)
/// and of no use in a sandbox. The codes are those of a kernel that lacks the family or protocol: programs fall back.
const SOCKET: &[Line] = &[
    line(
        S,
        &[isnt(0, libc::AF_UNIX), isnt(0, libc::AF_INET), isnt(0, libc::AF_INET6), isnt(0, libc::AF_NETLINK)],
        EAFNOSUPPORT,
    ),
    // Protocol 0 is NETLINK_ROUTE, which getaddrinfo and getifaddrs read; they ask for it as SOCK_RAW.
    line(S, &[is(0, libc::AF_NETLINK), isnt(2, libc::NETLINK_ROUTE)], EPROTONOSUPPORT),
    line(S, &[is(0, libc::AF_NETLINK), kind(libc::SOCK_RAW)], Action::Allow),
    line(S, &[is(0, libc::AF_NETLINK), kind(libc::SOCK_DGRAM)], Action::Allow),
    line(S, &[is(0, libc::AF_NETLINK)], EPROTONOSUPPORT),
    // The kernel takes 0 and PF_UNIX (1) as the protocol of a local socket.
    line(S, &[is(0, libc::AF_UNIX), above(2, libc::PF_UNIX)], EPROTONOSUPPORT),
    line(S, &[is(0, libc::AF_UNIX), kind(libc::SOCK_STREAM)], Action::Allow),
    line(S, &[is(0, libc::AF_UNIX), kind(libc::SOCK_DGRAM)], Action::Allow),
    line(S, &[is(0, libc::AF_UNIX), kind(libc::SOCK_SEQPACKET)], Action::Allow),
    line(S, &[is(0, libc::AF_UNIX)], EPROTONOSUPPORT),
    // From here on the family is AF_INET or AF_INET6. No MPTCP, SCTP, UDP-Lite, no raw sockets.
    line(S, &[kind(libc::SOCK_STREAM), is(2, 0)], Action::Allow),
    line(S, &[kind(libc::SOCK_STREAM), is(2, libc::IPPROTO_TCP)], Action::Allow),
    line(S, &[kind(libc::SOCK_DGRAM), is(2, 0)], Action::Allow),
    line(S, &[kind(libc::SOCK_DGRAM), is(2, libc::IPPROTO_UDP)], Action::Allow),
    line(S, &[kind(libc::SOCK_DGRAM), is(2, libc::IPPROTO_ICMP)], Action::Allow),
    line(S, &[kind(libc::SOCK_DGRAM), is(2, libc::IPPROTO_ICMPV6)], Action::Allow),
    line(S, &[], EPROTONOSUPPORT),
];
const S: &str = "socket socketpair";

/// setsockopt(fd, level, option): options that put other subsystems, or programs, behind a plain socket. ENOPROTOOPT
/// is what a kernel without them says, and TLS libraries then stay in user space.
const SETSOCKOPT: &[Line] = &[
    line("setsockopt", &[is(1, libc::SOL_TCP), is(2, libc::TCP_ULP)], ENOPROTOOPT),
    line("setsockopt", &[is(1, libc::SOL_UDP), is(2, UDP_ENCAP)], ENOPROTOOPT),
    line("setsockopt", &[is(1, libc::SOL_SOCKET), is(2, libc::SO_ATTACH_FILTER)], ENOPROTOOPT),
    line("setsockopt", &[is(1, libc::SOL_SOCKET), is(2, libc::SO_ATTACH_BPF)], ENOPROTOOPT),
    line("setsockopt", &[is(1, libc::SOL_SOCKET), is(2, libc::SO_ATTACH_REUSEPORT_CBPF)], ENOPROTOOPT),
    line("setsockopt", &[is(1, libc::SOL_SOCKET), is(2, libc::SO_ATTACH_REUSEPORT_EBPF)], ENOPROTOOPT),
    line("setsockopt", &[], Action::Allow),
];
/// `linux/udp.h`
const UDP_ENCAP: i32 = 100;

/// clone(flags): no new namespace. A user namespace would give every capability over nf_tables and the like.
/// CLONE_NEWTIME is absent: in clone its bit belongs to the exit signal.
const CLONE: &[Line] = &[line("clone", &[masked(0, CLONE_NEW, 0)], Action::Allow), line("clone", &[], EPERM)];
const CLONE_NEW: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;

/// ioctl(fd, request): no typing into a terminal that an outer process reads (CVE-2017-5226, and CVE-2023-1523 for
/// TIOCLINUX). Filters that compared 64 bits were passed by a request with bit 32 set (CVE-2019-10063).
const IOCTL: &[Line] = &[
    line("ioctl", &[is(1, TIOCSTI)], EPERM),
    line("ioctl", &[is(1, TIOCLINUX)], EPERM),
    line("ioctl", &[], Action::Allow),
];
/// `asm-generic/ioctls.h`
const TIOCSTI: i32 = 0x5412;
const TIOCLINUX: i32 = 0x541c;

/// prctl(option): PR_SET_MM rewrites what /proc says about a process.
const PRCTL: &[Line] = &[line("prctl", &[is(0, libc::PR_SET_MM)], EPERM), line("prctl", &[], Action::Allow)];

/// personality(value): PER_LINUX and PER_LINUX32, each also with UNAME26, and the query. The rest loosens the memory
/// layout or runs rarely tested code.
const PERSONALITY: &[Line] = &[
    line("personality", &[is(0, 0)], Action::Allow),
    line("personality", &[is(0, 0x8)], Action::Allow),
    line("personality", &[is(0, 0x2_0000)], Action::Allow),
    line("personality", &[is(0, 0x2_0008)], Action::Allow),
    line("personality", &[is(0, -1)], Action::Allow),
    line("personality", &[], EPERM),
];

/// mknod(path, mode) and mknodat(dir, path, mode): files, pipes and sockets, no devices. The kernel cuts the mode to
/// 16 bits and takes type 0 for a regular file.
const MKNOD: &[Line] = &[
    line("mknod", &[masked(1, libc::S_IFMT, 0)], Action::Allow),
    line("mknod", &[masked(1, libc::S_IFMT, libc::S_IFREG)], Action::Allow),
    line("mknod", &[masked(1, libc::S_IFMT, libc::S_IFIFO)], Action::Allow),
    line("mknod", &[masked(1, libc::S_IFMT, libc::S_IFSOCK)], Action::Allow),
    line("mknod", &[], EPERM),
];
const MKNODAT: &[Line] = &[
    line("mknodat", &[masked(2, libc::S_IFMT, 0)], Action::Allow),
    line("mknodat", &[masked(2, libc::S_IFMT, libc::S_IFREG)], Action::Allow),
    line("mknodat", &[masked(2, libc::S_IFMT, libc::S_IFIFO)], Action::Allow),
    line("mknodat", &[masked(2, libc::S_IFMT, libc::S_IFSOCK)], Action::Allow),
    line("mknodat", &[], EPERM),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::seccomp::is_known;

    /// Every call of x86-64 is decided in exactly one place, so that a new one in the table demands a decision.
    #[test]
    fn the_profile_decides_every_call_once() {
        let in_tables: BTreeSet<&str> = [SOCKET, SETSOCKOPT, CLONE, IOCTL, PRCTL, PERSONALITY, MKNOD, MKNODAT]
            .iter()
            .copied()
            .flatten()
            .flat_map(|line| line.calls.split_ascii_whitespace())
            .collect();
        let plain = calls::ALLOWED.iter().chain([&calls::DENIED, &calls::UNAVAILABLE, &calls::GONE, &CLONE3]);
        let mut decided: Vec<&str> = plain.flat_map(|group| group.split_ascii_whitespace()).collect();
        decided.extend(in_tables);
        decided.sort_unstable();
        let twice: Vec<_> = decided.windows(2).filter(|pair| pair[0] == pair[1]).collect();
        assert!(twice.is_empty(), "decided twice: {twice:?}");
        let unknown: Vec<_> = decided.iter().filter(|name| !is_known(name)).collect();
        assert!(unknown.is_empty(), "no such call: {unknown:?}");
        let decided: BTreeSet<&str> = decided.into_iter().collect();
        let open: Vec<_> = syscalls::x86_64::Sysno::iter().filter(|call| !decided.contains(call.name())).collect();
        assert!(open.is_empty(), "not decided: {open:?}");
    }

    /// Docker's 308 of x86-64 (June 2026) without the 20 that threaten a shared kernel.
    #[test]
    fn how_many_calls_may_pass() {
        let allowed: usize = calls::ALLOWED.iter().map(|group| group.split_ascii_whitespace().count()).sum();
        let with_rules =
            ["socket", "socketpair", "setsockopt", "clone", "ioctl", "prctl", "personality", "mknod", "mknodat"];
        assert_eq!(allowed + with_rules.len(), 288);
    }
}
