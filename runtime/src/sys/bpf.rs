//! bpf(2), as far as a cgroup device filter needs it: load, attach, detach, list, and read a program's name.
//!
//! Owns the layout of `union bpf_attr` (in neither libc nor linux-raw-sys). Decides nothing.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_DETACH: libc::c_int = 9;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_PROG_QUERY: libc::c_int = 16;

const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// The kernel's own limit of programs at one cgroup (`BPF_CGROUP_MAX_PROGS`).
const PROGRAMS_MAX: usize = 64;
/// `BPF_OBJ_NAME_LEN`.
const NAME_BYTES: usize = 16;

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Insn {
    pub(crate) code: u8,
    /// Destination in the low, source in the high four bits.
    pub(crate) regs: u8,
    pub(crate) off: i16,
    pub(crate) imm: i32,
}

/// `union bpf_attr`: 128 zeroed bytes, of which each command uses a prefix. The kernel wants the unused rest zero.
#[repr(C)]
union Attr {
    load: Load,
    attach: Attach,
    query: Query,
    by_id: [u32; 3],
    info: Info,
    whole: [u64; 16],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Load {
    prog_type: u32,
    insn_count: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; NAME_BYTES],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Attach {
    target_fd: u32,
    prog_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Query {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_count: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Info {
    prog_fd: u32,
    info_len: u32,
    info: u64,
}

/// `struct bpf_prog_info` up to and with the name; the kernel fills as much as we ask for.
#[repr(C)]
#[derive(Clone, Copy)]
struct ProgInfo {
    before_name: [u64; 8],
    name: [u8; NAME_BYTES],
}

impl Attr {
    const fn zeroed() -> Self {
        Self { whole: [0; 16] }
    }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    // A valid fd is never negative.
    fd.as_raw_fd().cast_unsigned()
}

/// # Safety
/// Every pointer inside `attr` must be valid for what `command` does with it, during the call.
unsafe fn bpf(command: libc::c_int, attr: &mut Attr) -> io::Result<i32> {
    // SAFETY: `attr` is a live, fully initialised 128-byte object; the pointers in it are the caller's promise.
    let rc = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<Attr>()) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(rc as i32) }
}

/// Loads a device filter. The fd is close-on-exec (the kernel opens every bpf fd so).
pub(crate) fn load_device_filter(insns: &[Insn], name: &str) -> io::Result<OwnedFd> {
    let mut prog_name = [0; NAME_BYTES];
    for (to, from) in prog_name.iter_mut().take(NAME_BYTES - 1).zip(name.bytes()) {
        *to = from;
    }
    let mut attr = Attr::zeroed();
    attr.load = Load {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_count: u32::try_from(insns.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        insns: insns.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
        prog_name,
    };
    // SAFETY: `insns` points to `insn_count` instructions of the kernel's layout, `license` to a C string; both are
    // only read, and outlive the call.
    let fd = unsafe { bpf(BPF_PROG_LOAD, &mut attr)? };
    // SAFETY: on success the kernel returned a new fd that has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a device filter beside those that are there; an access must pass all of them.
pub(crate) fn attach_device_filter(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = Attr::zeroed();
    attr.attach = Attach {
        target_fd: raw(cgroup),
        prog_fd: raw(program),
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: this command takes no pointers.
    unsafe { bpf(BPF_PROG_ATTACH, &mut attr) }.map(drop)
}

/// Detaches one device filter.
pub(crate) fn detach_device_filter(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = Attr::zeroed();
    attr.attach =
        Attach { target_fd: raw(cgroup), prog_fd: raw(program), attach_type: BPF_CGROUP_DEVICE, attach_flags: 0 };
    // SAFETY: this command takes no pointers.
    unsafe { bpf(BPF_PROG_DETACH, &mut attr) }.map(drop)
}

/// The ids of the device filters attached to this very cgroup.
pub(crate) fn device_filters(cgroup: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut ids = vec![0_u32; PROGRAMS_MAX];
    let mut attr = Attr::zeroed();
    attr.query = Query {
        target_fd: raw(cgroup),
        attach_type: BPF_CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_count: PROGRAMS_MAX as u32,
    };
    // SAFETY: the kernel writes at most `prog_count` ids to `prog_ids`, which has room for them.
    unsafe { bpf(BPF_PROG_QUERY, &mut attr)? };
    // SAFETY: every bit pattern of the union is a valid `Query`.
    let count = unsafe { attr.query.prog_count };
    ids.truncate(count as usize);
    Ok(ids)
}

pub(crate) fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attr = Attr::zeroed();
    attr.by_id = [id, 0, 0];
    // SAFETY: this command takes no pointers.
    let fd = unsafe { bpf(BPF_PROG_GET_FD_BY_ID, &mut attr)? };
    // SAFETY: on success the kernel returned a new fd that has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A program's name, cut at 15 bytes.
pub(crate) fn program_name(program: BorrowedFd<'_>) -> io::Result<String> {
    let mut info = ProgInfo { before_name: [0; 8], name: [0; NAME_BYTES] };
    let mut attr = Attr::zeroed();
    attr.info = Info {
        prog_fd: raw(program),
        info_len: size_of::<ProgInfo>() as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    // SAFETY: the kernel reads and writes at most `info_len` bytes at `info`, the size of that object; all its fields
    // are plain integers. The counts in it are zero, so the kernel follows none of its pointers.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)? };
    let end = info.name.iter().position(|b| *b == 0).unwrap_or(NAME_BYTES);
    Ok(String::from_utf8_lossy(&info.name[..end]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_the_kernels() {
        assert_eq!(size_of::<Insn>(), 8);
        assert_eq!(size_of::<Attr>(), 128);
        assert_eq!(std::mem::offset_of!(Load, prog_name), 48);
        assert_eq!(std::mem::offset_of!(Query, prog_ids), 16);
        assert_eq!(std::mem::offset_of!(ProgInfo, name), 64);
    }
}
