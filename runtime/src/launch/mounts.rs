//! Mounts below the root: made detached, then attached at a descriptor.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::CWD,
    mount::{MountPropagationFlags, OpenTreeFlags, open_tree},
};

use super::{
    cgroup_views::Views,
    masks::{Masks, Text},
    mount_parts::{attach_at, bits, flags, new_filesystem, target, unified},
    rootfs_fd::RootfsFd,
};
use crate::{
    Result, Step,
    error::OnStep as _,
    plan::{Mount, MountAttributes, MountSource, Propagation},
    sys::mount::{self as sys_mount, MountAttr},
};

/// Detached copies of all bind sources, in the order of the plan. They are taken before the switch to root of the user
/// namespace, which may not be allowed to reach them.
pub(super) fn open_sources(mounts: &[Mount], mut unified: Option<OwnedFd>) -> Result<Vec<Option<OwnedFd>>> {
    mounts
        .iter()
        .map(|mount| match &mount.source {
            MountSource::Bind { path, recursive } => {
                let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
                if *recursive {
                    flags |= OpenTreeFlags::AT_RECURSIVE;
                }
                open_tree(CWD, path, flags).on(Step::Mounts, path.display()).map(Some)
            }
            // The texts and the devices come later.
            MountSource::Filesystem { .. }
            | MountSource::Text(_)
            | MountSource::KeptText { .. }
            | MountSource::Device(_) => Ok(None),
            MountSource::Cgroup2 => Ok(unified.take()),
        })
        .collect()
}

/// The texts of the plan, in order.
pub(super) fn texts(mounts: &[Mount]) -> Vec<Text<'_>> {
    mounts
        .iter()
        .filter_map(|mount| {
            let (text, kept_as) = match &mount.source {
                MountSource::Text(text) => (text, None),
                MountSource::KeptText { text, fd } => (text, Some(*fd)),
                _ => return None,
            };
            Some(Text { text, kept_as, readonly: mount.attributes.readonly })
        })
        .collect()
}

/// Takes the mount of each text of the plan.
pub(super) fn add_texts(mounts: &[Mount], sources: &mut [Option<OwnedFd>], masks: &mut Masks) {
    for (mount, source) in mounts.iter().zip(sources) {
        if matches!(mount.source, MountSource::Text(_) | MountSource::KeptText { .. }) {
            *source = masks.take_text();
        }
    }
}

/// Makes and attaches every mount of the plan. On a hybrid host `views` has the cgroup hierarchies, and `layout` the
/// directories for them. Returns those that [`finish_read_only`] is to make read-only.
pub(super) fn attach_all<'m>(
    rootfs: &RootfsFd,
    mounts: &'m [Mount],
    sources: Vec<Option<OwnedFd>>,
    views: Views,
    layout: Option<OwnedFd>,
) -> Result<Vec<(OwnedFd, &'m Mount)>> {
    let mut read_only_later = Vec::new();
    let mut hybrid = layout.map(|layout| (views, layout));
    for (mount, source) in mounts.iter().zip(sources) {
        if let Some((views, layout)) = hybrid.take_if(|_| mount.source == MountSource::Cgroup2) {
            views.attach(rootfs, mount, &layout)?;
            continue;
        }
        let Some(attached) = attach_one(rootfs, mount, source)? else { continue };
        if read_only_late(mount) {
            read_only_later.push((attached, mount));
        }
    }
    Ok(read_only_later)
}

/// A new tmpfs is empty: the targets of what is mounted below it, device nodes and the console are made in it first.
/// File systems with a content of their own are read-only from the start, which the kernel demands of a procfs or sysfs
/// where the host's own is read-only.
fn read_only_late(mount: &Mount) -> bool {
    mount.attributes.readonly && matches!(&mount.source, MountSource::Filesystem { fstype, .. } if fstype == "tmpfs")
}

/// Makes the mounts read-only that had to be filled first.
pub(super) fn finish_read_only(mounts: &[(OwnedFd, &Mount)]) -> Result<()> {
    for (attached, mount) in mounts {
        let attr = MountAttr { attr_set: sys_mount::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
        sys_mount::mount_setattr(attached.as_fd(), c"", false, &attr).on(Step::Mounts, mount.target.display())?;
    }
    Ok(())
}

fn attach_one(rootfs: &RootfsFd, mount: &Mount, source: Option<OwnedFd>) -> Result<Option<OwnedFd>> {
    let subject = mount.target.display();
    let Some(detached) = make(mount, source).on(Step::Mounts, &subject)? else { return Ok(None) };
    let target = target(rootfs, mount, &detached).on(Step::Mounts, &subject)?;
    attach_at(&detached, &target).on(Step::Mounts, &subject)?;
    if let Some(propagation) = mount.propagation {
        propagate(&detached, propagation).on(Step::Mounts, &subject)?;
    }
    Ok(Some(detached))
}

fn make(mount: &Mount, source: Option<OwnedFd>) -> io::Result<Option<OwnedFd>> {
    match (&mount.source, source) {
        (MountSource::Bind { .. } | MountSource::Text(_) | MountSource::KeptText { .. }, Some(tree)) => {
            let (attr_set, attr_clr) = bits(mount.attributes);
            if attr_set != 0 || attr_clr != 0 {
                let attr = MountAttr { attr_set, attr_clr, ..MountAttr::default() };
                sys_mount::mount_setattr(tree.as_fd(), c"", mount.attributes.recursive, &attr)?;
            }
            Ok(Some(tree))
        }
        // Its attributes were set where it was made.
        (MountSource::Device(_), Some(tree)) => Ok(Some(tree)),
        (
            MountSource::Bind { .. } | MountSource::Text(_) | MountSource::KeptText { .. } | MountSource::Device(_),
            None,
        ) => Err(io::ErrorKind::InvalidInput.into()),
        (MountSource::Filesystem { fstype, source, options }, _) => {
            let mut all = options.clone();
            if let Some(source) = source {
                all.insert(0, ("source".to_owned(), Some(source.clone())));
            }
            let attributes =
                MountAttributes { readonly: mount.attributes.readonly && !read_only_late(mount), ..mount.attributes };
            new_filesystem(fstype, &all, flags(attributes)).map(Some)
        }
        (MountSource::Cgroup2, Some(view)) => Ok(Some(view)),
        (MountSource::Cgroup2, None) => unified(mount.attributes),
    }
}

fn propagate(mount: &OwnedFd, propagation: Propagation) -> io::Result<()> {
    let (flag, recursive) = match propagation {
        Propagation::Private(r) => (MountPropagationFlags::PRIVATE, r),
        Propagation::Slave(r) => (MountPropagationFlags::DOWNSTREAM, r),
        Propagation::Shared(r) => (MountPropagationFlags::SHARED, r),
        Propagation::Unbindable(r) => (MountPropagationFlags::UNBINDABLE, r),
    };
    let attr = MountAttr { propagation: u64::from(flag.bits()), ..MountAttr::default() };
    sys_mount::mount_setattr(mount.as_fd(), c"", recursive, &attr)
}

/// Makes the objects at these paths read-only.
pub(super) fn make_paths_read_only(rootfs: &RootfsFd, paths: &[PathBuf]) -> Result<()> {
    paths.iter().try_for_each(|path| make_path_read_only(rootfs, path))
}

/// Makes the object at `path` read-only by a mount of itself; a missing path is passed over.
fn make_path_read_only(rootfs: &RootfsFd, path: &Path) -> Result<()> {
    let target = match rootfs.resolve(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.on(Step::Paths, path.display())?,
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(&target, "", flags).on(Step::Paths, path.display())?;
    let attr = MountAttr { attr_set: sys_mount::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
    sys_mount::mount_setattr(tree.as_fd(), c"", true, &attr).on(Step::Paths, path.display())?;
    attach_at(&tree, &target).on(Step::Paths, path.display())
}
