//! The disk of a box without processes, or a copy of a disk, as a tree of files that no path leads to.
//!
//! The blocks were written by the kernel's own file system only: a box has no device. The names and links in it are the
//! tenant's, so that a reader follows none. The mount is attached nowhere and ends with its descriptor.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};

use crate::error::{Error, ErrorKind};

/// Where the changes of a box are on its disk.
pub const UPPER: &str = "upper";

/// Mounts the disk of the box `id`, whose device is held open, for reading. Ids in it are those in the box.
///
/// # Errors
/// The kernel refuses to mount it.
pub fn open_disk(device: &Path, id: &str) -> Result<OwnedFd, Error> {
    open(device, id, MountAttrFlags::MOUNT_ATTR_RDONLY)
}

/// Mounts the empty disk of a box that is about to be made, whose device is held open, to put its first files on it.
///
/// # Errors
/// The kernel refuses to mount it.
pub fn open_new_disk(device: &Path, id: &str) -> Result<OwnedFd, Error> {
    open(device, id, MountAttrFlags::empty())
}

fn open(device: &Path, id: &str, access: MountAttrFlags) -> Result<OwnedFd, Error> {
    let mount = || -> io::Result<OwnedFd> {
        let context = fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, "source", device)?;
        if access.contains(MountAttrFlags::MOUNT_ATTR_RDONLY) {
            fsconfig_set_flag(&context, "ro")?;
        }
        fsconfig_create(&context)?;
        let strict =
            MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, strict | access)?)
    };
    mount().map_err(|cause| Error::new(ErrorKind::Internal, "open the disk of a box", id).because(cause))
}
