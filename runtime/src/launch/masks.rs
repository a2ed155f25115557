//! Objects of our own, in a tmpfs that is attached nowhere: masks, read-only, text files, and the directories of a hybrid
//! cgroup layout, as the plan says. A masked
//! path is covered by an empty one. The image's `/dev/null` is never used for this (CVE-2025-31133), and writing to a mask fails instead of
//! vanishing.

use std::{
    collections::VecDeque,
    io::{self, Write as _},
    os::fd::{AsFd as _, OwnedFd, RawFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FileType, Mode, OFlags, mkdirat, mknodat, openat},
    mount::{MountAttrFlags, OpenTreeFlags, UnmountFlags, open_tree, unmount},
};

use super::{
    cgroup_views::Views,
    mount_parts::{attach_at, new_filesystem},
    rootfs_fd::{RootfsFd, is_dir},
};
use crate::{
    Result, Step,
    error::OnStep as _,
    sys::mount::{self as sys_mount, MountAttr},
};

/// Smallest size of the tmpfs, a page.
const TMPFS_BYTES_MIN: usize = 4096;
/// The directory that has those of a hybrid cgroup layout.
const CGROUP_LAYOUT: &str = "cgroup";
/// What the container may add to a text that is not read-only.
const TEXT_ROOM_BYTES: usize = 64 << 10;

/// Mounts ready to be attached: an empty file and an empty directory, and one mount per text.
#[derive(Default)]
pub(super) struct Masks {
    file: Option<Mask>,
    dir: Option<Mask>,
    texts: VecDeque<OwnedFd>,
    cgroup_layout: Option<OwnedFd>,
    /// Files of texts that the program has open, with their numbers.
    kept: Vec<(OwnedFd, RawFd)>,
}

/// A text file to be made.
pub(super) struct Text<'a> {
    pub(super) text: &'a str,
    /// The descriptor as which the program has it open.
    pub(super) kept_as: Option<RawFd>,
    pub(super) readonly: bool,
}

/// A mask. It is attached over the first path itself; the others get copies of it.
struct Mask {
    mount: OwnedFd,
    is_attached: bool,
}

impl Mask {
    fn new(mount: OwnedFd) -> Self {
        Self { mount, is_attached: false }
    }

    fn cover(&mut self, target: &OwnedFd) -> io::Result<()> {
        if !self.is_attached {
            attach_at(&self.mount, target)?;
            self.is_attached = true;
            return Ok(());
        }
        let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        attach_at(&open_tree(&self.mount, "", clone)?, target)
    }
}

impl Masks {
    /// Makes them. `spare` is a directory of this mount namespace that nothing covers yet; it is used for a moment,
    /// because the kernel copies only mounts that are attached (before Linux 6.15).
    pub(super) fn make(paths: &[PathBuf], texts: &[Text<'_>], views: &Views, spare: &OwnedFd) -> Result<Self> {
        if paths.is_empty() && texts.is_empty() && !views.is_hybrid() {
            return Ok(Self::default());
        }
        Self::copies(texts, views, spare).on(Step::Paths, "masks and texts")
    }

    fn copies(texts: &[Text<'_>], views: &Views, spare: &OwnedFd) -> io::Result<Self> {
        let flags =
            MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let size =
            TMPFS_BYTES_MIN + texts.iter().map(|of| of.text.len() + TMPFS_BYTES_MIN + TEXT_ROOM_BYTES).sum::<usize>();
        let options = [("mode".to_owned(), Some("0755".to_owned())), ("size".to_owned(), Some(size.to_string()))];
        let tmpfs = new_filesystem("tmpfs", &options, flags)?;
        mknodat(&tmpfs, "file", FileType::RegularFile, Mode::from_raw_mode(0o444), 0)?;
        mkdirat(&tmpfs, "dir", Mode::from_raw_mode(0o555))?;
        let mut kept = Vec::new();
        for (index, of) in texts.iter().enumerate() {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let mode = if of.readonly { 0o444 } else { 0o644 };
            let mut file = std::fs::File::from(openat(&tmpfs, text_name(index), flags, Mode::from_raw_mode(mode))?);
            file.write_all(of.text.as_bytes())?;
            kept.extend(of.kept_as.map(|number| (file.into(), number)));
        }
        if views.is_hybrid() {
            mkdirat(&tmpfs, CGROUP_LAYOUT, Mode::from_raw_mode(0o755))?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            views.make_layout(openat(&tmpfs, CGROUP_LAYOUT, flags, Mode::empty())?.as_fd())?;
        }
        attach_at(&tmpfs, spare)?;
        let clone_of = |name: &str| {
            let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            open_tree(&tmpfs, name, clone)
        };
        let copy = |name: &str| -> io::Result<OwnedFd> {
            let tree = clone_of(name)?;
            let attr = MountAttr { attr_set: sys_mount::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
            sys_mount::mount_setattr(tree.as_fd(), c"", false, &attr)?;
            Ok(tree)
        };
        let cgroup_layout = views.is_hybrid().then(|| copy(CGROUP_LAYOUT)).transpose();
        let (file, dir) = (copy("file").map(Mask::new), copy("dir").map(Mask::new));
        let texts = (0..texts.len()).map(|index| Ok(clone_of(&text_name(index))?)).collect::<io::Result<_>>();
        nix::unistd::fchdir(&tmpfs)?;
        unmount(".", UnmountFlags::DETACH)?;
        nix::unistd::chdir("/")?;
        Ok(Self { file: Some(file?), dir: Some(dir?), texts: texts?, kept, cgroup_layout: cgroup_layout? })
    }

    /// The files of texts for the program, with their numbers.
    pub(super) fn take_kept(&mut self) -> Vec<(OwnedFd, RawFd)> {
        std::mem::take(&mut self.kept)
    }

    /// The directories of a hybrid cgroup layout, if there is one, as a read-only mount.
    pub(super) fn take_cgroup_layout(&mut self) -> Option<OwnedFd> {
        self.cgroup_layout.take()
    }

    /// The next text, in the order they were given.
    pub(super) fn take_text(&mut self) -> Option<OwnedFd> {
        self.texts.pop_front()
    }

    /// Covers these paths.
    pub(super) fn cover_all(&mut self, rootfs: &RootfsFd, paths: &[PathBuf]) -> Result<()> {
        paths.iter().try_for_each(|path| self.cover(rootfs, path))
    }

    /// Covers `path`; a missing one is passed over, since kernels differ in what they show.
    fn cover(&mut self, rootfs: &RootfsFd, path: &Path) -> Result<()> {
        let target = match rootfs.resolve(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.on(Step::Paths, path.display())?,
        };
        let mask = if is_dir(&target).on(Step::Paths, path.display())? { &mut self.dir } else { &mut self.file };
        let mask = mask.as_mut().ok_or(io::ErrorKind::NotFound).on(Step::Paths, path.display())?;
        mask.cover(&target).on(Step::Paths, path.display())
    }
}

fn text_name(index: usize) -> String {
    format!("text-{index}")
}
