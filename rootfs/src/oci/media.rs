//! Media types: OCI's and those that Docker used before and still sends.

use oci_spec::image::MediaType;

/// The kind of a document or layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A list of manifests, one per platform.
    Index,
    /// The manifest of one image.
    Manifest,
    /// The configuration of an image.
    Config,
    /// A layer: a tar archive, possibly compressed.
    Layer,
    /// Anything else: signatures, charts, attestations, layers that must not be distributed.
    Other,
}

/// Types of manifests that a registry is asked for.
pub const ACCEPTED_MANIFESTS: [&str; 4] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// The kind that a media type names.
#[must_use]
pub fn kind(media_type: &MediaType) -> Kind {
    kind_of(media_type.as_ref())
}

/// [`kind`] of a media type's text; parameters are ignored.
#[must_use]
pub fn kind_of(media_type: &str) -> Kind {
    match media_type.split(';').next().unwrap_or_default().trim() {
        "application/vnd.oci.image.index.v1+json" | "application/vnd.docker.distribution.manifest.list.v2+json" => {
            Kind::Index
        }
        "application/vnd.oci.image.manifest.v1+json" | "application/vnd.docker.distribution.manifest.v2+json" => {
            Kind::Manifest
        }
        "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json" => Kind::Config,
        "application/vnd.oci.image.layer.v1.tar"
        | "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Kind::Layer,
        _ => Kind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_are_known() {
        assert_eq!(kind(&MediaType::ImageManifest), Kind::Manifest);
        assert_eq!(kind(&MediaType::ImageIndex), Kind::Index);
        assert_eq!(kind(&MediaType::ImageConfig), Kind::Config);
        for layer in [MediaType::ImageLayer, MediaType::ImageLayerGzip, MediaType::ImageLayerZstd] {
            assert_eq!(kind(&layer), Kind::Layer);
        }
        assert_eq!(kind_of("application/vnd.docker.distribution.manifest.v2+json; charset=utf-8"), Kind::Manifest);
        assert_eq!(kind_of("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"), Kind::Other);
        assert_eq!(kind_of("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"), Kind::Other);
        assert!(ACCEPTED_MANIFESTS.iter().all(|media| matches!(kind_of(media), Kind::Index | Kind::Manifest)));
    }
}
