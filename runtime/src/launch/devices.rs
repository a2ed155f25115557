//! Mounts of directories on block devices. The caller makes them, as it does the root: mounting a block device needs the rights of
//! the initial user namespace. They travel to the first process as detached mounts, in the order of the plan.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use rustix::mount::{OpenTreeFlags, open_tree};

use super::{
    mount_parts::{bits, of_device, place},
    sync::{Sync, ToChild},
};
use crate::{
    Error, Result, Step,
    error::OnStep as _,
    plan::{DeviceDirectory, Mount, MountAttributes, MountSource},
    sys::mount::{self as sys_mount, MountAttr},
};

/// Makes each mount of the plan that comes from a block device. The file systems are attached in `staging` first: kernels before
/// 6.15 copy a directory of an attached mount only.
pub(super) fn mount_all(
    mounts: &[Mount],
    staging: &OwnedFd,
    user_namespace: Option<BorrowedFd<'_>>,
) -> Result<Vec<OwnedFd>> {
    let devices = mounts.iter().filter_map(|mount| match &mount.source {
        MountSource::Device(device) => Some((mount, device)),
        _ => None,
    });
    devices
        .enumerate()
        .map(|(index, (mount, device))| {
            mount_one(device, mount.attributes, &format!("dev{index}"), staging, user_namespace)
                .on(Step::Mounts, mount.target.display())
        })
        .collect()
}

fn mount_one(
    device: &DeviceDirectory,
    attributes: MountAttributes,
    name: &str,
    staging: &OwnedFd,
    user_namespace: Option<BorrowedFd<'_>>,
) -> io::Result<OwnedFd> {
    let whole = of_device(&device.device, &device.fstype, &device.options)?;
    place(staging, name, &whole, 0, user_namespace)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let directory = open_tree(&whole, &device.directory, flags)?;
    let (attr_set, attr_clr) = bits(attributes);
    let attr = MountAttr { attr_set, attr_clr, ..MountAttr::default() };
    sys_mount::mount_setattr(directory.as_fd(), c"", false, &attr)?;
    Ok(directory)
}

/// Sends them to the first process.
pub(super) fn hand_over(mounts: &[OwnedFd], sync: &Sync) -> Result<()> {
    let send = |mount| sync.send(&ToChild::Mounted, Some(mount)).on(Step::Mounts, "handing over a mount");
    mounts.iter().try_for_each(send)
}

/// Receives them. The root has come before.
pub(super) fn receive(mounts: &[Mount], sources: &mut [Option<OwnedFd>], sync: &Sync) -> Result<()> {
    for (mount, source) in mounts.iter().zip(sources) {
        if matches!(mount.source, MountSource::Device(_)) {
            let fd = sync.expect(&ToChild::Mounted, Step::Mounts)?;
            let missing = || Error::invalid(Step::Mounts, mount.target.display(), "the mount did not arrive");
            *source = Some(fd.ok_or_else(missing)?);
        }
    }
    Ok(())
}
