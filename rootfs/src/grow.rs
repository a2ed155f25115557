//! Growing a volume.
//!
//! The image file grows first, then the file system in it: of an attached volume by the kernel, of another one by
//! resize2fs. A crash between the two leaves a file system that is smaller than its image, which [`fit::fill`] finds before the
//! next use and completes. A volume never shrinks.

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::thread;
use std::time::Instant;

use crate::error::{At, Cause, Error, Result, Step};
use crate::files;
use crate::fit;
use crate::loops::{self, Attached};
use crate::mount;
use crate::store::VOLUME_SIZE_GIB_MAX;
use crate::volume::{ATTACH_WAIT, LOCK_POLL, Volume};

/// How a volume has grown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grown {
    /// It has the size.
    Done,
    /// It is attached, and the kernel refuses to grow its file system. That is done before the next use of the volume.
    AtNextUse {
        /// This process lacks CAP_SYS_RESOURCE. Otherwise the file system was formatted by a version whose file systems
        /// cannot grow while they are mounted.
        lacks_capability: bool,
    },
}

impl Volume {
    /// The size of the volume, which is more than it occupies. Of a device it is that of the file system.
    pub fn size_bytes(&self) -> Result<u64> {
        if self.devices.is_some() {
            let device = File::open(self.path()).at(Step::MeasureVolume, self.path())?;
            return fit::file_system_bytes(&device).at(Step::MeasureVolume, self.path());
        }
        Ok(std::fs::metadata(self.path()).at(Step::MeasureVolume, self.path())?.len())
    }

    /// Grows the volume to that size, attached or not. One that has the size already is only completed.
    pub fn grow(&self, size_gib: u32) -> Result<Grown> {
        let path = self.path();
        let refuse = |why| Err(Error::new(Step::GrowVolume, path.display().to_string(), Cause::Invalid(why)));
        if size_gib == 0 || size_gib > VOLUME_SIZE_GIB_MAX {
            return refuse("a volume has 1 to 1024 GiB");
        }
        if self.devices.is_some() {
            if u64::from(size_gib) << 30 < self.size_bytes()? {
                return refuse("a volume cannot become smaller");
            }
            self.make_room(size_gib)?;
            return self.grow_on_device(u64::from(size_gib) << 30);
        }
        let (file, wanted) = (open(path)?, u64::from(size_gib) << 30);
        let length = file.metadata().at(Step::GrowVolume, path)?.len();
        if wanted < length {
            return refuse("a volume cannot become smaller");
        }
        if wanted > length {
            file.set_len(wanted).and_then(|()| file.sync_all()).at(Step::GrowVolume, path)?;
        }
        let deadline = Instant::now() + ATTACH_WAIT;
        let metadata = file.metadata().at(Step::GrowVolume, path)?;
        loop {
            if files::try_lock(&file).at(Step::GrowVolume, path)? {
                fit::fill(&file, path)?;
                return Ok(Grown::Done);
            }
            if let Some(attached) = loops::find(&metadata).at(Step::GrowVolume, path)? {
                return grow_attached(&attached, path, wanted);
            }
            if Instant::now() >= deadline {
                return Err(Error::new(Step::GrowVolume, path.display().to_string(), Cause::InUse));
            }
            thread::sleep(LOCK_POLL);
        }
    }
}

impl Volume {
    /// Makes the device of a disk at least so large; an image has no such limit. The file system stays as it is.
    ///
    /// # Errors
    /// `FixedSize` if the device cannot grow.
    pub fn make_room(&self, size_gib: u32) -> Result<()> {
        match &self.devices {
            Some(devices) => devices.make_room(self.path(), u64::from(size_gib) << 30),
            None => Ok(()),
        }
    }

    fn grow_on_device(&self, wanted: u64) -> Result<Grown> {
        let path = self.path();
        if !self.in_use()? {
            fit::fill_to(path, wanted)?;
            return Ok(Grown::Done);
        }
        grow_mounted(path, path, wanted)
    }
}

fn open(path: &Path) -> Result<File> {
    OpenOptions::new().read(true).write(true).open(path).at(Step::GrowVolume, path)
}

/// The file system is mounted in a box. It is mounted here once more, at no place, to have a descriptor of it.
fn grow_attached(attached: &Attached, path: &Path, wanted: u64) -> Result<Grown> {
    attached.resize_to_file().at(Step::GrowVolume, path)?;
    grow_mounted(&attached.device, path, wanted)
}

fn grow_mounted(device: &Path, path: &Path, wanted: u64) -> Result<Grown> {
    let mounted = mount::ext4(device).at(Step::GrowVolume, device)?;
    match mounted.grow_ext4(wanted) {
        Ok(()) => Ok(Grown::Done),
        Err(error) => match error.raw_os_error() {
            Some(libc::EPERM) => Ok(Grown::AtNextUse { lacks_capability: true }),
            Some(libc::EOPNOTSUPP) => Ok(Grown::AtNextUse { lacks_capability: false }),
            _ => Err(error).at(Step::GrowVolume, path),
        },
    }
}
