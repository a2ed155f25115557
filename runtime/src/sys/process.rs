//! Process calls that neither rustix nor nix has, or that must not allocate.

use std::{
    ffi::{CStr, CString},
    io,
    marker::PhantomData,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use rustix::{io::Errno, process::Pid};

/// The kernel's `CLONE_INTO_CGROUP`; libc's constant is an i32 that overflows.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// The last signal.
const SIGNAL_MAX: i32 = 64;

/// The result of `clone3`.
#[derive(Debug)]
pub enum Cloned {
    /// In the caller: the child's pid, and its pidfd unless the child was made with `CLONE_PARENT`.
    Parent(Pid, OwnedFd),
    /// In the child.
    Child,
}

/// `clone3` without shared memory: a fork with namespaces, a cgroup and a pidfd. The caller must be single-threaded;
/// the child goes on with a copy of everything and must leave by `execve` or [`exit_now`].
///
/// Where clone3 is missing (filtered, or an old kernel) and nothing is asked of it that needs it, plain fork does.
///
/// # Errors
/// Those of clone3(2).
pub fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    let mut pidfd: RawFd = -1;
    // SAFETY: an all-zero `clone_args` is a valid value of this plain structure.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | libc::CLONE_PIDFD as u64;
    args.pidfd = (&raw mut pidfd) as u64;
    // With CLONE_PARENT the signal is the caller's own exit signal and must be zero here.
    args.exit_signal = if flags & libc::CLONE_PARENT as u64 == 0 { libc::SIGCHLD as u64 } else { 0 };
    if let Some(fd) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = fd.as_raw_fd() as u64;
    }
    // SAFETY: no CLONE_VM, so the child has its own copy of the address space and stack, as after fork(2); the
    // process is single-threaded by the contract of this crate, so no lock can be held by another thread.
    let rc = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match rc {
        -1 => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENOSYS) && flags == 0 && cgroup.is_none() => plain_fork(),
            error => Err(error),
        },
        0 => Ok(Cloned::Child),
        pid => {
            let pid = Pid::from_raw(pid as i32).ok_or(io::ErrorKind::InvalidData)?;
            // SAFETY: the kernel stored a new descriptor that has no other owner.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned::Parent(pid, pidfd))
        }
    }
}

fn plain_fork() -> io::Result<Cloned> {
    // SAFETY: the process is single-threaded, see above.
    let pid = unsafe { libc::fork() };
    let Some(pid) = Pid::from_raw(pid).filter(|_| pid > 0) else {
        return if pid == 0 { Ok(Cloned::Child) } else { Err(io::Error::last_os_error()) };
    };
    // The child is not reaped yet, so its pid is its own.
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
    Ok(Cloned::Parent(pid, pidfd))
}

/// Sends any signal, real-time signals and 0 (the check that it exists) too, to the process behind a pidfd.
///
/// # Errors
/// Those of pidfd_send_signal(2).
pub fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let null = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo means "as kill(2) does"; no memory is passed.
    let rc = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, null, 0) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Ends the process at once: no destructors, no atexit handlers, which belong to the parent.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) has no preconditions.
    unsafe { libc::_exit(code) }
}

/// A list of strings as execve(2) takes it.
#[derive(Debug)]
pub struct StringList<'a> {
    /// Ends with a null pointer; the others point to the strings.
    pointers: Vec<*const libc::c_char>,
    strings: PhantomData<&'a CStr>,
}

impl<'a> StringList<'a> {
    /// A list of these strings.
    #[must_use]
    pub fn new(strings: &'a [CString]) -> Self {
        let pointers = strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect();
        Self { pointers, strings: PhantomData }
    }
}

/// `execve` of a path. Returns only on failure.
pub(crate) fn execve(path: &CStr, args: &StringList<'_>, env: &StringList<'_>) -> Errno {
    // SAFETY: both lists are null-terminated arrays of C strings that they borrow.
    unsafe { libc::execve(path.as_ptr(), args.pointers.as_ptr(), env.pointers.as_ptr()) };
    last_errno()
}

/// `execveat` of an open file. Returns only on failure.
pub(crate) fn exec_file(file: BorrowedFd<'_>, args: &StringList<'_>, env: &StringList<'_>) -> Errno {
    let (argv, envp) = (args.pointers.as_ptr(), env.pointers.as_ptr());
    // SAFETY: as above; the path is an empty C string.
    unsafe {
        libc::syscall(libc::SYS_execveat, file.as_raw_fd(), c"".as_ptr(), argv, envp, libc::AT_EMPTY_PATH);
    }
    last_errno()
}

fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Closes the descriptors from `first` to `last`, both included (close_range(2)).
pub(crate) fn close_range(first: RawFd, last: RawFd) -> Result<(), Errno> {
    // SAFETY: callers do not drop an owner of what is closed: they are children that end by execve or _exit.
    let rc = unsafe { libc::syscall(libc::SYS_close_range, first as libc::c_uint, last as libc::c_uint, 0) };
    if rc == 0 { Ok(()) } else { Err(last_errno()) }
}

/// Sets every signal to its default action and unblocks all, as a new program expects: Rust's own start ignores SIGPIPE,
/// and a caller may ignore or block others.
///
/// # Errors
/// Those of rt_sigaction(2) and sigprocmask(2).
pub fn reset_signals() -> io::Result<()> {
    // The kernel's struct, all zero: SIG_DFL, no flags, no mask. glibc's own functions leave out the two signals it
    // keeps for itself, and the parent process may have set those to be ignored.
    let default = [0_u64; 4];
    for signal in 1..=SIGNAL_MAX {
        if signal != libc::SIGKILL && signal != libc::SIGSTOP {
            let null = std::ptr::null::<u64>();
            // SAFETY: the struct is at least as large as the kernel's on every 64-bit machine, and only read; there is
            // no handler. Used where nothing of glibc's relies on those two signals: one thread, before exec or exit.
            let rc = unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), null, 8) };
            if rc < 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    // SAFETY: sigset_t is plain integers, filled by sigemptyset before use.
    let rc = unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut())
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets the supplementary groups.
pub(crate) fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: the kernel reads `len` ids of 32 bits. The process has one thread, so glibc's change of all is not needed.
    let rc = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives `fd` the number `target` in this process, without close-on-exec. `target` must not be in use by this crate.
pub(crate) fn place_fd(fd: BorrowedFd<'_>, target: RawFd) -> io::Result<()> {
    // SAFETY: dup2 replaces `target`; callers hand in numbers at which they hold no owned descriptor.
    let rc = unsafe { libc::dup2(fd.as_raw_fd(), target) };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    if fd.as_raw_fd() == target {
        // dup2 to itself leaves close-on-exec as it was.
        // SAFETY: only a flag of the descriptor changes.
        let rc = unsafe { libc::fcntl(target, libc::F_SETFD, 0) };
        if rc < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// A new anonymous session keyring (keyctl(2), `KEYCTL_JOIN_SESSION_KEYRING`): keyrings are not namespaced.
pub(crate) fn new_session_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    let rc = unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>(), 0, 0, 0)
    };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Brings the link `lo` of the current network namespace up (netdevice(7)).
pub(crate) fn loopback_up(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: an all-zero `ifreq` is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo\0") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request names a link and its flags and outlives the call.
    let rc = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets a resource limit by the kernel's number.
pub(crate) fn set_rlimit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the structure outlives the call.
    let rc = unsafe { libc::prlimit64(0, resource as _, &raw const limit, std::ptr::null_mut()) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The current soft and hard value of a resource limit.
pub(crate) fn get_rlimit(resource: u32) -> io::Result<(u64, u64)> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure outlives the call.
    let rc = unsafe { libc::prlimit64(0, resource as _, std::ptr::null(), &raw mut limit) };
    if rc == 0 { Ok((limit.rlim_cur, limit.rlim_max)) } else { Err(io::Error::last_os_error()) }
}

/// Drops one capability from the bounding set (prctl(2), `PR_CAPBSET_DROP`).
pub(crate) fn drop_bounding(capability: u32) -> io::Result<()> {
    prctl(libc::PR_CAPBSET_DROP, u64::from(capability), 0)
}

/// True if a capability is in the bounding set; an error if the kernel does not know it.
pub(crate) fn read_bounding(capability: u32) -> io::Result<bool> {
    // SAFETY: reads one bit.
    let rc = unsafe { libc::prctl(libc::PR_CAPBSET_READ, u64::from(capability), 0, 0, 0) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(rc == 1) }
}

/// Clears the ambient set.
pub(crate) fn clear_ambient() -> io::Result<()> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0)
}

/// Raises one ambient capability.
pub(crate) fn raise_ambient(capability: u32) -> io::Result<()> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u64, u64::from(capability))
}

fn prctl(option: libc::c_int, a: u64, b: u64) -> io::Result<()> {
    // SAFETY: the options used here take plain numbers.
    let rc = unsafe { libc::prctl(option, a, b, 0, 0) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Sets the effective, permitted and inheritable sets in one capset(2), so that their order cannot matter.
pub(crate) fn capset(effective: u64, permitted: u64, inheritable: u64) -> io::Result<()> {
    let header = CapHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let half = |shift: u32| CapData {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: version 3 takes two data elements.
    let rc = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Reads the effective, permitted and inheritable sets.
pub(crate) fn capget() -> io::Result<(u64, u64, u64)> {
    let mut header = CapHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let mut data = [CapData::default(); 2];
    // SAFETY: version 3 fills two data elements.
    let rc = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    Ok((
        join(data[0].effective, data[1].effective),
        join(data[0].permitted, data[1].permitted),
        join(data[0].inheritable, data[1].inheritable),
    ))
}
