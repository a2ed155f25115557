//! An XFS that is mounted by a descriptor, at no place.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};

use crate::sys::xfs;

/// Nothing in a pool is executed, is a device, or needs the time of its last reading.
const FLAGS: [MountAttrFlags; 4] = [
    MountAttrFlags::MOUNT_ATTR_NODEV,
    MountAttrFlags::MOUNT_ATTR_NOSUID,
    MountAttrFlags::MOUNT_ATTR_NOEXEC,
    MountAttrFlags::MOUNT_ATTR_NOATIME,
];

/// Unmounted when it is dropped, as far as this process is concerned: an attached volume keeps the file system.
#[derive(Debug)]
pub(super) struct Mounted {
    fd: OwnedFd,
    root: PathBuf,
}

/// Mounts the XFS of `device`. If it is mounted already, this is the same file system once more.
pub(super) fn xfs(device: &Path) -> io::Result<Mounted> {
    let context = fsopen("xfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", device)?;
    // Space that a volume gives back goes back to the file system around the pool.
    fsconfig_set_flag(context.as_fd(), "discard")?;
    fsconfig_create(context.as_fd())?;
    let flags = FLAGS.into_iter().fold(MountAttrFlags::empty(), |all, flag| all | flag);
    let fd = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags)?;
    // A child of this process (mkfs, e2fsck) reaches it too: by the number of this process.
    let root = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd()));
    Ok(Mounted { fd, root })
}

impl Mounted {
    /// The root directory, as a path for this process and its children.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Grows the file system to `bytes`, which its device has.
    pub(super) fn grow(&self, bytes: u64) -> io::Result<()> {
        // The descriptor of a mount takes no ioctl; its root directory does.
        let directory = openat(&self.fd, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        xfs::grow(directory.as_fd(), bytes)
    }
}
