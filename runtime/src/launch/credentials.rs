//! Who the process is: groups, ids, and the five capability sets, set from one table and read back, so that a kernel
//! or a fake procfs that swallows a change cannot leave a process with more than it should have.

use rustix::{
    process::{Gid, Uid},
    thread::{set_keep_capabilities, set_no_new_privs, set_thread_res_gid, set_thread_res_uid},
};

use crate::{
    Error, Result, Step,
    error::OnStep as _,
    plan::{CapabilitySets, Process},
    seccomp,
    sys::process as sys,
};

const CAPABILITY_MAX: u32 = 63;
/// CAP_SYS_ADMIN as a mask.
const CAP_SYS_ADMIN: u64 = 1 << 21;

/// Becomes root of the container's user namespace, the owner of everything that is made from here on.
pub(crate) fn become_root_inside() -> Result<()> {
    nix::unistd::setgroups(&[]).on(Step::Identity, "setgroups(2)")?;
    set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).on(Step::Identity, "gid 0")?;
    set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).on(Step::Identity, "uid 0")
}

/// Gives the process its final identity. Returns the capabilities that were asked for and cannot be had on this host.
///
/// Without `no_new_privs` loading a filter needs CAP_SYS_ADMIN, so this one capability stays in the effective and
/// permitted sets until `execve`, which computes both anew without looking at them (capabilities(7), "Transformation of
/// capabilities during execve()").
pub(crate) fn apply(process: &Process) -> Result<Vec<String>> {
    let (mut sets, missing) = available(process.capabilities)?;
    let wanted_bounding = sets.bounding;
    if process.seccomp.is_some() && !process.no_new_privs {
        let (_, permitted, _) = sys::capget().on(Step::Credentials, "capget(2)")?;
        sets.effective |= permitted & CAP_SYS_ADMIN;
        sets.permitted |= permitted & CAP_SYS_ADMIN;
    }
    drop_bounding(wanted_bounding)?;
    become_user(process)?;
    set_sets(sets)?;
    if process.no_new_privs {
        set_no_new_privs(true).on(Step::Credentials, "no_new_privs")?;
    }
    read_back(sets, process)?;
    Ok(missing)
}

/// Loads the system call filter. From here on the filter judges this crate's own calls.
pub(crate) fn load_filter(process: &Process) -> Result<()> {
    let Some(program) = &process.seccomp else { return Ok(()) };
    seccomp::load(program).map(drop).map_err(|error| Error::of(crate::Kind::Os, Step::Seccomp, "filter", error))
}

/// Limits the request to what this process holds: as runc does, an unavailable capability is a warning, not an end.
fn available(wanted: CapabilitySets) -> Result<(CapabilitySets, Vec<String>)> {
    let (_, permitted, _) = sys::capget().on(Step::Credentials, "capget(2)")?;
    let mut bounding = 0;
    for capability in 0..=CAPABILITY_MAX {
        match sys::read_bounding(capability) {
            Ok(true) => bounding |= 1 << capability,
            Ok(false) => {}
            Err(_) => break, // beyond the last capability of this kernel
        }
    }
    let sets = CapabilitySets {
        bounding: wanted.bounding & bounding,
        effective: wanted.effective & permitted,
        permitted: wanted.permitted & permitted,
        inheritable: wanted.inheritable & permitted,
        ambient: wanted.ambient & wanted.permitted & wanted.inheritable & permitted,
    };
    let lost =
        (wanted.bounding & !bounding) | ((wanted.effective | wanted.permitted | wanted.inheritable) & !permitted);
    Ok((sets, capability_names(lost)))
}

/// The names of the capabilities in a mask.
fn capability_names(mask: u64) -> Vec<String> {
    (0..=CAPABILITY_MAX)
        .filter(|n| mask & 1 << n != 0)
        .map(|n| {
            caps::all()
                .into_iter()
                .find(|cap| u32::from(cap.index()) == n)
                .map_or_else(|| format!("capability {n}"), |cap| cap.to_string())
        })
        .collect()
}

fn drop_bounding(keep: u64) -> Result<()> {
    // By number up to what the kernel knows, not by a list of names that a newer kernel outgrows.
    for capability in 0..=CAPABILITY_MAX {
        match sys::read_bounding(capability) {
            Ok(true) if keep & 1 << capability == 0 => {
                sys::drop_bounding(capability)
                    .on(Step::Credentials, format!("bounding set, capability {capability}"))?;
            }
            Ok(_) => {}
            Err(_) => break,
        }
    }
    Ok(())
}

fn become_user(process: &Process) -> Result<()> {
    let groups: Vec<_> = process.groups.iter().map(|gid| nix::unistd::Gid::from_raw(*gid)).collect();
    nix::unistd::setgroups(&groups).on(Step::Credentials, "setgroups(2)")?;
    let (uid, gid) = (Uid::from_raw(process.uid), Gid::from_raw(process.gid));
    set_thread_res_gid(gid, gid, gid).on(Step::Credentials, format!("gid {}", process.gid))?;
    set_keep_capabilities(true).on(Step::Credentials, "PR_SET_KEEPCAPS")?;
    set_thread_res_uid(uid, uid, uid).on(Step::Credentials, format!("uid {}", process.uid))?;
    set_keep_capabilities(false).on(Step::Credentials, "PR_SET_KEEPCAPS")
}

fn set_sets(sets: CapabilitySets) -> Result<()> {
    sys::clear_ambient().on(Step::Credentials, "ambient set")?;
    sys::capset(sets.effective, sets.permitted, sets.inheritable).on(Step::Credentials, "capset(2)")?;
    for capability in (0..=CAPABILITY_MAX).filter(|n| sets.ambient & 1 << n != 0) {
        sys::raise_ambient(capability).on(Step::Credentials, format!("ambient set, capability {capability}"))?;
    }
    Ok(())
}

fn read_back(sets: CapabilitySets, process: &Process) -> Result<()> {
    let got = sys::capget().on(Step::Credentials, "capget(2)")?;
    let same_sets = got == (sets.effective, sets.permitted, sets.inheritable);
    let same_ids = rustix::process::getuid().as_raw() == process.uid
        && rustix::process::geteuid().as_raw() == process.uid
        && rustix::process::getgid().as_raw() == process.gid
        && rustix::process::getegid().as_raw() == process.gid;
    if same_sets && same_ids {
        return Ok(());
    }
    Err(Error::invalid(Step::Credentials, "read back", "the kernel shows another identity than was set"))
}
