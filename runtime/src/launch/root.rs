//! The root file system: an overlay built by the caller from layers and a volume, or a directory of the host; and the
//! switch into it.
//!
//! The overlay is built in the caller because mounting a block device needs the rights of the initial user namespace.
//! The caller does it in a mount namespace of its own, so nothing appears on the host and nothing is left when it
//! exits. The result travels to the first process as a detached mount.

use std::{
    fs,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use nix::sched::{CloneFlags, unshare};
use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    mount::{MountAttrFlags, MountPropagationFlags, OpenTreeFlags, UnmountFlags, mount_change, open_tree, unmount},
};

use super::{
    devices,
    handshake::earlier_failure,
    mount_parts::{attach, attach_at, new_filesystem, of_device, place},
    owner,
    rootfs_fd::{RootfsFd, reopen_dir},
    sync::{Sync, ToChild},
};
use crate::{
    Error, Result, Step,
    error::OnStep as _,
    plan::{Overlay, Plan, Root, RootSource},
    sys::{
        mount::{self as sys_mount, MountAttr},
        process as sys_process,
    },
};

/// Gives the calling (single-threaded, one-shot) process a mount namespace of its own, with nothing shared back, if it is
/// to build an overlay.
pub(super) fn leave_host_mounts(root: &Root) -> Result<()> {
    if matches!(root.source, RootSource::Directory(_)) {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWNS).on(Step::Root, "new mount namespace")?;
    everything_private()
}

/// Cuts propagation both ways for every mount of this namespace.
pub(super) fn everything_private() -> Result<()> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).on(Step::Mounts, "/ private")
}

/// Builds the overlay, if the plan has one, and sends it to the first process.
pub(super) fn hand_over(plan: &Plan, user_namespace: Option<&fs::File>, sync: &Sync) -> Result<()> {
    let RootSource::Overlay(overlay) = &plan.root.source else { return Ok(()) };
    let mapping = user_namespace.zip(plan.id_maps.as_ref()).map(|(fd, maps)| Mapping {
        user_namespace: fd.as_fd(),
        uid: owner::outside_root(&maps.uids),
        gid: owner::outside_root(&maps.gids),
    });
    let built = build_overlay(overlay, mapping.as_ref()).and_then(|(root, staging)| {
        let user_namespace = mapping.as_ref().map(|mapping| mapping.user_namespace);
        Ok((root, devices::mount_all(&plan.mounts, &staging, user_namespace)?))
    });
    match built {
        Ok((root, mounts)) => {
            sync.send(&ToChild::Root, Some(&root)).on(Step::Root, "handing over the root")?;
            devices::hand_over(&mounts, sync)
        }
        Err(error) => Err(earlier_failure(sync).unwrap_or(error)),
    }
}

/// The user namespace that layers and volume are mapped into, and the host's ids of its root.
struct Mapping<'fd> {
    user_namespace: BorrowedFd<'fd>,
    uid: u32,
    gid: u32,
}

/// Builds the overlay and returns it detached, with the directory that its parts are attached in. Ids on disk are the ids
/// inside when a mapping is given.
fn build_overlay(overlay: &Overlay, mapping: Option<&Mapping<'_>>) -> Result<(OwnedFd, OwnedFd)> {
    let user_namespace = mapping.map(|m| m.user_namespace);
    let staging = new_filesystem("tmpfs", &[("mode".into(), Some("0700".into()))], MountAttrFlags::empty())
        .on(Step::Root, "staging tmpfs")?;
    attach(&staging, CWD, &overlay.mount_point).on(Step::Root, overlay.mount_point.display())?;

    let mut lower_names = Vec::new();
    for (index, layer) in overlay.lower.iter().enumerate() {
        let name = short_name(index);
        let tree = open_tree(CWD, layer, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
            .on(Step::Root, layer.display())?;
        let extra = sys_mount::MOUNT_ATTR_RDONLY;
        place(&staging, &name, &tree, extra, user_namespace).on(Step::Root, layer.display())?;
        lower_names.push(name);
    }

    let volume = of_device(&overlay.volume, &overlay.volume_fstype, &overlay.volume_options)
        .on(Step::Root, overlay.volume.display())?;
    place(&staging, "vol", &volume, 0, user_namespace).on(Step::Root, overlay.volume.display())?;

    // Layer paths are given relative to the staging directory: no character in a host path can be taken for a
    // separator of the option's syntax.
    nix::unistd::fchdir(&staging).on(Step::Root, "staging directory")?;
    let options = [
        ("lowerdir".to_owned(), Some(lower_names.join(":"))),
        ("upperdir".to_owned(), Some("vol/upper".to_owned())),
        ("workdir".to_owned(), Some("vol/work".to_owned())),
    ];
    let flags = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
    let root = with_fs_ids(mapping, || new_filesystem("overlay", &options, flags));
    root.on(Step::Root, "overlay of layers and volume").map(|root| (root, staging))
}

/// Names of layers are as short as can be: overlayfs takes all of them in one text of 255 bytes.
fn short_name(index: usize) -> String {
    const LETTERS: &[u8; 62] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    let mut name = String::new();
    let mut left = index;
    loop {
        name.push(char::from(LETTERS[left % LETTERS.len()]));
        left /= LETTERS.len();
        if left == 0 {
            return name;
        }
        left -= 1;
    }
}

/// Does something with the file system ids of the namespace's root and all capabilities. overlayfs keeps the
/// credentials of the one that mounts it for its own work in `upper` and `work`; host root has no id on an idmapped
/// volume, so its first `mkdir` there would fail and leave the overlay read-only.
fn with_fs_ids<T>(mapping: Option<&Mapping<'_>>, work: impl FnOnce() -> std::io::Result<T>) -> std::io::Result<T> {
    let Some(mapping) = mapping else { return work() };
    let (effective, permitted, inheritable) = sys_process::capget()?;
    nix::unistd::setfsgid(nix::unistd::Gid::from_raw(mapping.gid));
    nix::unistd::setfsuid(nix::unistd::Uid::from_raw(mapping.uid));
    // Leaving uid 0 lowers the file system capabilities of the effective set (capabilities(7)).
    sys_process::capset(permitted, permitted, inheritable)?;
    let done = work();
    nix::unistd::setfsuid(nix::unistd::Uid::from_raw(0));
    nix::unistd::setfsgid(nix::unistd::Gid::from_raw(0));
    sys_process::capset(effective, permitted, inheritable)?;
    done
}

/// The host directory where the root is attached until the pivot.
fn mount_point(root: &Root) -> &Path {
    match &root.source {
        RootSource::Directory(path) => path,
        RootSource::Overlay(overlay) => &overlay.mount_point,
    }
}

/// Opens the mount point. This comes before the switch to root of the user namespace, which may not be allowed to
/// search the host directories above it.
pub(super) fn open_mount_point(root: &Root) -> Result<OwnedFd> {
    let path = mount_point(root);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).on(Step::Root, path.display())
}

/// A detached copy of a root directory, taken before the switch to root of the user namespace as well.
pub(super) fn open_directory(root: &Root) -> Result<Option<OwnedFd>> {
    let RootSource::Directory(path) = &root.source else { return Ok(None) };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    open_tree(CWD, path, flags).on(Step::Root, path.display()).map(Some)
}

/// Attaches the root at its mount point and opens it. An overlay comes from the caller.
pub(super) fn enter(
    root: &Root,
    sync: &Sync,
    mount_point_fd: &OwnedFd,
    directory: Option<OwnedFd>,
) -> Result<RootfsFd> {
    let subject = mount_point(root).display();
    let detached = match directory {
        Some(directory) => directory,
        None => sync
            .expect(&ToChild::Root, Step::Root)?
            .ok_or_else(|| Error::invalid(Step::Root, &subject, "the root did not arrive"))?,
    };
    attach_at(&detached, mount_point_fd).on(Step::Root, &subject)?;
    reopen_dir(&detached).map(RootfsFd::new).on(Step::Root, &subject)
}

/// Makes the attached root the root of this process and lets go of the old one.
pub(super) fn pivot(rootfs: &RootfsFd) -> Result<()> {
    nix::unistd::fchdir(rootfs.root()).on(Step::Pivot, "new root")?;
    // pivot_root(2), "pivot_root(".", ".")": the old root ends on top of the new one and is detached from there,
    // without a directory of the image being needed for it.
    rustix::process::pivot_root(".", ".").on(Step::Pivot, "pivot_root(2)")?;
    unmount(".", UnmountFlags::DETACH).on(Step::Pivot, "old root")?;
    nix::unistd::chdir("/").on(Step::Pivot, "/")
}

/// Makes the root mount itself read-only, if the plan wants that.
pub(super) fn finish_read_only(rootfs: &RootfsFd, root: &Root) -> Result<()> {
    if !root.readonly {
        return Ok(());
    }
    let attr = MountAttr { attr_set: sys_mount::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
    sys_mount::mount_setattr(rootfs.root().as_fd(), c"", false, &attr).on(Step::Root, "read-only root")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_a_hundred_layers_fit_into_one_option() {
        let names: std::collections::BTreeSet<String> = (0..102).map(short_name).collect();
        assert_eq!(names.len(), 102);
        assert!(names.iter().map(|name| name.len() + 1).sum::<usize>() <= 255);
        // The volume's name is longer.
        assert!(names.iter().all(|name| name.len() < "vol".len()));
    }
}
