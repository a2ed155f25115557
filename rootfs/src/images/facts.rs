//! The documents of the store.

use std::fs;
use std::io;
use std::path::Path;

use oci_spec::image::ImageConfiguration;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{At, Cause, Error, Result, Step};
use crate::image::BaseImage;

/// An image: `manifests/<id>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// `sha256:` and the digest of the configuration, as Docker counts; the directory's name for a base image.
    pub id: String,
    /// The configuration, byte for byte; empty for a base image.
    pub config: String,
    /// The layers by the digests of their archives, the lowest first; none for a base image.
    pub diff_ids: Vec<String>,
    /// What the layers were as blobs when they came, where that is known; parallel to `diff_ids`.
    pub blobs: Vec<Option<BlobFacts>>,
    /// Seconds since 1970 when it was stored.
    pub stored_unix: u64,
    /// Bytes of all files in its layers.
    pub size_bytes: u64,
    /// Where it came from, for people.
    pub source: String,
    /// Its names.
    #[serde(skip)]
    pub names: Vec<String>,
}

/// A blob in a registry or layout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobFacts {
    /// Its digest.
    pub digest: String,
    /// Its bytes.
    pub size: u64,
    /// The repository that it was pulled from, as `registry/repository`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
}

/// A layer: `layer.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerFacts {
    /// `sha256:` and the digest of its archive.
    pub diff_id: String,
    /// Entries of the archive.
    pub entries: u64,
    /// Bytes of its files.
    pub bytes: u64,
    /// It hides everything below it.
    pub opaque_root: bool,
    /// Directories that the archive does not list: their attributes come from the layers below.
    pub implied: Vec<String>,
    /// What was left out, for people.
    pub warnings: Vec<String>,
    /// Its archive can be made again, byte for byte.
    pub exact: bool,
}

impl Image {
    pub(super) fn of_base(base: &BaseImage) -> Self {
        Self {
            id: base.id(),
            config: String::new(),
            diff_ids: Vec::new(),
            blobs: Vec::new(),
            stored_unix: base.manifest.created_unix,
            size_bytes: base.manifest.size_bytes,
            source: format!("debootstrap:{} (the base image)", base.manifest.suite),
            names: Vec::new(),
        }
    }

    /// It is a base image: one directory without a configuration, made for boxes.
    #[must_use]
    pub fn is_base(&self) -> bool {
        self.config.is_empty()
    }

    /// The configuration, read; `None` for a base image.
    pub fn configuration(&self) -> Result<Option<ImageConfiguration>> {
        if self.is_base() {
            return Ok(None);
        }
        let read = serde_json::from_str(&self.config);
        read.map(Some).map_err(|error| Error::new(Step::FindImage, self.id.clone(), Cause::Json(error)))
    }

    /// The variables of its configuration; without a name or with a NUL they are left out.
    pub fn env(&self) -> Result<Vec<(String, String)>> {
        let configuration = self.configuration()?;
        let config = configuration.as_ref().and_then(|configuration| configuration.config().as_ref());
        let env = config.and_then(|config| config.env().as_ref());
        Ok(env
            .into_iter()
            .flatten()
            .filter_map(|pair| pair.split_once('='))
            .filter(|(name, value)| !name.is_empty() && !name.contains('\0') && !value.contains('\0'))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect())
    }
}

/// Reads a document of the store; `None` if it is not there.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let text = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.at(Step::FindImage, path)?,
    };
    let read = serde_json::from_slice(&text);
    read.map(Some).map_err(|error| Error::new(Step::FindImage, path.display().to_string(), Cause::Json(error)))
}

/// Text of a document of the store.
pub(super) fn json(path: &Path, value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(value)
        .map_err(|error| Error::new(Step::StoreImage, path.display().to_string(), Cause::Json(error)))
}
