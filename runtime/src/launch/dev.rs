//! `/dev`: nodes and links in the container's own tmpfs.

use std::{ffi::OsStr, io, os::fd::OwnedFd, path::Path};

use rustix::{
    fs::{AtFlags, CWD, FileType, Gid, Mode, Uid, chownat, makedev, mknodat, statat, symlinkat},
    mount::{OpenTreeFlags, open_tree},
};

use super::{
    mount_parts::attach_at,
    rootfs_fd::{RootfsFd, unlink_if_there},
};
use crate::{
    Error, Result, Step,
    error::OnStep as _,
    plan::{Dev, DeviceKind, DeviceNode, Namespace, Plan},
};

/// Copies of the host's nodes, where nodes cannot be made: the kernel refuses `mknod` of devices in a user namespace.
/// Taken while the host's `/dev` is in sight. One entry for each node, `None` for one that is to be made.
pub(super) fn open_host_nodes(plan: &Plan) -> Result<Vec<Option<OwnedFd>>> {
    if plan.namespaces.user == Namespace::Host {
        return Ok(plan.dev.nodes.iter().map(|_| None).collect());
    }
    plan.dev
        .nodes
        .iter()
        .map(|node| {
            if node.kind == DeviceKind::Fifo {
                return Ok(None);
            }
            let flags =
                OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
            let tree = open_tree(CWD, &node.path, flags).on(Step::Devices, node.path.display())?;
            verify(&tree, node)?;
            Ok(Some(tree))
        })
        .collect()
}

/// The host's node must be the device that the plan names by its numbers; the path alone proves nothing.
fn verify(tree: &OwnedFd, node: &DeviceNode) -> Result<()> {
    let stat = statat(tree, "", AtFlags::EMPTY_PATH).on(Step::Devices, node.path.display())?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind == file_type(node.kind) && stat.st_rdev == makedev(node.major, node.minor) {
        return Ok(());
    }
    Err(Error::invalid(
        Step::Devices,
        node.path.display(),
        format!("the host's node is not the device {}:{}", node.major, node.minor),
    ))
}

fn file_type(kind: DeviceKind) -> FileType {
    match kind {
        DeviceKind::Char => FileType::CharacterDevice,
        DeviceKind::Block => FileType::BlockDevice,
        DeviceKind::Fifo => FileType::Fifo,
    }
}

/// Fills `/dev`. `bound` holds one entry per node: a copy of the host's node to attach, or `None` to make the node.
pub(super) fn fill(rootfs: &RootfsFd, dev: &Dev, bound: Vec<Option<OwnedFd>>) -> Result<()> {
    for (node, bound) in dev.nodes.iter().zip(bound) {
        match bound {
            Some(tree) => {
                let target = rootfs.make_file(&node.path).on(Step::Devices, node.path.display())?;
                attach_at(&tree, &target).on(Step::Devices, node.path.display())?;
            }
            None => make_node(rootfs, node).on(Step::Devices, node.path.display())?,
        }
    }
    for (name, text) in &dev.links {
        let path = Path::new("/dev").join(name);
        let (dir, name) = rootfs.parent(&path).on(Step::Devices, path.display())?;
        link(&dir, name, text).on(Step::Devices, path.display())?;
    }
    Ok(())
}

fn make_node(rootfs: &RootfsFd, node: &DeviceNode) -> io::Result<()> {
    let (dir, name) = rootfs.parent(&node.path)?;
    unlink_if_there(&dir, name)?;
    let rdev = makedev(node.major, node.minor);
    mknodat(&dir, name, file_type(node.kind), Mode::from_raw_mode(node.mode), rdev)?;
    // chown is the one call that can set another owner; the file is ours and new, so the name cannot have changed.
    let owner = (Uid::from_raw(node.uid), Gid::from_raw(node.gid));
    Ok(chownat(&dir, name, Some(owner.0), Some(owner.1), AtFlags::SYMLINK_NOFOLLOW)?)
}

fn link(dir: &OwnedFd, name: &OsStr, text: &str) -> io::Result<()> {
    match symlinkat(text, dir, name) {
        // An image may bring the same link.
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
