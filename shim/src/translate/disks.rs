//! The block devices that a box uses: its own disk, and volumes of files that outlive it.

use icebox_runtime::cgroup::IoMax;
use icebox_runtime::plan::{DeviceDirectory, Mount, MountAttributes, MountSource};

use crate::error::{Error, ErrorKind};
use crate::launch::{HostLimits, VolumeMount};

/// Their file system.
pub(super) const FSTYPE: &str = "ext4";

/// Options of a file system that a box writes.
pub(super) fn options() -> Vec<(String, Option<String>)> {
    // `discard` gives freed blocks back to the host's file system, so that storage is billed for what is there.
    // Without the prefetch of bitmaps the kernel has no work for its thread `ext4lazyinit` at each mount: the
    // template's inode tables are complete.
    vec![
        ("errors".to_owned(), Some("remount-ro".to_owned())),
        ("discard".to_owned(), None),
        ("no_prefetch_block_bitmaps".to_owned(), None),
    ]
}

/// The mounts of volumes.
pub(super) fn volumes(volumes: &[VolumeMount]) -> impl Iterator<Item = Mount> + '_ {
    volumes.iter().map(|volume| {
        let mut options = options();
        if volume.readonly {
            // The file system itself, so that the kernel has the same one for all boxes that read it.
            options.push(("ro".to_owned(), None));
        }
        let source = MountSource::Device(DeviceDirectory {
            device: volume.device.clone(),
            fstype: FSTYPE.to_owned(),
            options,
            directory: volume.directory.clone().into(),
        });
        let attributes =
            MountAttributes { nosuid: true, nodev: true, readonly: volume.readonly, ..MountAttributes::default() };
        Mount { target: volume.target.clone(), source, attributes, propagation: None }
    })
}

/// The rates of these devices: the only ones that the box can reach.
pub(super) fn io_max(limits: &HostLimits, disks: &[(u32, u32)]) -> Result<Vec<IoMax>, Error> {
    if !limits.limits_io() {
        return Ok(Vec::new());
    }
    if disks.is_empty() {
        return Err(Error::new(ErrorKind::InvalidInput, "check limits", "the volume is not a block device"));
    }
    let of = |&(major, minor): &(u32, u32)| IoMax {
        major,
        minor,
        rbps: limits.io_read_bytes_per_second,
        wbps: limits.io_write_bytes_per_second,
        riops: limits.io_reads_per_second,
        wiops: limits.io_writes_per_second,
    };
    Ok(disks.iter().map(of).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mounted_volume_gives_the_kernel_no_work() {
        let options = options();
        assert!(options.iter().any(|(name, _)| name == "no_prefetch_block_bitmaps"), "{options:?}");
    }

    #[test]
    fn each_disk_has_the_rates() {
        let limits = HostLimits { io_write_bytes_per_second: Some(1 << 20), ..HostLimits::default() };
        let of = |minor| IoMax { major: 7, minor, wbps: Some(1 << 20), ..IoMax::default() };
        assert_eq!(io_max(&limits, &[(7, 3), (7, 4)]).unwrap(), [of(3), of(4)]);
        assert!(io_max(&limits, &[]).is_err(), "a rate needs the number of a device");
        assert_eq!(io_max(&HostLimits::default(), &[(7, 3)]).unwrap(), []);
    }

    #[test]
    fn a_volume_is_read_only_in_its_file_system_and_in_its_mount() {
        let volume = |readonly| VolumeMount {
            device: "/dev/loop9".into(),
            directory: "data".to_owned(),
            target: "/data".into(),
            readonly,
        };
        for readonly in [false, true] {
            let mount = volumes(&[volume(readonly)]).next().unwrap();
            assert!(mount.attributes.nodev && mount.attributes.nosuid && !mount.attributes.noexec);
            assert_eq!(mount.attributes.readonly, readonly);
            let MountSource::Device(device) = mount.source else { panic!("{mount:?}") };
            assert_eq!(device.options.contains(&("ro".to_owned(), None)), readonly);
        }
    }
}
