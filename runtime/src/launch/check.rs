//! The checks that each plan must pass, made from a bundle or by the library's caller.

use crate::{
    Error, Result, Step,
    plan::{MountSource, Plan, RootSource},
};

pub(super) fn check(plan: &Plan) -> Result<()> {
    if !plan.namespaces.mount.is_new() {
        return Err(Error::unsupported(Step::Mounts, "mount namespace", "a container needs one of its own"));
    }
    if plan.namespaces.user.is_new() != plan.id_maps.is_some() {
        return Err(Error::invalid(Step::IdMaps, "id maps", "a new user namespace and id maps go together"));
    }
    if plan.clocks_from_zero && !plan.namespaces.user.is_new() {
        return Err(Error::invalid(
            Step::Identity,
            "clocks",
            "a time namespace needs a new user namespace as its owner",
        ));
    }
    if let Some(maps) = &plan.id_maps
        && [&maps.uids, &maps.gids].iter().any(|m| !m.iter().any(|line| line.inside == 0 && line.count > 0))
    {
        return Err(Error::invalid(Step::IdMaps, "id maps", "id 0 must be mapped, it owns what is made"));
    }
    // Such mounts are made beside the parts of the overlay, in the caller's own mount namespace.
    if matches!(plan.root.source, RootSource::Directory(_))
        && let Some(mount) = plan.mounts.iter().find(|mount| matches!(mount.source, MountSource::Device(_)))
    {
        let subject = mount.target.display();
        return Err(Error::unsupported(
            Step::Mounts,
            subject,
            "a mount from a block device needs an overlay as the root",
        ));
    }
    Ok(())
}
