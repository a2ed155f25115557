//! Pull: layers are fetched side by side into files, each is unpacked when its digest was checked, and then the image
//! appears at once.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use hyper::{Method, StatusCode};
use icebox_rootfs::images::{BlobFacts, Expected, Image, Images, Import};
use icebox_rootfs::oci::{DOCUMENT_BYTES_MAX, Platform, Reference, check_document};
use oci_spec::image::{Descriptor, ImageConfiguration, Os};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;

use crate::blob;
use crate::endpoint::{Access, Endpoint};
use crate::error::{At as _, Cause, Result, refuse};
use crate::event::{Event, Report, transfer};
use crate::exchange::Payload;
use crate::manifest::{self, Parts};
use crate::settings::Registries;
use crate::thread::blocking;

/// Layers that are fetched at once.
const AT_ONCE_MAX: usize = 3;

impl Registries {
    /// Pulls an image into the store, under its name. Layers that are there are not fetched.
    pub async fn pull(&self, store: &Images, reference: &Reference, report: Report) -> Result<Image> {
        let pulled = self.pull_by_parts(store, reference, &report).await;
        pulled.at("pull", reference)
    }

    async fn pull_by_parts(&self, store: &Images, reference: &Reference, report: &Report) -> Result<Image, Cause> {
        let places: Arc<[Endpoint]> = self.places(reference).into();
        let platform = Platform::host();
        let (first, parts) = find(&places, reference, &platform, report).await?;
        let text = configuration(&places, first, &parts.config).await?;
        let diff_ids = diff_ids(&text, &parts, &platform)?;
        let (begun, source, told) = (store.clone(), reference.to_string(), Arc::clone(report));
        let (wanted, layers) = (diff_ids.clone(), parts.layers.clone());
        let (import, missing) = blocking(move || {
            let mut import = begun.begin(&source, Some(Arc::new(move |progress| told(Event::Layer(progress)))))?;
            import.set_layers_total(wanted.len());
            let missing = missing(&mut import, &wanted)?;
            Ok((import, missing))
        })
        .await?;
        room_for(&import, missing.iter().map(|number| layers[*number].size()).sum())?;
        let room = Arc::new(Semaphore::new(AT_ONCE_MAX));
        // Ends with this call, and all of it.
        let mut fetching = JoinSet::new();
        let mut arrivals: Vec<Option<oneshot::Receiver<Result<PathBuf, Cause>>>> =
            layers.iter().map(|_| None).collect();
        for number in missing {
            let (sender, arrival) = oneshot::channel();
            arrivals[number] = Some(arrival);
            let (places, room, blob) = (Arc::clone(&places), Arc::clone(&room), layers[number].clone());
            let tell = transfer(report, (number + 1, layers.len()), blob.size());
            // All that is to come is known from the beginning.
            tell(0);
            let path = import.temp_dir().join(format!("blob-{number}"));
            fetching.spawn(async move {
                // Never closed. Permits are given in the order in which they are asked for.
                let _permit = room.acquire().await;
                let fetched = blob::fetch(&places, first, &blob, &path, &tell).await;
                // The unpacking thread may have failed.
                let _ = sender.send(fetched.map(|_| path));
            });
        }
        let repository = places[first].name();
        let reference = reference.clone();
        blocking(move || unpack(import, &diff_ids, &layers, arrivals, &repository, &text, reference)).await
    }
}

/// Asks the places for the manifest, one after the other. What the last one says counts: it is the registry itself.
async fn find(
    places: &[Endpoint],
    reference: &Reference,
    platform: &Platform,
    report: &Report,
) -> Result<(usize, Parts), Cause> {
    let mut last = Cause::NotFound("there is no place to ask".to_owned());
    for (number, place) in places.iter().enumerate() {
        report(Event::Work(format!("asking {}", place.name())));
        match manifest::resolve(place, reference, platform).await {
            Ok(parts) => return Ok((number, parts)),
            Err(cause) => {
                if number + 1 < places.len() {
                    tracing::warn!(mirror = place.name(), %cause, "a mirror does not have the image");
                    report(Event::Work(format!("{}: {cause}", place.name())));
                }
                last = cause;
            }
        }
    }
    Err(last)
}

/// The configuration of the image, as its bytes.
async fn configuration(places: &[Endpoint], first: usize, config: &Descriptor) -> Result<Vec<u8>, Cause> {
    let mut failure = None;
    for step in 0..places.len() {
        match document(&places[(first + step) % places.len()], config).await {
            Ok(text) => return Ok(text),
            Err(cause) => drop(failure.get_or_insert(cause)),
        }
    }
    Err(failure.unwrap_or_else(|| Cause::NotFound("there is no place to ask".to_owned())))
}

async fn document(place: &Endpoint, wanted: &Descriptor) -> Result<Vec<u8>, Cause> {
    let deadline = place.dialer().timing.answer;
    let what = format!("blobs/{}", wanted.digest());
    let mut attempt = 1;
    loop {
        let answer = place.ask(Method::GET, &what, &[], Payload::Empty, Access::Pull).await?;
        let answer = answer.expect(&[StatusCode::OK], deadline).await?;
        match answer.document(DOCUMENT_BYTES_MAX, deadline).await {
            Ok(text) => {
                check_document(wanted, &text).map_err(|why| Cause::Refused(why.to_string()))?;
                return Ok(text);
            }
            Err(Cause::Unavailable(why)) => place.pause(&mut attempt, Cause::Unavailable(why), None).await?,
            Err(other) => return Err(other),
        }
    }
}

/// The digests of the layers' archives, of an image that this machine can use.
fn diff_ids(text: &[u8], parts: &Parts, platform: &Platform) -> Result<Vec<String>, Cause> {
    let read: ImageConfiguration = serde_json::from_slice(text)
        .map_err(|cause| Cause::Refused(format!("its configuration is malformed: {cause}")))?;
    if *read.os() != Os::Linux || *read.architecture() != platform.arch {
        refuse!("it is for {}/{}, and this machine is {platform}", read.os(), read.architecture());
    }
    let diff_ids = read.rootfs().diff_ids().clone();
    if diff_ids.len() != parts.layers.len() {
        let (claimed, there) = (diff_ids.len(), parts.layers.len());
        refuse!("its configuration lists {claimed} layers, but its manifest {there}");
    }
    Ok(diff_ids)
}

/// The numbers of the layers that are not here; a layer that comes twice is fetched once. What is here stays until the import
/// has ended.
fn missing(import: &mut Import, diff_ids: &[String]) -> Result<Vec<usize>, Cause> {
    let mut seen = BTreeSet::new();
    let mut missing = Vec::new();
    for (number, diff_id) in diff_ids.iter().enumerate() {
        if seen.insert(diff_id) && !import.count_on(diff_id)? {
            missing.push(number);
        }
    }
    Ok(missing)
}

/// Refuses what cannot fit, before it is fetched.
fn room_for(import: &Import, wanted: u64) -> Result<(), Cause> {
    let disk = rustix::fs::statvfs(import.temp_dir()).map_err(std::io::Error::from)?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if wanted > free {
        return Err(Cause::NoSpace(format!(
            "its layers have {wanted} bytes as they are sent, and the disk of the image directory has {free} bytes left"
        )));
    }
    Ok(())
}

fn unpack(
    mut import: Import,
    diff_ids: &[String],
    layers: &[Descriptor],
    arrivals: Vec<Option<oneshot::Receiver<Result<PathBuf, Cause>>>>,
    repository: &str,
    config: &[u8],
    name: Reference,
) -> Result<Image, Cause> {
    for ((diff_id, layer), arrival) in diff_ids.iter().zip(layers).zip(arrivals) {
        let facts = BlobFacts {
            digest: layer.digest().to_string(),
            size: layer.size(),
            repository: Some(repository.to_owned()),
        };
        let Some(arrival) = arrival else {
            if !import.stored_layer(diff_id, Some(facts))? {
                refuse!("the layer {diff_id} has vanished from the store");
            }
            continue;
        };
        let gone = |_| Cause::Unavailable("the pull was ended".to_owned());
        let path = arrival.blocking_recv().map_err(gone)??;
        let file = File::open(&path)?;
        let blob = Some((layer.digest().clone(), layer.size()));
        import.layer(file, &Expected { blob, diff_id: Some(diff_id.clone()) })?;
        import.pulled_from(repository);
        std::fs::remove_file(&path)?;
    }
    Ok(import.commit(config, &[name])?)
}
