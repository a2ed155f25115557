//! Removing images, and the layers that none needs any more. An image that a box uses stays.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

use sha2::{Digest, Sha256};

use super::facts::Image;
use super::lock::Lock;
use super::place::{self, ADAPTED, Images, PINS};
use crate::digest::hex;
use crate::error::{At, Cause, Error, Result, Step};
use crate::files;
use crate::image;
use crate::oci::Reference;

/// The file in a directory of pins that names their owner.
pub(super) const OWNER: &str = "owner";

/// What a removal did.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Pruned {
    /// Names that were taken away.
    pub untagged: Vec<String>,
    /// Ids of removed images.
    pub images: Vec<String>,
    /// Number of removed layers.
    pub layers: usize,
    /// Bytes of their files.
    pub bytes: u64,
}

impl Images {
    /// Notes that boxes of `owner` (a data directory) use an image. It cannot be removed until [`Images::set_pins`].
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`] if the image is gone.
    pub fn pin(&self, owner: &Path, id: &str) -> Result<()> {
        let _lock = self.lock()?;
        if self.by_id(id)?.is_none() {
            let why = "there is no such image here any more".to_owned();
            return Err(Error::new(Step::FindImage, id, Cause::NotFound(why)));
        }
        let dir = self.pins_of(owner);
        let path = dir.join(id);
        if path.exists() {
            return Ok(());
        }
        files::make_dirs(&dir, 0o755).at(Step::StoreImage, &dir)?;
        if !dir.join(OWNER).exists() {
            let text = owner.as_os_str().as_encoded_bytes();
            files::write_atomic(&dir, OWNER, text, 0o644).at(Step::StoreImage, &dir)?;
        }
        files::write_atomic(&dir, id, b"", 0o644).at(Step::StoreImage, &path)
    }

    /// Sets the images that boxes of `owner` use to exactly these.
    pub fn set_pins(&self, owner: &Path, ids: &BTreeSet<String>) -> Result<()> {
        for id in ids {
            // An image that is missing is missed when its box starts.
            match self.pin(owner, id) {
                Err(error) if error.kind() == crate::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        let _lock = self.lock()?;
        self.forget_owners()?;
        let dir = self.pins_of(owner);
        if !dir.is_dir() {
            return Ok(());
        }
        for entry in fs::read_dir(&dir).at(Step::StoreImage, &dir)? {
            let name = entry.at(Step::StoreImage, &dir)?.file_name();
            let stays = name == OWNER || name.to_str().is_some_and(|id| ids.contains(id));
            if !stays {
                let path = dir.join(name);
                fs::remove_file(&path).at(Step::StoreImage, &path)?;
            }
        }
        Ok(())
    }

    /// Removes the pins of data directories that are gone. A crash before the owner is written leaves a directory without
    /// pins, which goes too. The lock is held.
    fn forget_owners(&self) -> Result<()> {
        for pins in self.pin_dirs()? {
            let owner = match fs::read(pins.join(OWNER)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                read => Some(read.at(Step::StoreImage, &pins)?),
            };
            if !owner.is_some_and(|owner| Path::new(OsStr::from_bytes(&owner)).is_dir()) {
                place::remove(&pins).at(Step::StoreImage, &pins)?;
            }
        }
        Ok(())
    }

    /// The directory of each owner's pins.
    pub(super) fn pin_dirs(&self) -> Result<Vec<PathBuf>> {
        let dir = self.dir.join(PINS);
        match fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            entries => {
                entries.at(Step::FindImage, &dir)?.map(|entry| Ok(entry.at(Step::FindImage, &dir)?.path())).collect()
            }
        }
    }

    fn pins_of(&self, owner: &Path) -> PathBuf {
        let hash = Sha256::digest(owner.as_os_str().as_encoded_bytes());
        self.dir.join(PINS).join(&hex(&hash)[..16])
    }

    /// The data directories whose boxes use an image. One that is gone has no boxes.
    pub fn pinned_by(&self, id: &str) -> Result<Vec<String>> {
        let mut owners = Vec::new();
        for pins in self.pin_dirs()? {
            if pins.join(id).exists() {
                let owner = fs::read(pins.join(OWNER)).at(Step::FindImage, &pins)?;
                let owner = Path::new(OsStr::from_bytes(&owner));
                if owner.is_dir() {
                    owners.push(owner.display().to_string());
                }
            }
        }
        Ok(owners)
    }

    /// Removes what the text names: one name of an image that has others, or else the image, with the layers that no
    /// other image has. An image by its id goes with all its names.
    ///
    /// # Errors
    /// [`crate::ErrorKind::InUse`] if boxes use it; [`crate::ErrorKind::NotFound`].
    pub fn remove(&self, text: &str) -> Result<Pruned> {
        let image = self.find(text)?;
        let lock = self.lock()?;
        let mut names = self.names()?;
        let mut removed = Pruned::default();
        if let Ok(name) = text.parse::<Reference>()
            && names.get(&name.to_string()) == Some(&image.id)
        {
            names.remove(&name.to_string());
            if names.values().any(|id| *id == image.id) {
                self.set_names(&names, &lock)?;
                removed.untagged.push(name.to_string());
                return Ok(removed);
            }
        }
        self.check_unused(&image)?;
        removed.untagged = image.names.clone();
        names.retain(|_, id| *id != image.id);
        self.set_names(&names, &lock)?;
        self.remove_image(&image)?;
        removed.images.push(image.id.clone());
        self.remove_layers(&lock, &mut removed)?;
        Ok(removed)
    }

    /// Removes what imports and builds that have ended in their middle have left. Returns the number of directories.
    pub fn sweep_unfinished(&self) -> Result<usize> {
        let lock = self.lock()?;
        self.sweep(&lock)
    }

    /// Removes all images without a name that no box uses (`all`: those with names too; base images stay), and layers
    /// that no image has.
    pub fn prune(&self, all: bool) -> Result<Pruned> {
        let lock = self.lock()?;
        self.sweep(&lock)?;
        let mut names = self.names()?;
        let mut pruned = Pruned::default();
        for id in self.ids()? {
            let Some(image) = self.load(&id, &names)? else { continue };
            if (!all && !image.names.is_empty()) || !self.pinned_by(&id)?.is_empty() {
                continue;
            }
            names.retain(|_, target| *target != id);
            self.set_names(&names, &lock)?;
            self.remove_image(&image)?;
            pruned.untagged.extend(image.names);
            pruned.images.push(id);
        }
        self.remove_layers(&lock, &mut pruned)?;
        Ok(pruned)
    }

    fn check_unused(&self, image: &Image) -> Result<()> {
        let owners = self.pinned_by(&image.id)?;
        if owners.is_empty() {
            return Ok(());
        }
        let why = format!("boxes use it (data directory {}); delete them first", owners.join(", "));
        Err(Error::new(Step::RemoveImage, image.id.clone(), Cause::ImageInUse(why)))
    }

    /// Removes the image itself. Its names are gone already.
    fn remove_image(&self, image: &Image) -> Result<()> {
        if image.is_base() {
            return image::remove(&self.dir, &image.id);
        }
        let path = self.manifest_path(&image.id);
        fs::remove_file(&path).at(Step::RemoveImage, &path)?;
        let manifests = self.dir.join(place::MANIFESTS);
        files::sync_dir(&manifests).at(Step::RemoveImage, &manifests)?;
        self.remove_adapted(&image.id)
    }

    /// Removes the layers that turned the image into roots of boxes.
    fn remove_adapted(&self, id: &str) -> Result<()> {
        let dir = self.dir.join(ADAPTED);
        if !dir.is_dir() {
            return Ok(());
        }
        let hex = id.strip_prefix(place::ID_PREFIX).unwrap_or(id);
        for entry in fs::read_dir(&dir).at(Step::RemoveImage, &dir)? {
            let entry = entry.at(Step::RemoveImage, &dir)?;
            if entry.file_name().to_string_lossy().starts_with(hex) {
                place::remove(&entry.path()).at(Step::RemoveImage, &entry.path())?;
            }
        }
        Ok(())
    }

    /// Mark and sweep: layers that no image and no import under way names go.
    fn remove_layers(&self, lock: &Lock, removed: &mut Pruned) -> Result<()> {
        let dir = self.layers_dir();
        for id in self.unmarked_layers(lock)? {
            if let Some(facts) = self.layer(&id)? {
                removed.bytes += facts.bytes;
            }
            // Its name goes at once: half a layer must never stand under it.
            let (path, gone) = (self.layer_dir(&id), files::temp_path(&dir, "gone"));
            fs::rename(&path, &gone).at(Step::RemoveImage, &path)?;
            place::remove(&gone).at(Step::RemoveImage, &gone)?;
            removed.layers += 1;
        }
        files::sync_dir(&dir).at(Step::RemoveImage, &dir)
    }

    /// Ids of the layers that no image and no import under way names.
    pub(super) fn unmarked_layers(&self, lock: &Lock) -> Result<Vec<String>> {
        let mut marked = self.counted_on(lock)?;
        let names = self.names()?;
        for id in self.ids()? {
            // An image that can't be read must not lose its layers.
            marked.extend(self.load(&id, &names)?.into_iter().flat_map(|image| image.diff_ids));
        }
        let (dir, mut unmarked) = (self.layers_dir(), Vec::new());
        for entry in fs::read_dir(&dir).at(Step::RemoveImage, &dir)? {
            let name = entry.at(Step::RemoveImage, &dir)?.file_name();
            let id = name.to_str().map(|hex| format!("{}{hex}", place::ID_PREFIX));
            unmarked.extend(id.filter(|id| place::is_image_id(id) && !marked.contains(id)));
        }
        Ok(unmarked)
    }
}
