//! File systems that are mounted by a descriptor, at no place: the pool, and a box's disk once more while it grows.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};

use crate::sys::{ext4, xfs};

/// Nothing in it is executed, is a device, or needs the time of its last reading.
const FLAGS: [MountAttrFlags; 4] = [
    MountAttrFlags::MOUNT_ATTR_NODEV,
    MountAttrFlags::MOUNT_ATTR_NOSUID,
    MountAttrFlags::MOUNT_ATTR_NOEXEC,
    MountAttrFlags::MOUNT_ATTR_NOATIME,
];

/// Unmounted when it is dropped, as far as this process is concerned: an attached volume keeps the file system.
#[derive(Debug)]
pub(crate) struct Mounted {
    fd: OwnedFd,
    root: PathBuf,
}

/// Mounts the XFS of `device`.
pub(crate) fn xfs(device: &Path) -> io::Result<Mounted> {
    mounted("xfs", device, false)
}

/// Mounts the ext4 of `device`.
pub(crate) fn ext4(device: &Path) -> io::Result<Mounted> {
    mounted("ext4", device, false)
}

/// Mounts the ext4 of `device` for reading. EBUSY if it is mounted for writing.
pub(crate) fn ext4_readonly(device: &Path) -> io::Result<Mounted> {
    mounted("ext4", device, true)
}

/// If the file system of the device is mounted already, this is the same file system once more.
fn mounted(kind: &str, device: &Path, readonly: bool) -> io::Result<Mounted> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", device)?;
    // Space that is given back goes back to the file system below.
    fsconfig_set_flag(context.as_fd(), "discard")?;
    if readonly {
        fsconfig_set_flag(context.as_fd(), "ro")?;
    }
    fsconfig_create(context.as_fd())?;
    let flags = FLAGS.into_iter().fold(MountAttrFlags::empty(), |all, flag| all | flag);
    let fd = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags)?;
    // A child of this process (mkfs, e2fsck) reaches it too: by the number of this process.
    let root = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd()));
    Ok(Mounted { fd, root })
}

impl Mounted {
    /// The root directory, as a path for this process and its children.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Grows an XFS to `bytes`, which its device has.
    pub(crate) fn grow_xfs(&self, bytes: u64) -> io::Result<()> {
        xfs::grow(self.directory()?.as_fd(), bytes)
    }

    /// Grows an ext4 to `bytes`, which its device has.
    pub(crate) fn grow_ext4(&self, bytes: u64) -> io::Result<()> {
        ext4::grow(self.directory()?.as_fd(), bytes)
    }

    /// The descriptor of a mount takes no ioctl; its root directory does.
    fn directory(&self) -> io::Result<OwnedFd> {
        Ok(openat(&self.fd, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
    }
}
