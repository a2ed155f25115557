//! Images.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::images::Listed;

/// An image of this host.
#[derive(Debug, Serialize, ToSchema)]
pub struct ImageFacts {
    /// `sha256:` and the digest of its configuration; the name of its directory for a base image.
    pub id: String,
    /// Its names.
    pub names: Vec<String>,
    /// Bytes of all files in its layers.
    pub size_bytes: u64,
    /// Unix milliseconds when it was stored.
    pub stored_at: u64,
    /// Number of layers.
    pub layers: usize,
    /// Where it came from; for the operator only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// It is a base image, made for boxes.
    pub base: bool,
    /// Boxes of this daemon that use it.
    pub boxes: usize,
}

/// An image with its configuration.
#[derive(Debug, Serialize, ToSchema)]
pub struct ImageDetails {
    /// The image.
    #[serde(flatten)]
    pub facts: ImageFacts,
    /// Digests of the archives of its layers, the lowest first.
    pub diff_ids: Vec<String>,
    /// Its configuration, as it came; null for a base image.
    pub config: Value,
    /// What was left out when its layers were unpacked.
    pub warnings: Vec<String>,
}

/// A record of the stream that an import, pull or push answers with: one JSON object per line.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum ImageProgress {
    /// A part of the work.
    Work {
        /// The part, for people.
        text: String,
    },
    /// A layer.
    Layer {
        /// Its number, from 1.
        layer: usize,
        /// Layers of the image.
        #[serde(skip_serializing_if = "Option::is_none")]
        layers: Option<usize>,
        /// Bytes of its blob so far.
        done: u64,
        /// Bytes of its blob.
        #[serde(skip_serializing_if = "Option::is_none")]
        total: Option<u64>,
        /// It was there already.
        known: bool,
    },
    /// Bytes of a layer that have gone over the network, in a pull or push.
    Transfer {
        /// Its number, from 1.
        layer: usize,
        /// Layers of the image.
        #[serde(skip_serializing_if = "Option::is_none")]
        layers: Option<usize>,
        /// Bytes so far.
        done: u64,
        /// All its bytes.
        #[serde(skip_serializing_if = "Option::is_none")]
        total: Option<u64>,
        /// The registry has it already.
        known: bool,
    },
    /// An image is in a registry.
    Pushed {
        /// Its name there.
        name: String,
        /// The digest of its manifest.
        digest: String,
        /// It has another id there: a layer's archive could not be made again as it was.
        changed: bool,
    },
    /// An image is stored.
    Image {
        /// The image.
        image: ImageFacts,
    },
    /// The work is done. The last record, unless there was an error.
    Done,
    /// The work has failed. The last record.
    Error {
        /// The status that the answer would have had.
        status: u16,
        /// The reason.
        error: String,
    },
}

/// What a removal did.
#[derive(Debug, Serialize, ToSchema)]
pub struct ImagesRemoved {
    /// Names that were taken away.
    pub untagged: Vec<String>,
    /// Ids of removed images.
    pub removed: Vec<String>,
    /// Number of removed layers.
    pub layers: usize,
    /// Bytes of their files.
    pub bytes: u64,
}

/// Another name.
#[derive(Debug, Deserialize, ToSchema)]
pub struct ImageName {
    /// The name.
    pub name: String,
}

impl ImageFacts {
    /// The facts that this caller may see.
    #[must_use]
    pub fn of(listed: Listed, operator: bool) -> Self {
        let base = listed.image.is_base();
        Self {
            names: listed.image.names,
            size_bytes: listed.image.size_bytes,
            stored_at: listed.image.stored_unix * 1000,
            layers: listed.image.diff_ids.len().max(usize::from(base)),
            source: operator.then_some(listed.image.source),
            base,
            boxes: listed.boxes,
            id: listed.image.id,
        }
    }
}
