//! Push: what the registry does not have is uploaded, the manifest last.

use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Method, StatusCode};
use icebox_rootfs::images::{Image, Images, Parcel, Progress};
use icebox_rootfs::oci::Reference;
use oci_spec::image::{Descriptor, MediaType};
use sha2::{Digest as _, Sha256};

use crate::endpoint::{Access, Endpoint, retry_after};
use crate::error::{At as _, Cause, Result, refuse};
use crate::event::{Event, Report, transfer};
use crate::exchange::{Payload, Sent, is_passing, lead};
use crate::settings::Registries;
use crate::thread::blocking;

/// Blobs that are sent at once.
const AT_ONCE_MAX: usize = 2;
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// What a push left in the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// The digest of the manifest.
    pub digest: String,
    /// Layers whose archive could not be made again as it was: the image has another id there.
    pub changed: bool,
}

impl Registries {
    /// Pushes an image of the store to the place that the name tells. Mirrors are not written to.
    pub async fn push(&self, store: &Images, image: &Image, name: &Reference, report: Report) -> Result<Pushed> {
        self.push_by_parts(store, image, name, &report).await.at("push to", name)
    }

    async fn push_by_parts(
        &self,
        store: &Images,
        image: &Image,
        name: &Reference,
        report: &Report,
    ) -> Result<Pushed, Cause> {
        let Some(tag) = name.tag().filter(|_| name.digest().is_none()) else {
            refuse!("a push needs a name with a tag and without a digest");
        };
        let place = self.origin(name);
        let (from, image, told) = (store.clone(), image.clone(), Arc::clone(report));
        let parcel = blocking(move || {
            let mut each = |layer, layers| told(Event::Work(format!("compressing layer {layer} of {layers}")));
            Ok(from.parcel(&image, &mut each)?)
        });
        let parcel = parcel.await?;
        let uploads = uploads(&parcel, report)?;
        futures::stream::iter(uploads)
            .map(|upload| upload.carry_out(&place))
            .buffer_unordered(AT_ONCE_MAX)
            .try_collect::<()>()
            .await?;
        let digest = put_manifest(&place, tag, &parcel.manifest_bytes).await?;
        Ok(Pushed { digest, changed: parcel.changed })
    }
}

/// A blob on its way.
struct Upload {
    blob: Descriptor,
    payload: Payload,
    /// Number of the layer and of all layers, from 1; none for the configuration.
    layer: Option<(usize, usize)>,
    report: Report,
}

fn uploads(parcel: &Parcel, report: &Report) -> Result<Vec<Upload>, Cause> {
    let mut uploads: Vec<Upload> = Vec::new();
    let layers = parcel.manifest.layers();
    for (number, (blob, file)) in layers.iter().zip(&parcel.layers).enumerate() {
        // A layer that comes twice is sent once.
        if uploads.iter().any(|upload| upload.blob.digest() == blob.digest()) {
            continue;
        }
        let file: Arc<File> = Arc::new(file.try_clone()?);
        let layer = (number + 1, layers.len());
        let sent = Sent::new(transfer(report, layer, blob.size()));
        let payload = Payload::File(file, blob.size(), sent);
        uploads.push(Upload { blob: blob.clone(), payload, layer: Some(layer), report: Arc::clone(report) });
    }
    let payload = Payload::Bytes(Bytes::from(parcel.config_bytes.clone()));
    let blob = parcel.manifest.config().clone();
    uploads.push(Upload { blob, payload, layer: None, report: Arc::clone(report) });
    Ok(uploads)
}

impl Upload {
    async fn carry_out(self, place: &Endpoint) -> Result<(), Cause> {
        let deadline = place.dialer().timing.answer;
        let digest = self.blob.digest().to_string();
        let there = place.ask(Method::HEAD, &format!("blobs/{digest}"), &[], Payload::Empty, Access::Push).await?;
        match there.status {
            StatusCode::OK => {
                if let Some((layer, layers)) = self.layer {
                    let (done, layers, total) = (self.blob.size(), Some(layers), Some(self.blob.size()));
                    (self.report)(Event::Transfer(Progress { layer, layers, done, total, known: true }));
                }
                return Ok(());
            }
            StatusCode::NOT_FOUND => {}
            _ => return there.expect(&[StatusCode::OK], deadline).await.map(drop),
        }
        let mut attempt = 1;
        loop {
            let (cause, asked) = match self.send(place, &digest).await {
                Ok(None) => return Ok(()),
                Ok(Some((cause, asked))) => (cause, asked),
                Err(Cause::Unavailable(why)) => (Cause::Unavailable(why), None),
                Err(other) => return Err(other),
            };
            place.pause(&mut attempt, cause, asked).await?;
        }
    }

    /// One upload from beginning to end; `Some` if it may be tried again.
    async fn send(
        &self,
        place: &Endpoint,
        digest: &str,
    ) -> Result<Option<(Cause, Option<std::time::Duration>)>, Cause> {
        let deadline = place.dialer().timing.answer;
        let begun = place.ask(Method::POST, "blobs/uploads/", &[], Payload::Empty, Access::Push).await?;
        let begun = begun.expect(&[StatusCode::ACCEPTED], deadline).await?;
        let Some(location) = begun.header(header::LOCATION) else {
            refuse!("{} accepts an upload and does not say where", place.name());
        };
        let mut url = lead(&begun.url, location)?;
        url.query_pairs_mut().append_pair("digest", digest);
        let octets = [(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))];
        let answer = place.ask_once(Method::PUT, url, &octets, self.payload.clone(), Access::Push).await?;
        if is_passing(answer.status) {
            let asked = retry_after(&answer.headers);
            return Ok(Some((answer.failure(deadline).await, asked)));
        }
        answer.expect(&[StatusCode::CREATED], deadline).await?;
        Ok(None)
    }
}

async fn put_manifest(place: &Endpoint, tag: &str, text: &[u8]) -> Result<String, Cause> {
    let digest = format!("sha256:{:x}", Sha256::digest(text));
    let media = HeaderValue::from_str(MediaType::ImageManifest.as_ref());
    let media = media.map_err(|cause| Cause::Refused(cause.to_string()))?;
    let payload = Payload::Bytes(Bytes::copy_from_slice(text));
    let headers = [(header::CONTENT_TYPE, media)];
    let answer = place.ask(Method::PUT, &format!("manifests/{tag}"), &headers, payload, Access::Push).await?;
    let taken = [StatusCode::CREATED, StatusCode::ACCEPTED, StatusCode::OK];
    let answer = answer.expect(&taken, place.dialer().timing.answer).await?;
    let kept = answer.headers.get(CONTENT_DIGEST).and_then(|value| value.to_str().ok());
    if let Some(kept) = kept.filter(|kept| kept.starts_with("sha256:") && *kept != digest) {
        refuse!(
            "{} keeps another manifest ({}) than the one that it was sent ({digest})",
            place.name(),
            crate::error::shown(kept)
        );
    }
    Ok(digest)
}
