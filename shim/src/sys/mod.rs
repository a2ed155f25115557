//! Every raw call of this crate.
//!
//! Invariant: nothing here decides; each function is one kernel call (or one indivisible pair) with a safe signature.
//! Leaves out: what `rustix` and `nix` offer safely.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// The kernel's `CLONE_INTO_CGROUP`; libc's constant is an i32 that overflows.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// The last signal.
const SIGNAL_MAX: i32 = 64;

/// Both sides of a fork.
#[derive(Debug)]
pub(crate) enum Fork {
    /// This is the child; it must end by exec or [`exit_now`].
    Child,
    /// This is the parent.
    Parent {
        /// The child's pid.
        pid: i32,
        /// The child; it stays valid if the pid is reused.
        pidfd: OwnedFd,
    },
}

/// Forks a single-threaded process, the child directly into the cgroup v2 directory if there is one.
///
/// clone3 is called raw, since no wrapper offers `CLONE_INTO_CGROUP`. Where clone3 is missing (filtered, or an old
/// kernel) and no cgroup is asked for, plain fork does.
pub(crate) fn fork_into(cgroup: Option<BorrowedFd<'_>>) -> io::Result<Fork> {
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain integers; all zero is valid.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = libc::CLONE_PIDFD as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    args.pidfd = std::ptr::from_mut(&mut pidfd) as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    let size = std::mem::size_of::<libc::clone_args>();
    // SAFETY: no CLONE_VM, so the child has its own copy of everything, like after fork; the process is
    // single-threaded (the init and the launcher never start a thread), so no lock can be held by another thread. The
    // kernel writes one i32 to `pidfd`, which outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_clone3, std::ptr::from_ref(&args), size) };
    match result {
        0 => Ok(Fork::Child),
        pid if pid > 0 => {
            // SAFETY: the kernel has just made this descriptor for this process; it has no other owner.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            let pid = i32::try_from(pid).unwrap_or(i32::MAX);
            Ok(Fork::Parent { pid, pidfd })
        }
        _ => {
            let error = io::Error::last_os_error();
            if error.raw_os_error() == Some(libc::ENOSYS) && cgroup.is_none() {
                return plain_fork();
            }
            Err(error)
        }
    }
}

fn plain_fork() -> io::Result<Fork> {
    // SAFETY: the process is single-threaded, see above.
    match unsafe { libc::fork() } {
        0 => Ok(Fork::Child),
        pid if pid > 0 => {
            // SAFETY: the child is not reaped yet, so its pid is its own; the result is checked.
            let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
            let fd = RawFd::try_from(fd).unwrap_or(-1);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: just made by the kernel for us.
            let pidfd = unsafe { OwnedFd::from_raw_fd(fd) };
            Ok(Fork::Parent { pid, pidfd })
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends this process without running anything registered for exit.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit never returns and touches no memory of ours.
    unsafe { libc::_exit(code) }
}

/// Sends any signal, real-time ones too, to the process behind a pidfd.
pub(crate) fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let null = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo means "as kill does"; no memory is passed.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, null, 0) };
    check(result)
}

/// Closes every descriptor from `first` on.
pub(crate) fn close_from(first: RawFd) -> io::Result<()> {
    let first = libc::c_uint::try_from(first).unwrap_or(0).max(3);
    // SAFETY: used only in a forked child that never drops the owners of these descriptors: it ends by exec or _exit.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    check(result)
}

/// Makes `to` another name of `from`, whatever `to` was before. Only in a forked child, for numbers 0 to 3.
pub(crate) fn place_fd(from: BorrowedFd<'_>, to: RawFd, cloexec: bool) -> io::Result<()> {
    let flag = if cloexec { libc::FD_CLOEXEC } else { 0 };
    let result = if from.as_raw_fd() == to {
        // SAFETY: sets a flag of a descriptor that is open.
        unsafe { libc::fcntl(to, libc::F_SETFD, flag) }
    } else {
        let flags = if cloexec { libc::O_CLOEXEC } else { 0 };
        // SAFETY: in a forked child that drops no owner of `to`; the numbers are plain integers.
        unsafe { libc::dup3(from.as_raw_fd(), to, flags) }
    };
    check(libc::c_long::from(result))
}

/// Takes ownership of a descriptor that this process was started with.
pub(crate) fn adopt_fd(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD on any number is harmless; an error says it is not open.
    let result = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    check(libc::c_long::from(result))?;
    // SAFETY: it is open, was inherited by number, and the caller names each number once, at start.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Sets every signal to its default action and unblocks all, as a new program expects.
pub(crate) fn reset_signals() -> io::Result<()> {
    // The kernel's struct, all zero: SIG_DFL, no flags, no mask. glibc's own functions leave out the two signals it
    // keeps for itself, and the parent process may have set those to be ignored.
    let default = [0_u64; 4];
    for signal in 1..=SIGNAL_MAX {
        if signal != libc::SIGKILL && signal != libc::SIGSTOP {
            let null = std::ptr::null::<u64>();
            // SAFETY: the struct is at least as large as the kernel's on every 64-bit machine, and only read; there is
            // no handler. Used where nothing of glibc's relies on those two signals: one thread, before exec or exit.
            let result = unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), null, 8) };
            check(result)?;
        }
    }
    // SAFETY: sigset_t is plain integers, filled by sigemptyset before use.
    let result = unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut())
    };
    check(libc::c_long::from(result))
}

/// Makes the allocator give blocks of this size and more back to the kernel when they are freed.
pub(crate) fn return_large_blocks(bytes: i32) {
    // SAFETY: sets two numbers of the allocator; called before anything large is allocated.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, bytes);
        libc::mallopt(libc::M_TRIM_THRESHOLD, bytes);
    }
}

/// Gives all free pages of the heap back to the kernel.
pub(crate) fn return_free_memory() {
    // SAFETY: only looks at the allocator's own free lists, in a single-threaded process.
    unsafe { libc::malloc_trim(0) };
}

/// Watches a pidfd from tokio.
#[cfg(feature = "handle")]
pub(crate) fn watch_readable(fd: OwnedFd) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is the same open descriptor for as long as it lives, and AsyncFd owns it.
    unsafe { tokio::io::unix::AsyncFd::register_with_interest(fd, tokio::io::Interest::READABLE) }
        .map_err(io::Error::from)
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
