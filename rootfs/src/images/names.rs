//! Names of images: `refs.json`.

use std::collections::BTreeMap;

use super::facts;
use super::lock::Lock;
use super::place::Images;
use crate::error::{At, Cause, Error, Result, Step};
use crate::files;
use crate::oci::Reference;

const FILE: &str = "refs.json";

/// Ids by complete names.
pub(super) type Names = BTreeMap<String, String>;

impl Images {
    pub(super) fn names(&self) -> Result<Names> {
        Ok(facts::read_json(&self.dir.join(FILE))?.unwrap_or_default())
    }

    /// Replaces all names. The lock is held.
    pub(super) fn set_names(&self, names: &Names, _lock: &Lock) -> Result<()> {
        let path = self.dir.join(FILE);
        files::write_atomic(&self.dir, FILE, &facts::json(&path, names)?, 0o644).at(Step::StoreImage, &path)
    }

    /// Gives an image another name; the name leaves the image that had it.
    pub fn tag(&self, id: &str, name: &Reference) -> Result<()> {
        let lock = self.lock()?;
        if !self.manifest_path(id).exists() {
            let why = "there is no such image here".to_owned();
            return Err(Error::new(Step::StoreImage, id, Cause::NotFound(why)));
        }
        let mut names = self.names()?;
        names.insert(name.to_string(), id.to_owned());
        self.set_names(&names, &lock)
    }
}
