//! The cgroup hierarchies as a container sees them below `/sys/fs/cgroup`.
//!
//! On pure cgroup v2 that is the v2 tree itself. On a hybrid host it is the layout that language runtimes know from other
//! container runtimes: a directory for each v1 hierarchy in which the container has a cgroup, named after its
//! controllers, a link per controller where several share a hierarchy, and the v2 tree in `unified`. A hierarchy in
//! which the container has no cgroup is not shown: it would show the cgroup of the process that started the container.
//!
//! A view is a copy of the host's mount with the container's cgroup as its root. Mounting a hierarchy anew in the
//! container's cgroup namespace shows the same, but takes a superblock for each, and the kernel walks all cgroups of a v1
//! hierarchy for it (`cgroup_lock_and_drain_offline`): each container would make the next one dearer.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{Mode, mkdirat, symlinkat},
    mount::{MountPropagationFlags, OpenTreeFlags, open_tree},
};

use super::{
    mount_parts::{attach, attach_at, bits, target},
    rootfs_fd::RootfsFd,
};
use crate::{
    Result, Step,
    cgroup::{Cgroup, Controller},
    error::OnStep as _,
    plan::{Mount, MountAttributes, MountSource},
    sys::mount::{self as sys_mount, MountAttr},
};

/// Where the v2 tree is in a hybrid layout.
const UNIFIED: &str = "unified";

/// Detached mounts of the hierarchies.
#[derive(Default)]
pub(super) struct Views {
    unified: Option<OwnedFd>,
    v1: Vec<(Vec<Controller>, OwnedFd)>,
}

impl Views {
    /// Makes them of the directories of `cgroup`, if the plan mounts cgroups. The mounts that it was opened by must be in
    /// the mount namespace of this process.
    pub(super) fn make(mounts: &[Mount], cgroup: &Cgroup) -> Result<Self> {
        let Some(mount) = mounts.iter().find(|mount| mount.source == MountSource::Cgroup2) else {
            return Ok(Self::default());
        };
        let unified = cgroup.unified_fd().map(|dir| view(dir, mount.attributes)).transpose();
        let v1 = cgroup.v1_directories().map(|(controllers, dir)| {
            let view = view(dir, mount.attributes).on(Step::Mounts, name_of(controllers))?;
            Ok((controllers.to_vec(), view))
        });
        Ok(Self { unified: unified.on(Step::Mounts, mount.target.display())?, v1: v1.collect::<Result<_>>()? })
    }

    /// The v2 tree, if it is all there is to be shown.
    pub(super) fn take_whole(&mut self) -> Option<OwnedFd> {
        if self.v1.is_empty() { self.unified.take() } else { None }
    }

    /// True if there is a v1 hierarchy to be shown, so that the target gets a directory for each hierarchy.
    pub(super) fn is_hybrid(&self) -> bool {
        !self.v1.is_empty()
    }

    /// Makes the directories and links of a hybrid layout.
    pub(super) fn make_layout(&self, dir: BorrowedFd<'_>) -> io::Result<()> {
        for (controllers, _) in &self.v1 {
            let name = name_of(controllers);
            mkdirat(dir, name.as_str(), Mode::from_raw_mode(0o755))?;
            if controllers.len() > 1 {
                controllers.iter().try_for_each(|one| symlinkat(name.as_str(), dir, one.name()))?;
            }
        }
        if self.unified.is_some() { Ok(mkdirat(dir, UNIFIED, Mode::from_raw_mode(0o755))?) } else { Ok(()) }
    }

    /// Attaches a hybrid layout at the target of `mount`; `layout` is a detached mount with the directories.
    pub(super) fn attach(self, rootfs: &RootfsFd, mount: &Mount, layout: &OwnedFd) -> Result<()> {
        self.attach_layout(rootfs, mount, layout).on(Step::Mounts, mount.target.display())
    }

    fn attach_layout(self, rootfs: &RootfsFd, mount: &Mount, layout: &OwnedFd) -> io::Result<()> {
        // Attached first: before Linux 6.15 nothing can be attached to a mount that is detached itself.
        attach_at(layout, &target(rootfs, mount, layout)?)?;
        let v1 = self.v1.into_iter().map(|(controllers, view)| (name_of(&controllers), view));
        for (name, view) in v1.chain(self.unified.map(|view| (UNIFIED.to_owned(), view))) {
            attach(&view, layout.as_fd(), name.as_ref())?;
        }
        Ok(())
    }
}

/// A detached copy of a mount with this directory as its root; nothing that is mounted on either shows on the other.
fn view(dir: BorrowedFd<'_>, attributes: MountAttributes) -> io::Result<OwnedFd> {
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(dir, "", clone)?;
    let (attr_set, attr_clr) = bits(attributes);
    let propagation = u64::from(MountPropagationFlags::PRIVATE.bits());
    sys_mount::mount_setattr(
        tree.as_fd(),
        c"",
        false,
        &MountAttr { attr_set, attr_clr, propagation, ..MountAttr::default() },
    )?;
    Ok(tree)
}

/// The name of a v1 hierarchy's directory, `cpu,cpuacct`.
fn name_of(controllers: &[Controller]) -> String {
    controllers.iter().map(|c| c.name()).collect::<Vec<_>>().join(",")
}
