//! seccomp(2). Owns the call and the listener descriptor that it may give; allocates nothing and never sets
//! `no_new_privs`. Leaves out the meaning of filters.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use crate::seccomp::{Error, Insn};

/// Flag bits of `SECCOMP_SET_MODE_FILTER` (`linux/seccomp.h`).
pub(crate) const TSYNC: u32 = 1 << 0;
pub(crate) const LOG: u32 = 1 << 1;
pub(crate) const SPEC_ALLOW: u32 = 1 << 2;
pub(crate) const NEW_LISTENER: u32 = 1 << 3;
pub(crate) const TSYNC_ESRCH: u32 = 1 << 4;
pub(crate) const WAIT_KILLABLE_RECV: u32 = 1 << 5;

const SET_MODE_FILTER: libc::c_long = 1;

/// `struct sock_fprog`.
#[repr(C)]
struct Fprog {
    len: u16,
    filter: *const Insn,
}

/// Installs a filter. With `NEW_LISTENER` in `flags` the answer is the listener (close-on-exec).
pub(crate) fn set_filter(insns: &[Insn], flags: u32) -> Result<Option<OwnedFd>, Error> {
    let count = insns.len();
    let Ok(len) = u16::try_from(count) else {
        return Err(Error::TooLong { insns: count });
    };
    let prog = Fprog { len, filter: insns.as_ptr() };
    // SAFETY: `prog` points to `len` instructions of the kernel's layout (`Insn` is repr(C) with `sock_filter`'s
    // fields); the kernel copies them before it returns and writes nothing back.
    let rc = unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, libc::c_long::from(flags), &raw const prog) };
    if rc < 0 {
        return Err(Error::Load { insns: count, source: io::Error::last_os_error() });
    }
    if flags & NEW_LISTENER != 0 {
        let Ok(fd) = RawFd::try_from(rc) else {
            return Err(Error::Load { insns: count, source: io::Error::from_raw_os_error(libc::EBADF) });
        };
        // SAFETY: with NEW_LISTENER a result >= 0 is a new descriptor that has no other owner.
        return Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }));
    }
    // Without TSYNC_ESRCH a failed TSYNC returns the positive id of the thread that could not be synchronized.
    if rc > 0 {
        return Err(Error::ThreadSync { tid: rc });
    }
    Ok(None)
}

/// Whether this kernel takes filters with these flags. Loads nothing: the kernel looks at the flags first and then cannot
/// read a program at null.
pub(crate) fn check_flags(flags: u32) -> io::Result<()> {
    let null = std::ptr::null::<Fprog>();
    // SAFETY: the kernel reads from null, which fails without harm.
    unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, libc::c_long::from(flags), null) };
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::EFAULT) => Ok(()),
        error => Err(error),
    }
}
