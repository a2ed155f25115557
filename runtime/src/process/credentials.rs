//! Who the process is: groups, ids, and the five capability sets, set from one table and read back, so that a kernel
//! or a fake procfs that swallows a change cannot leave a process with more than it should have.

use rustix::{
    process::{Gid, Uid, getegid, geteuid, getgid, getuid},
    thread::{set_keep_capabilities, set_no_new_privs, set_thread_res_gid, set_thread_res_uid},
};

use super::{
    failure::{Failure, ProcessStep, at},
    note::Note,
};
use crate::{plan::CapabilitySets, sys::process as sys};

pub(crate) const CAPABILITY_MAX: u32 = 63;
/// CAP_SYS_ADMIN as a mask.
const CAP_SYS_ADMIN: u64 = 1 << 21;

/// A user by its ids.
#[derive(Debug, Clone, Copy)]
pub struct User<'a> {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: &'a [u32],
}

/// The capabilities of a process.
#[derive(Debug, Clone, Copy)]
pub enum Rights {
    /// What the kernel leaves: root keeps what it has, any other user has none.
    OfUser,
    /// These sets, as far as this process holds them.
    Sets {
        /// The five sets.
        sets: CapabilitySets,
        /// Set `no_new_privs`.
        no_new_privs: bool,
    },
}

/// Gives the process its identity.
///
/// Without `no_new_privs`, seccomp(2) takes CAP_SYS_ADMIN, and the filter is loaded last. So this one capability stays
/// permitted until `execve`, which computes the permitted set anew without looking at the old one (capabilities(7),
/// "Transformation of capabilities during execve()"). It is in no other set: not in the effective one before
/// [`allow_loading`], and not in those that `execve` hands on (bounding, inheritable, ambient), unless it was asked for.
pub(super) fn apply(
    user: &User<'_>,
    rights: &Rights,
    has_filter: bool,
    note: &mut dyn FnMut(Note),
) -> Result<(), Failure> {
    let Rights::Sets { sets: wanted, no_new_privs } = rights else { return become_user(user) };
    let (_, held, _) = sys::capget().map_err(at(ProcessStep::Capabilities))?;
    let bounding = bounding_set();
    let mut sets = CapabilitySets {
        bounding: wanted.bounding & bounding,
        effective: wanted.effective & held,
        permitted: wanted.permitted & held,
        inheritable: wanted.inheritable & held,
        ambient: wanted.ambient & wanted.permitted & wanted.inheritable & held,
    };
    // As runc does: an unavailable capability is a warning, not an end.
    let missing = (wanted.bounding & !bounding) | ((wanted.effective | wanted.permitted | wanted.inheritable) & !held);
    if missing != 0 {
        note(Note::CapabilitiesMissing(missing));
    }
    if has_filter && !no_new_privs {
        sets.permitted |= held & CAP_SYS_ADMIN;
    }
    drop_bounding(bounding & !sets.bounding)?;
    set_keep_capabilities(true).map_err(at(ProcessStep::Capabilities))?;
    set_ids(user)?;
    set_keep_capabilities(false).map_err(at(ProcessStep::Capabilities))?;
    set_sets(&sets)?;
    if *no_new_privs {
        set_no_new_privs(true).map_err(at(ProcessStep::NoNewPrivs))?;
    }
    let got = sys::capget().map_err(at(ProcessStep::Capabilities))?;
    verify(user, got == (sets.effective, sets.permitted, sets.inheritable))
}

/// Makes CAP_SYS_ADMIN effective where [`apply`] has kept it, for the load of a filter.
pub(super) fn allow_loading(rights: &Rights) -> Result<(), Failure> {
    if !matches!(rights, Rights::Sets { no_new_privs: false, .. }) {
        return Ok(());
    }
    let (effective, permitted, inheritable) = sys::capget().map_err(at(ProcessStep::Filter))?;
    sys::capset(effective | permitted & CAP_SYS_ADMIN, permitted, inheritable).map_err(at(ProcessStep::Filter))
}

/// Groups, group, user, in this order; for any user but root, no capability is left.
///
/// # Errors
/// The failed step.
pub fn become_user(user: &User<'_>) -> Result<(), Failure> {
    set_ids(user)?;
    // The kernel drops them with the last root id, unless securebits say otherwise, so they are read back.
    let (effective, permitted, inheritable) = sys::capget().map_err(at(ProcessStep::Capabilities))?;
    verify(user, user.uid == 0 || effective | permitted | inheritable == 0)
}

fn set_ids(user: &User<'_>) -> Result<(), Failure> {
    sys::set_groups(user.groups).map_err(at(ProcessStep::Groups))?;
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    set_thread_res_gid(gid, gid, gid).map_err(at(ProcessStep::Group))?;
    set_thread_res_uid(uid, uid, uid).map_err(at(ProcessStep::User))
}

fn bounding_set() -> u64 {
    // Up to what the kernel knows, by number, not by a list of names that a newer kernel outgrows.
    let known = (0..=CAPABILITY_MAX).map_while(|number| Some((number, sys::read_bounding(number).ok()?)));
    known.filter(|(_, is_in)| *is_in).fold(0, |set, (number, _)| set | 1 << number)
}

fn drop_bounding(set: u64) -> Result<(), Failure> {
    numbers(set).try_for_each(|number| sys::drop_bounding(number).map_err(of(number)))
}

fn set_sets(sets: &CapabilitySets) -> Result<(), Failure> {
    sys::clear_ambient().map_err(at(ProcessStep::Capabilities))?;
    sys::capset(sets.effective, sets.permitted, sets.inheritable).map_err(at(ProcessStep::Capabilities))?;
    numbers(sets.ambient).try_for_each(|number| sys::raise_ambient(number).map_err(of(number)))
}

/// The capabilities of a mask.
pub(crate) fn numbers(set: u64) -> impl Iterator<Item = u32> {
    (0..=CAPABILITY_MAX).filter(move |number| set & 1 << number != 0)
}

fn of(capability: u32) -> impl FnOnce(std::io::Error) -> Failure {
    move |error| Failure::of(ProcessStep::Capabilities, capability as i32, error)
}

fn verify(user: &User<'_>, same_sets: bool) -> Result<(), Failure> {
    let same_uid = getuid().as_raw() == user.uid && geteuid().as_raw() == user.uid;
    let same_gid = getgid().as_raw() == user.gid && getegid().as_raw() == user.gid;
    if same_sets && same_uid && same_gid {
        return Ok(());
    }
    Err(Failure::new(ProcessStep::Verify, rustix::io::Errno::PERM))
}
