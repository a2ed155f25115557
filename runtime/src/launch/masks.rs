//! Masked paths: each is covered by an empty, read-only object of our own. The image's `/dev/null` is never used for
//! this (CVE-2025-31133), and writing to a mask fails instead of vanishing.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FileType, Mode, mkdirat, mknodat},
    mount::{MountAttrFlags, OpenTreeFlags, UnmountFlags, open_tree, unmount},
};

use super::{
    inside::{Inside, is_dir},
    root::{attach_at, new_filesystem},
};
use crate::{
    Result, Step,
    error::OnStep as _,
    sys::mount::{self as sys_mount, MountAttr},
};

/// Masks ready to be attached, one for each path of the plan.
pub(super) struct Masks {
    files: Vec<OwnedFd>,
    dirs: Vec<OwnedFd>,
}

impl Masks {
    /// Makes the masks. `spare` is a directory of this mount namespace that nothing covers yet; it is used for a moment,
    /// because the kernel copies only mounts that are attached (before Linux 6.15).
    pub(super) fn make(paths: &[PathBuf], spare: &OwnedFd) -> Result<Self> {
        if paths.is_empty() {
            return Ok(Self { files: Vec::new(), dirs: Vec::new() });
        }
        Self::copies(paths.len(), spare).on(Step::Paths, "masks")
    }

    fn copies(count: usize, spare: &OwnedFd) -> io::Result<Self> {
        let flags =
            MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let options = [("mode".to_owned(), Some("0755".to_owned())), ("size".to_owned(), Some("4k".to_owned()))];
        let tmpfs = new_filesystem("tmpfs", &options, flags)?;
        mknodat(&tmpfs, "file", FileType::RegularFile, Mode::from_raw_mode(0o444), 0)?;
        mkdirat(&tmpfs, "dir", Mode::from_raw_mode(0o555))?;
        attach_at(&tmpfs, spare)?;
        let copy = |name: &str| -> io::Result<OwnedFd> {
            let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            let tree = open_tree(&tmpfs, name, clone)?;
            let attr = MountAttr { attr_set: sys_mount::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
            sys_mount::mount_setattr(tree.as_fd(), c"", false, &attr)?;
            Ok(tree)
        };
        let files = (0..count).map(|_| copy("file")).collect::<io::Result<_>>();
        let dirs = (0..count).map(|_| copy("dir")).collect::<io::Result<_>>();
        nix::unistd::fchdir(&tmpfs)?;
        unmount(".", UnmountFlags::DETACH)?;
        nix::unistd::chdir("/")?;
        Ok(Self { files: files?, dirs: dirs? })
    }

    /// Covers `path`; a missing one is passed over, since kernels differ in what they show.
    pub(super) fn cover(&mut self, inside: &Inside, path: &Path) -> Result<()> {
        let target = match inside.resolve(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.on(Step::Paths, path.display())?,
        };
        let pile = if is_dir(&target).on(Step::Paths, path.display())? { &mut self.dirs } else { &mut self.files };
        let mask = pile.pop().ok_or(io::ErrorKind::NotFound).on(Step::Paths, path.display())?;
        attach_at(&mask, &target).on(Step::Paths, path.display())
    }
}
