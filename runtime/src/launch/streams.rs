//! The owner of the program's standard streams.

use std::os::fd::AsFd as _;

use super::inherit::Inherit;
use crate::{
    Result, Step,
    error::OnStep as _,
    plan::{Namespace, Plan},
    stdio::give_pipe_to_user,
};

/// Gives the pipes that the program gets as standard streams to its user. The caller does it: pipes of the host have
/// no owner in a new user namespace, so nothing inside may change them.
pub(super) fn give_to_user(plan: &Plan, inherit: &Inherit) -> Result<()> {
    if plan.process.terminal.is_some() || matches!(plan.namespaces.user, Namespace::Join(_)) {
        return Ok(());
    }
    let uid = plan.process.uid;
    let host_uid = match &plan.id_maps {
        Some(maps) => maps.uids.iter().find_map(|line| {
            let offset = uid.checked_sub(line.inside).filter(|offset| *offset < line.count)?;
            line.outside.checked_add(offset)
        }),
        None => Some(uid),
    };
    // An id that is not mapped is refused later, by setresuid(2).
    let Some(host_uid) = host_uid else { return Ok(()) };
    for (number, own) in (0..).zip([rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()]) {
        let given = inherit.fds.iter().find(|(_, target)| *target == number).map(|(fd, _)| fd.as_fd());
        give_pipe_to_user(given.unwrap_or(own), host_uid)
            .on(Step::Credentials, format!("owner of descriptor {number}"))?;
    }
    Ok(())
}
