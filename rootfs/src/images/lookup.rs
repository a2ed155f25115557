//! Finding images.

use std::fs;
use std::path::PathBuf;

use super::facts::{self, Image, LayerFacts};
use super::names::Names;
use super::place::{ID_PREFIX, Images, MANIFESTS, is_image_id};
use crate::error::{At, Cause, Error, Result, Step};
use crate::image;
use crate::oci::Reference;

/// Fewest digits of an abbreviated id.
const SHORT_ID_MIN: usize = 6;

impl Images {
    /// All images, by age; base images among them.
    pub fn list(&self) -> Result<Vec<Image>> {
        let names = self.names()?;
        let mut images = Vec::new();
        for id in self.ids()? {
            // Removed between the two looks.
            images.extend(self.load(&id, &names)?);
        }
        for base in image::list(&self.dir)? {
            images.push(Image::of_base(&base));
        }
        images.sort_by(|left, right| (left.stored_unix, &left.id).cmp(&(right.stored_unix, &right.id)));
        Ok(images)
    }

    /// The image that this text names: an id, the first digits of one, a name, or the id of a base image.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`] if there is none, [`crate::ErrorKind::InvalidInput`] if the text is no name, or the
    /// beginning of several ids.
    pub fn find(&self, text: &str) -> Result<Image> {
        let missing = || {
            let why =
                "there is no such image here; see `icebox image ls`, or get it with `icebox image pull` or `icebox image import`".to_owned();
            Error::new(Step::FindImage, text.escape_default().to_string(), Cause::NotFound(why))
        };
        if let Some(image) = self.by_id(text)? {
            return Ok(image);
        }
        let names = self.names()?;
        if let Ok(reference) = text.parse::<Reference>() {
            let by_name = names.get(&reference.to_string());
            if let Some(image) = by_name.map(|id| self.load(id, &names)).transpose()?.flatten() {
                return Ok(image);
            }
        }
        let digits = text.strip_prefix(ID_PREFIX).unwrap_or(text);
        if digits.len() >= SHORT_ID_MIN && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            let ids = self.ids()?;
            let mut matching = ids.iter().filter(|id| id[ID_PREFIX.len()..].starts_with(digits));
            if let Some(id) = matching.next() {
                if matching.next().is_some() {
                    let why = "several images have ids that begin so; give more digits".to_owned();
                    return Err(Error::new(Step::FindImage, text, Cause::Refused(why)));
                }
                return self.load(id, &names)?.ok_or_else(missing);
            }
        }
        text.parse::<Reference>()?;
        Err(missing())
    }

    /// The image with exactly this id, if it is there.
    pub fn by_id(&self, id: &str) -> Result<Option<Image>> {
        if is_image_id(id) {
            return self.load(id, &self.names()?);
        }
        Ok(image::by_id(&self.dir, id)?.map(|base| Image::of_base(&base)))
    }

    /// The unpacked layers of an image, the topmost first, as overlayfs takes them.
    pub fn layer_dirs(&self, image: &Image) -> Result<Vec<PathBuf>> {
        if let Some(base) = image::by_id(&self.dir, &image.id)? {
            return Ok(vec![base.rootfs]);
        }
        let mut dirs = Vec::new();
        for diff_id in image.diff_ids.iter().rev() {
            let dir = self.layer_dir(diff_id).join("diff");
            let facts = self.layer(diff_id)?.ok_or_else(|| self.lost(image, diff_id))?;
            // A layer that comes twice: the lower one adds nothing to the upper one, and overlayfs refuses it.
            if !dirs.contains(&dir) && facts.entries > 0 {
                dirs.push(dir);
            }
            if facts.opaque_root {
                break;
            }
        }
        Ok(dirs)
    }

    /// The facts about a layer, if it is there.
    pub fn layer(&self, diff_id: &str) -> Result<Option<LayerFacts>> {
        let path = self.layer_dir(diff_id).join("layer.json");
        facts::read_json(&path)
    }

    pub(super) fn lost(&self, image: &Image, diff_id: &str) -> Error {
        let why = format!("its layer {diff_id} is missing; import or pull the image again");
        Error::new(Step::FindImage, image.id.clone(), Cause::NotFound(why))
    }

    pub(super) fn load(&self, id: &str, names: &Names) -> Result<Option<Image>> {
        let mut image: Option<Image> = facts::read_json(&self.manifest_path(id))?;
        if let Some(image) = &mut image {
            image.names = names.iter().filter(|(_, target)| *target == id).map(|(name, _)| name.clone()).collect();
        }
        Ok(image)
    }

    /// Ids of all images but base images.
    pub(super) fn ids(&self) -> Result<Vec<String>> {
        let dir = self.dir.join(MANIFESTS);
        let mut ids = Vec::new();
        for entry in fs::read_dir(&dir).at(Step::FindImage, &dir)? {
            let name = entry.at(Step::FindImage, &dir)?.file_name();
            let id = name.to_str().and_then(|name| name.strip_suffix(".json")).map(|hex| format!("{ID_PREFIX}{hex}"));
            ids.extend(id.filter(|id| is_image_id(id)));
        }
        Ok(ids)
    }
}
