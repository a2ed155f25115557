//! Volumes of files that outlive boxes: `data/<id>.img` beside the disks.
//!
//! Such a volume is an ext4 as the disk of a box is. Boxes see its directory [`DATA_DIRECTORY`](crate::DATA_DIRECTORY). Who may
//! have it is decided elsewhere (`api`).

use std::fs::OpenOptions;
use std::path::Path;
use std::thread;
use std::time::Instant;

use crate::check::{self, Check};
use crate::error::{At, Cause, Error, Result, Step};
use crate::files;
use crate::fit;
use crate::loops::{self, Attached};
use crate::mount::{self, Mounted};
use crate::store::Store;
use crate::template::Kind;
use crate::volume::{ATTACH_WAIT, LOCK_POLL, Volume};

impl Store {
    /// Makes the volume of files `id`. An existing one is never touched. It survives a power loss after [`Volume::sync`].
    pub fn create_data(&self, id: &str, size_gib: u32) -> Result<Volume> {
        self.create(Kind::Data, id, size_gib).map(|(volume, _)| volume)
    }

    /// The volume of files `id`, if there is one.
    pub fn data(&self, id: &str) -> Result<Option<Volume>> {
        self.find(Kind::Data, id)
    }

    /// The ids of all volumes of files, sorted.
    pub fn list_data(&self) -> Result<Vec<String>> {
        self.ids(Kind::Data)
    }

    /// Removes the volume of files `id`, for good when this returns; removing what is not there is fine.
    pub fn remove_data(&self, id: &str) -> Result<()> {
        self.remove(Kind::Data, id)?;
        self.places
            .iter()
            .map(|place| place.directory(Kind::Data))
            .try_for_each(|directory| files::sync_dir(directory).at(Step::RemoveVolume, directory))
    }
}

/// A volume of files that is attached for a box. Keep it until the box has mounted it.
#[derive(Debug)]
pub struct AttachedData {
    attached: Attached,
    /// So that the kernel's one file system on the device is read-only from here on.
    _readonly: Option<Mounted>,
}

impl AttachedData {
    /// The block device.
    pub fn device(&self) -> &Path {
        &self.attached.device
    }
}

impl Volume {
    /// Attaches a volume of files for one box that writes to it, or for one of several that read it. It is checked first if no
    /// box has it, and a growth that was cut short is completed. Waits for the previous users to go.
    pub fn attach_data(&self, readonly: bool) -> Result<AttachedData> {
        if !readonly {
            self.check(Check::IfMarked)?;
            return Ok(AttachedData { attached: self.attach()?, _readonly: None });
        }
        let path = self.path();
        let deadline = Instant::now() + ATTACH_WAIT;
        let file = OpenOptions::new().read(true).write(true).open(path).at(Step::LockVolume, path)?;
        let metadata = file.metadata().at(Step::LockVolume, path)?;
        loop {
            let found = match files::try_lock(&file).at(Step::LockVolume, path)? {
                true => {
                    check::check(&file, path, Check::IfMarked)?;
                    fit::fill(&file, path)?;
                    Some(self.attach_locked(&file)?)
                }
                false => loops::find(&metadata).at(Step::AttachLoop, path)?,
            };
            if let Some(attached) = found {
                match mount::ext4_readonly(&attached.device) {
                    Ok(mounted) => return Ok(AttachedData { attached, _readonly: Some(mounted) }),
                    // The file system of a box that wrote to it and has just ended is still being unmounted.
                    Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                    Err(error) => return Err(error).at(Step::AttachLoop, path),
                }
            }
            if Instant::now() >= deadline {
                return Err(Error::new(Step::LockVolume, path.display().to_string(), Cause::InUse));
            }
            thread::sleep(LOCK_POLL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn a_volume_of_files_is_no_disk_of_a_box() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.create_data("a", 1).unwrap().sync().unwrap();
        assert_eq!(store.create_data("a", 1).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(store.create_data("../a", 1).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert!(store.volume("a").unwrap().is_none() && store.list().unwrap().is_empty());
        assert_eq!(store.list_data().unwrap(), ["a"]);
        store.create_volume("a", 1).unwrap();
        store.remove_data("a").unwrap();
        store.remove_data("a").unwrap();
        assert!(store.data("a").unwrap().is_none() && store.volume("a").unwrap().is_some());
    }
}
