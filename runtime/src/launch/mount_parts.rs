//! What every kind of mount needs: a new file system, attaching it, its attributes as the kernel's bits, its target, and
//! the cgroup2 tree.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{Mode, mkdirat},
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
        fsconfig_set_string, fsmount, fsopen, move_mount,
    },
};

use super::rootfs_fd::{RootfsFd, is_dir};
use crate::{
    plan::{Mount, MountAttributes, MountSource},
    sys::mount::{self as sys_mount, MountAttr},
};

/// Attaches a detached mount at a path.
pub(super) fn attach(mount: &OwnedFd, dir: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    Ok(move_mount(mount, "", dir, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Attaches a detached mount at the object that a descriptor names.
pub(super) fn attach_at(mount: &OwnedFd, target: &OwnedFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, "", target, "", flags)?)
}

/// A new, detached instance of a file system.
pub(super) fn new_filesystem(
    fstype: &str,
    options: &[(String, Option<String>)],
    flags: MountAttrFlags,
) -> io::Result<OwnedFd> {
    let context = fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC)?;
    configure(&context, options)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)?)
}

/// Sets the options of a file system and makes it.
pub(super) fn configure(context: &OwnedFd, options: &[(String, Option<String>)]) -> io::Result<()> {
    for (key, value) in options {
        match value {
            Some(value) => fsconfig_set_string(context, key.as_str(), value.as_str())?,
            None => fsconfig_set_flag(context, key.as_str())?,
        }
    }
    Ok(fsconfig_create(context)?)
}

/// The file system on a block device, detached.
pub(super) fn of_device(device: &Path, fstype: &str, options: &[(String, Option<String>)]) -> io::Result<OwnedFd> {
    let context = fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", device)?;
    configure(&context, options)?;
    let flags = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)?)
}

/// Sets the attributes of a detached mount and attaches it at a new directory of the staging area. Idmapping is only
/// possible while a mount has never been attached.
pub(super) fn place(
    staging: &OwnedFd,
    name: &str,
    mount: &OwnedFd,
    extra: u64,
    user_namespace: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut attr = MountAttr {
        attr_set: extra | sys_mount::MOUNT_ATTR_NODEV | sys_mount::MOUNT_ATTR_NOSUID,
        ..MountAttr::default()
    };
    if let Some(fd) = user_namespace {
        attr.attr_set |= sys_mount::MOUNT_ATTR_IDMAP;
        attr.userns_fd = fd.as_raw_fd() as u64;
    }
    sys_mount::mount_setattr(mount.as_fd(), c"", false, &attr)?;
    mkdirat(staging, name, Mode::from_raw_mode(0o700))?;
    attach(mount, staging.as_fd(), Path::new(name))
}

/// The cgroup2 hierarchy as seen from the cgroup namespace of this process, detached. `None` on a host without cgroup2.
pub(super) fn unified(attributes: MountAttributes) -> io::Result<Option<OwnedFd>> {
    match new_filesystem("cgroup2", &[], flags(attributes)) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        other => other.map(Some),
    }
}

/// Opens the target of a mount inside the root, and makes it if it is missing.
pub(super) fn target(rootfs: &RootfsFd, mount: &Mount, detached: &OwnedFd) -> io::Result<OwnedFd> {
    let kernel_view =
        matches!(&mount.source, MountSource::Filesystem { fstype, .. } if fstype == "proc" || fstype == "sysfs");
    if kernel_view {
        // A link here would let the image choose where the kernel's own files appear (CVE-2019-19921).
        match rootfs.resolve_no_links(&mount.target) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
    }
    if is_dir(detached)? {
        rootfs.make_dir(&mount.target, Mode::from_raw_mode(0o755))
    } else {
        rootfs.make_file(&mount.target)
    }
}

/// The attributes as bits to set and to clear.
pub(super) fn bits(a: MountAttributes) -> (u64, u64) {
    let mut set = 0;
    let mut clear = a.cleared;
    for (wanted, bit) in [
        (a.readonly, sys_mount::MOUNT_ATTR_RDONLY),
        (a.nosuid, sys_mount::MOUNT_ATTR_NOSUID),
        (a.nodev, sys_mount::MOUNT_ATTR_NODEV),
        (a.noexec, sys_mount::MOUNT_ATTR_NOEXEC),
        (a.nosymfollow, sys_mount::MOUNT_ATTR_NOSYMFOLLOW),
        (a.nodiratime, sys_mount::MOUNT_ATTR_NODIRATIME),
    ] {
        if wanted {
            set |= bit;
        }
    }
    if a.noatime || a.strictatime {
        // The access time modes are values of one field; the field is cleared before one is set.
        clear |= sys_mount::MOUNT_ATTR_ATIME;
        set |= if a.noatime { sys_mount::MOUNT_ATTR_NOATIME } else { sys_mount::MOUNT_ATTR_STRICTATIME };
    }
    (set, clear)
}

/// The attributes as flags of fsmount(2).
pub(super) fn flags(attributes: MountAttributes) -> MountAttrFlags {
    MountAttrFlags::from_bits_retain(bits(attributes).0 as u32)
}

#[cfg(test)]
mod tests {
    use super::{bits, sys_mount};
    use crate::plan::MountAttributes;

    #[test]
    fn access_time_is_a_field_not_a_bit() {
        let (set, clear) = bits(MountAttributes { noatime: true, readonly: true, ..Default::default() });
        assert_eq!(set, sys_mount::MOUNT_ATTR_NOATIME | sys_mount::MOUNT_ATTR_RDONLY);
        assert_eq!(clear, sys_mount::MOUNT_ATTR_ATIME);
        assert_eq!(bits(MountAttributes::default()), (0, 0));
    }
}
