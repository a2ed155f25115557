//! The cgroup hierarchies as a container sees them below `/sys/fs/cgroup`.
//!
//! On pure cgroup v2 that is the v2 tree itself. On a hybrid host it is the layout that language runtimes know from other
//! container runtimes: a directory for each v1 hierarchy in which the container has a cgroup, named after its
//! controllers, a link per controller where several share a hierarchy, and the v2 tree in `unified`. A hierarchy in
//! which the container has no cgroup is not shown: it would show the cgroup of the process that started the
//! container.

use std::{io, os::fd::OwnedFd};

use rustix::{
    fs::{Mode, mkdirat, symlinkat},
    mount::MountAttrFlags,
};

use super::{
    mount_parts::{attach, attach_at, flags, new_filesystem, target, unified},
    rootfs_fd::RootfsFd,
};
use crate::{
    Result, Step,
    cgroup::Controller,
    error::OnStep as _,
    plan::{Mount, MountAttributes, MountSource},
    sys::mount::{self as sys_mount, MountAttr},
};

/// Size of the tmpfs that holds the directories of a hybrid layout.
const LAYOUT_BYTES_MAX: &str = "64k";
/// Where the v2 tree is in a hybrid layout.
const UNIFIED: &str = "unified";

/// Detached mounts of the hierarchies.
#[derive(Default)]
pub(super) struct Views {
    unified: Option<OwnedFd>,
    v1: Vec<(Vec<Controller>, OwnedFd)>,
}

impl Views {
    /// Makes them as seen from the cgroup namespace of this process, if the plan mounts cgroups. `v1` has the
    /// controllers of each v1 hierarchy to be shown.
    pub(super) fn make(mounts: &[Mount], v1: &[Vec<Controller>]) -> Result<Self> {
        let Some(mount) = mounts.iter().find(|mount| mount.source == MountSource::Cgroup2) else {
            return Ok(Self::default());
        };
        let unified = unified(mount.attributes).on(Step::Mounts, mount.target.display())?;
        let view = |controllers: &Vec<Controller>| -> Result<(Vec<Controller>, OwnedFd)> {
            let options: Vec<_> = controllers.iter().map(|c| (c.name().to_owned(), None)).collect();
            let view = new_filesystem("cgroup", &options, flags(mount.attributes));
            Ok((controllers.clone(), view.on(Step::Mounts, name_of(controllers))?))
        };
        Ok(Self { unified, v1: v1.iter().map(view).collect::<Result<_>>()? })
    }

    /// The v2 tree, if it is all there is to be shown.
    pub(super) fn take_whole(&mut self) -> Option<OwnedFd> {
        if self.v1.is_empty() { self.unified.take() } else { None }
    }

    /// All of it, if there is a v1 hierarchy to be shown.
    pub(super) fn take_hybrid(&mut self) -> Option<Self> {
        if self.v1.is_empty() { None } else { Some(std::mem::take(self)) }
    }

    /// Attaches a hybrid layout at the target of `mount`.
    pub(super) fn attach(self, rootfs: &RootfsFd, mount: &Mount) -> Result<()> {
        self.attach_layout(rootfs, mount).on(Step::Mounts, mount.target.display())
    }

    fn attach_layout(self, rootfs: &RootfsFd, mount: &Mount) -> io::Result<()> {
        let options = [("mode", "0755"), ("size", LAYOUT_BYTES_MAX)];
        let options = options.map(|(key, value)| (key.to_owned(), Some(value.to_owned())));
        let writable = MountAttributes { readonly: false, ..mount.attributes };
        let layout = new_filesystem("tmpfs", &options, flags(writable) & !MountAttrFlags::MOUNT_ATTR_RDONLY)?;
        let target = target(rootfs, mount, &layout)?;
        // Attached first: before Linux 6.15 nothing can be attached to a mount that is detached itself.
        attach_at(&layout, &target)?;
        let unified = self.unified.map(|view| (UNIFIED.to_owned(), view));
        let v1 = self.v1.into_iter().map(|(controllers, view)| {
            let name = name_of(&controllers);
            if controllers.len() > 1 {
                for one in &controllers {
                    symlinkat(name.as_str(), &layout, one.name())?;
                }
            }
            Ok((name, view))
        });
        for (name, view) in v1.collect::<io::Result<Vec<_>>>()?.into_iter().chain(unified) {
            mkdirat(&layout, name.as_str(), Mode::from_raw_mode(0o755))?;
            attach(&view, std::os::fd::AsFd::as_fd(&layout), name.as_ref())?;
        }
        let readonly = MountAttr { attr_set: sys_mount::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
        sys_mount::mount_setattr(std::os::fd::AsFd::as_fd(&layout), c"", false, &readonly)
    }
}

/// The name of a v1 hierarchy's directory, `cpu,cpuacct`.
fn name_of(controllers: &[Controller]) -> String {
    controllers.iter().map(|c| c.name()).collect::<Vec<_>>().join(",")
}
