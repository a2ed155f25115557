//! What a process of a container is before it becomes the program: hidden from tracers, root of its user namespace, and
//! leader of a session with a keyring of its own.

use rustix::{
    process::{DumpableBehavior, Gid, Uid, set_dumpable_behavior, setsid},
    thread::{set_thread_res_gid, set_thread_res_uid},
};

use crate::{Error, Result, Step, error::OnStep as _, sys::process as sys};

/// No tracing and no /proc/PID access without CAP_SYS_PTRACE over this process (CVE-2016-9962). A change of ids and
/// `execve` undo it.
pub(crate) fn hide(step: Step) -> Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).on(step, "PR_SET_DUMPABLE")
}

/// Becomes root of the container's user namespace, the owner of everything that is made from here on.
pub(crate) fn become_root_inside() -> Result<()> {
    sys::set_groups(&[]).on(Step::Identity, "setgroups(2)")?;
    set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).on(Step::Identity, "gid 0")?;
    set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).on(Step::Identity, "uid 0")?;
    hide(Step::Identity)
}

/// Starts a session, and a session keyring: keyrings are not namespaced.
pub(super) fn start() -> Result<()> {
    match setsid() {
        // Already a leader: nothing to leave.
        Ok(_) | Err(rustix::io::Errno::PERM) => {}
        Err(error) => return Err(Error::os(Step::Identity, "setsid(2)", error)),
    }
    match sys::new_session_keyring() {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        other => other.on(Step::Identity, "session keyring"),
    }
}
