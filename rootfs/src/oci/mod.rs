//! Images as others write them: names, media types, layouts and archives.

pub(crate) mod docker_archive;
pub(crate) mod files;
pub(crate) mod layout;
pub mod media;
mod reference;

pub use layout::{Platform, Unsuitable, check_document, choose_manifest, parts_of};
pub use reference::Reference;
pub(crate) use reference::known_digest;

use oci_spec::image::Digest;

/// Largest document (manifest, index, configuration) that is read. Registries have 4 MiB.
pub const DOCUMENT_BYTES_MAX: u64 = 4 << 20;
/// Most layers of an image. Icebox adds two, and overlayfs before Linux 6.5 takes the names of all in one text of 255 bytes.
pub const LAYERS_MAX: usize = 100;

/// An image in a layout or archive.
#[derive(Debug)]
pub(crate) struct Found {
    /// The names that it has there: complete ones, or tags.
    pub(crate) names: Vec<String>,
    /// The configuration, as its bytes.
    pub(crate) config: Vec<u8>,
    pub(crate) layers: Vec<FoundLayer>,
}

/// A layer of an image in a layout or archive, the lowest first.
#[derive(Debug)]
pub(crate) struct FoundLayer {
    /// Name of its file.
    pub(crate) file: String,
    /// Digest and size that the manifest claims.
    pub(crate) claimed: Option<(Digest, u64)>,
}
