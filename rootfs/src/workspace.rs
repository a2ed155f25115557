//! Copies that are attached for a while: to be read as files, or to be filled before a box gets them.
//!
//! What is attached here was written by the kernel's own file system, in a box or in a template, never by a tenant.

use std::fs::File;

use crate::clone::clone_into;
use crate::error::{At, Cause, Error, Result, Step};
use crate::fit::fit;
use crate::loops::Attached;
use crate::snapshot::Copy;
use crate::store::{Store, VOLUME_SIZE_GIB_MAX};
use crate::volume::Volume;

impl Copy {
    /// Attaches it to a free loop device that clears itself after its last user.
    pub fn attach(&self) -> Result<Attached> {
        Volume::new(self.path().to_owned()).attach()
    }

    /// Waits until it is not attached any more: what was written through the device is in it.
    pub fn settle(&self) -> Result<()> {
        Volume::new(self.path().to_owned()).lock_backing().map(drop)
    }
}

impl Store {
    /// An empty disk of `size_gib`, made from the template of `template_gib`, that no box has yet.
    pub fn blank(&self, template_gib: u32, size_gib: u32) -> Result<Copy> {
        if size_gib > VOLUME_SIZE_GIB_MAX {
            let why = Cause::Invalid("a volume has 1 to 1024 GiB");
            return Err(Error::new(Step::CheckSize, format!("{size_gib} GiB"), why));
        }
        let path = self.prepare_template(template_gib)?;
        let template = File::open(&path).at(Step::CloneVolume, &path)?;
        let mut copy = self.unfinished_copy()?;
        copy.method = clone_into(&template, copy.file()).at(Step::CloneVolume, copy.path())?;
        fit(copy.file(), copy.path(), u64::from(size_gib) << 30)?;
        Ok(copy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blank_disk_has_its_own_size_and_goes_when_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let blank = store.blank(1, 2).unwrap();
        let path = blank.path().to_owned();
        assert_eq!(path.metadata().unwrap().len(), 2 << 30);
        blank.settle().unwrap();
        drop(blank);
        assert!(!path.exists());
        assert!(store.blank(0, 1).is_err() && store.blank(1, VOLUME_SIZE_GIB_MAX + 1).is_err());
    }
}
