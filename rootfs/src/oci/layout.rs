//! OCI image layouts: `oci-layout`, `index.json`, and blobs by their digests.

use std::fmt;

use oci_spec::image::{Arch, Descriptor, Digest, ImageIndex, ImageManifest, Os};
use sha2::{Digest as _, Sha256};

use super::files::Files;
use super::media::{Kind, kind};
use super::{DOCUMENT_BYTES_MAX, Found, FoundLayer, known_digest};
use crate::digest::hex;
use crate::unpack::Fault;

/// Indexes in indexes.
const NESTING_MAX: usize = 3;
/// Images of one layout.
const IMAGES_MAX: usize = 256;
/// Annotations with a name: containerd's has it whole, OCI's may be a tag.
const NAME_ANNOTATIONS: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// The platform that images are chosen for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// The architecture.
    pub arch: Arch,
}

impl Platform {
    /// The platform of this machine.
    #[must_use]
    pub fn host() -> Self {
        let arch = match std::env::consts::ARCH {
            "aarch64" => Arch::ARM64,
            _ => Arch::Amd64,
        };
        Self { arch }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "linux/{}", self.arch)
    }
}

/// Why a document of an image cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsuitable(String);

impl From<Unsuitable> for Fault {
    fn from(why: Unsuitable) -> Self {
        Self::refused(why.0)
    }
}

impl fmt::Display for Unsuitable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The entry of an index for this platform. Entries without a platform suit all.
///
/// # Errors
/// None suits; the text names the platforms that there are.
pub fn choose_manifest<'i>(index: &'i ImageIndex, platform: &Platform) -> Result<&'i Descriptor, Unsuitable> {
    let images =
        || index.manifests().iter().filter(|entry| matches!(kind(entry.media_type()), Kind::Manifest | Kind::Index));
    let exact = images().find(|entry| {
        entry.platform().as_ref().is_some_and(|its| *its.architecture() == platform.arch && *its.os() == Os::Linux)
    });
    exact.or_else(|| images().find(|entry| entry.platform().is_none())).ok_or_else(|| {
        let there: Vec<String> = images()
            .filter_map(|entry| entry.platform().as_ref())
            .map(|its| format!("{}/{}", its.os(), its.architecture()))
            .filter(|name| name != "unknown/unknown")
            .collect();
        let there = if there.is_empty() { "no image at all".to_owned() } else { there.join(", ") };
        Unsuitable(format!("it has nothing for {platform}; it has {there}"))
    })
}

/// The path of a blob in a layout.
pub(crate) fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.digest())
}

/// The images of a layout that suit this machine.
pub(crate) fn images(files: &dyn Files) -> Result<Vec<Found>, Fault> {
    let index = files.read("index.json", DOCUMENT_BYTES_MAX).map_err(Fault::reading)?;
    let index = index.ok_or_else(|| Fault::refused("it has no index.json"))?;
    let index: ImageIndex = parse("index.json", &index)?;
    if index.manifests().len() > IMAGES_MAX {
        return Err(Fault::refused(format!("its index.json has more than {IMAGES_MAX} entries")));
    }
    let platform = Platform::host();
    let mut found = Vec::new();
    // Without names, the entries are one image for several platforms.
    let named = index.manifests().iter().any(|entry| name_of(entry).is_some());
    if !named && index.manifests().len() > 1 {
        let entry = choose_manifest(&index, &platform)?;
        found.push(image(files, entry, &platform)?);
        return Ok(found);
    }
    let mut unsuitable = None;
    for entry in index.manifests() {
        let foreign =
            entry.platform().as_ref().is_some_and(|its| *its.architecture() != platform.arch || *its.os() != Os::Linux);
        if foreign {
            let its = entry.platform().as_ref().map(|its| format!("{}/{}", its.os(), its.architecture()));
            unsuitable = Some(format!("it has {}, and this machine is {platform}", its.unwrap_or_default()));
            continue;
        }
        if matches!(kind(entry.media_type()), Kind::Manifest | Kind::Index) {
            found.push(image(files, entry, &platform)?);
        }
    }
    if found.is_empty() {
        return Err(Fault::refused(unsuitable.unwrap_or_else(|| "its index.json names no image".to_owned())));
    }
    Ok(found)
}

fn name_of(entry: &Descriptor) -> Option<String> {
    let annotations = entry.annotations().as_ref()?;
    NAME_ANNOTATIONS.iter().find_map(|key| annotations.get(*key)).cloned()
}

fn image(files: &dyn Files, entry: &Descriptor, platform: &Platform) -> Result<Found, Fault> {
    let names = name_of(entry).into_iter().collect();
    let mut entry = entry.clone();
    for _ in 0..NESTING_MAX {
        let bytes = document(files, &entry)?;
        if kind(entry.media_type()) == Kind::Index {
            let index: ImageIndex = parse("an index", &bytes)?;
            entry = choose_manifest(&index, platform)?.clone();
            continue;
        }
        let manifest: ImageManifest = parse("a manifest", &bytes)?;
        let (config, layers) = parts_of(&manifest)?;
        let config = document(files, config)?;
        let layers = layers
            .iter()
            .map(|layer| FoundLayer {
                file: blob_path(layer.digest()),
                claimed: Some((layer.digest().clone(), layer.size())),
            })
            .collect();
        return Ok(Found { names, config, layers });
    }
    Err(Fault::refused(format!("its indexes are nested more than {NESTING_MAX} deep")))
}

/// Configuration and layers of a manifest that describes an image of a root file system.
///
/// # Errors
/// It describes something else, or has digests that this crate can't compute.
pub fn parts_of(manifest: &ImageManifest) -> Result<(&Descriptor, &[Descriptor]), Unsuitable> {
    let config = manifest.config();
    if kind(config.media_type()) != Kind::Config {
        return Err(Unsuitable(format!("it is no image of a root file system: its config is {}", config.media_type())));
    }
    if let Some(odd) = manifest.layers().iter().find(|layer| kind(layer.media_type()) != Kind::Layer) {
        return Err(Unsuitable(format!("it has a layer of the type {}", odd.media_type())));
    }
    if let Some(odd) = manifest.layers().iter().map(Descriptor::digest).find(|digest| !known_digest(digest)) {
        return Err(Unsuitable(format!("the digest {odd} is not SHA-256")));
    }
    Ok((config, manifest.layers()))
}

/// A document by its descriptor, checked against it.
fn document(files: &dyn Files, descriptor: &Descriptor) -> Result<Vec<u8>, Fault> {
    let path = blob_path(descriptor.digest());
    let bytes = files.read(&path, DOCUMENT_BYTES_MAX).map_err(Fault::reading)?;
    let bytes = bytes.ok_or_else(|| Fault::refused(format!("it has no blob {}", descriptor.digest())))?;
    check_document(descriptor, &bytes)?;
    Ok(bytes)
}

/// Compares a document with its descriptor.
///
/// # Errors
/// It is another one.
pub fn check_document(descriptor: &Descriptor, bytes: &[u8]) -> Result<(), Unsuitable> {
    let digest = descriptor.digest();
    if !known_digest(digest) {
        return Err(Unsuitable(format!("the digest {digest} is not SHA-256")));
    }
    let found = hex(&Sha256::digest(bytes));
    if found != digest.digest() || bytes.len() as u64 != descriptor.size() {
        let (size, claimed) = (bytes.len(), descriptor.size());
        return Err(Unsuitable(format!(
            "the blob {digest} of {claimed} bytes is not what it claims: it is sha256:{found} of {size} bytes"
        )));
    }
    Ok(())
}

/// JSON of a document.
pub(crate) fn parse<T: serde::de::DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, Fault> {
    serde_json::from_slice(bytes).map_err(|error| Fault::refused(format!("{what} is malformed: {error}")))
}
