//! From a name to a configuration and layers: manifests, and indexes for several platforms.

use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Method, StatusCode};
use icebox_rootfs::oci::media::{ACCEPTED_MANIFESTS, Kind, kind_of};
use icebox_rootfs::oci::{
    DOCUMENT_BYTES_MAX, LAYERS_MAX, Platform, Reference, check_document, choose_manifest, parts_of,
};
use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::endpoint::{Access, Endpoint};
use crate::error::{Cause, refuse};
use crate::exchange::Payload;

/// Indexes in indexes.
const NESTING_MAX: usize = 3;
/// Largest sum of the layers as they are sent.
const IMAGE_BYTES_MAX: u64 = 128 << 30;
/// The header by which a registry tells the digest of what it sends.
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// What an image consists of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

/// What tells a manifest from an index.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    #[serde(default)]
    schema_version: u64,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    manifests: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    layers: Option<serde::de::IgnoredAny>,
}

/// Finds the image of this machine's platform.
pub(crate) async fn resolve(place: &Endpoint, reference: &Reference, platform: &Platform) -> Result<Parts, Cause> {
    let mut wanted = reference.tag_or_digest().to_owned();
    let mut known: Option<Descriptor> = None;
    for _ in 0..=NESTING_MAX {
        let (text, media) = get(place, &wanted).await?;
        match &known {
            Some(descriptor) => check_document(descriptor, &text).map_err(|why| Cause::Refused(why.to_string()))?,
            None if reference.digest().is_some() => check_digest(&wanted, &text)?,
            None => {}
        }
        if kind(&text, &media)? == Kind::Manifest {
            let manifest: ImageManifest = parse("the manifest", &text)?;
            return parts(&manifest);
        }
        let index: ImageIndex = parse("the index", &text)?;
        let entry = choose_manifest(&index, platform).map_err(|why| Cause::Refused(why.to_string()))?;
        wanted = entry.digest().to_string();
        known = Some(entry.clone());
    }
    refuse!("its indexes are nested more than {NESTING_MAX} deep")
}

async fn get(place: &Endpoint, wanted: &str) -> Result<(Vec<u8>, String), Cause> {
    let accepted = ACCEPTED_MANIFESTS.map(|media| (header::ACCEPT, HeaderValue::from_static(media)));
    let what = format!("manifests/{wanted}");
    let deadline = place.dialer().timing.answer;
    let mut attempt = 1;
    loop {
        let answer = place.ask(Method::GET, &what, &accepted, Payload::Empty, Access::Pull).await?;
        let answer = answer.expect(&[StatusCode::OK], deadline).await?;
        let media = answer.header(header::CONTENT_TYPE).unwrap_or_default().to_owned();
        let claimed = answer.headers.get(CONTENT_DIGEST).and_then(|value| value.to_str().ok()).map(str::to_owned);
        match answer.document(DOCUMENT_BYTES_MAX, deadline).await {
            Ok(text) => {
                if let Some(claimed) = claimed.filter(|claimed| claimed.starts_with("sha256:")) {
                    check_digest(&claimed, &text)?;
                }
                return Ok((text, media));
            }
            Err(Cause::Unavailable(why)) => place.pause(&mut attempt, Cause::Unavailable(why), None).await?,
            Err(other) => return Err(other),
        }
    }
}

fn check_digest(claimed: &str, text: &[u8]) -> Result<(), Cause> {
    let found = format!("sha256:{:x}", Sha256::digest(text));
    if found != claimed {
        refuse!("the manifest is not the one that was asked for: it is {found}, not {}", crate::error::shown(claimed));
    }
    Ok(())
}

/// What a document is. Its own word counts more than the header's, which servers get wrong; a document that reads as both
/// is neither.
fn kind(text: &[u8], header: &str) -> Result<Kind, Cause> {
    // A list would be read as the fields of a structure, in order.
    if text.trim_ascii_start().first() != Some(&b'{') {
        refuse!("the manifest is malformed: it is no JSON object");
    }
    let shape: Shape = parse("the manifest", text)?;
    if shape.schema_version == 1 {
        refuse!(
            "its manifest is of Docker's old form (schema 1), which names no content; push the image again with a tool of today"
        );
    }
    if shape.manifests.is_some() && shape.layers.is_some() {
        refuse!("its manifest is an index as well");
    }
    let told = kind_of(shape.media_type.as_deref().unwrap_or(header));
    match (told, &shape.manifests, &shape.layers) {
        (Kind::Index, Some(_), _) => Ok(Kind::Index),
        (Kind::Manifest, None, _) => Ok(Kind::Manifest),
        // Old documents of OCI have no type of their own, and some servers send a general one.
        (Kind::Other, Some(_), _) if shape.media_type.is_none() => Ok(Kind::Index),
        (Kind::Other, None, Some(_)) if shape.media_type.is_none() => Ok(Kind::Manifest),
        _ => refuse!(
            "it is no image: it has the type '{}'",
            crate::error::shown(shape.media_type.as_deref().unwrap_or(header))
        ),
    }
}

fn parts(manifest: &ImageManifest) -> Result<Parts, Cause> {
    let (config, layers) = parts_of(manifest).map_err(|why| Cause::Refused(why.to_string()))?;
    if layers.len() > LAYERS_MAX {
        refuse!("it has {} layers; at most {LAYERS_MAX} are allowed", layers.len());
    }
    if config.size() > DOCUMENT_BYTES_MAX {
        refuse!("its configuration has {} bytes; at most {DOCUMENT_BYTES_MAX} are allowed", config.size());
    }
    let sum = layers.iter().try_fold(0_u64, |sum, layer| sum.checked_add(layer.size()));
    if sum.is_none_or(|sum| sum > IMAGE_BYTES_MAX) {
        refuse!("its layers have more than {IMAGE_BYTES_MAX} bytes");
    }
    Ok(Parts { config: config.clone(), layers: layers.to_vec() })
}

fn parse<T: serde::de::DeserializeOwned>(what: &str, text: &[u8]) -> Result<T, Cause> {
    serde_json::from_slice(text).map_err(|cause| Cause::Refused(format!("{what} is malformed: {cause}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_one_thing() {
        let index = "application/vnd.oci.image.index.v1+json";
        let manifest = "application/vnd.oci.image.manifest.v1+json";
        let list = "application/vnd.docker.distribution.manifest.list.v2+json";
        let of = |text: &str, header: &str| kind(text.as_bytes(), header).ok();
        assert_eq!(of(r#"{"schemaVersion":2,"layers":[]}"#, manifest), Some(Kind::Manifest));
        assert_eq!(of(r#"{"schemaVersion":2,"manifests":[]}"#, index), Some(Kind::Index));
        assert_eq!(
            of(&format!(r#"{{"schemaVersion":2,"mediaType":"{list}","manifests":[]}}"#), "text/plain"),
            Some(Kind::Index)
        );
        assert_eq!(of(r#"{"schemaVersion":2,"manifests":[]}"#, "application/octet-stream"), Some(Kind::Index));
        assert_eq!(of(r#"{"schemaVersion":2,"layers":[]}"#, ""), Some(Kind::Manifest));
        for (text, header) in [
            (r#"{"schemaVersion":1,"layers":[]}"#, manifest),
            (r#"{"schemaVersion":2,"layers":[],"manifests":[]}"#, manifest),
            (r#"{"schemaVersion":2,"manifests":[]}"#, manifest),
            (r#"{"schemaVersion":2}"#, index),
            (r#"{"schemaVersion":2,"mediaType":"application/vnd.x","layers":[]}"#, manifest),
            ("[]", manifest),
            ("{", manifest),
        ] {
            assert_eq!(of(text, header), None, "{text}");
        }
    }
}
