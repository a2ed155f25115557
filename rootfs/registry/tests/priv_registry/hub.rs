//! What registries have: images of a few layers, by the paths at which they are asked for.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::server::{Reply, Request};

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// This machine's architecture, and another one.
pub(crate) fn architectures() -> (&'static str, &'static str) {
    if cfg!(target_arch = "aarch64") { ("arm64", "amd64") } else { ("amd64", "arm64") }
}

pub(crate) fn sha(bytes: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(bytes))
}

/// The content of one repository.
#[derive(Debug, Clone, Default)]
pub(crate) struct Hub {
    pub(crate) repository: String,
    /// Type and bytes by what follows the repository in the path.
    pub(crate) content: BTreeMap<String, (String, Vec<u8>)>,
}

/// The archive of a layer with one file of this size.
pub(crate) fn layer(name: &str, size: usize) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_size(size as u64);
    // Not compressible, and not the same in two places.
    let content: Vec<u8> = (0..size).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    archive.append_data(&mut header, name, content.as_slice()).expect("an entry");
    archive.into_inner().expect("an archive")
}

pub(crate) fn config(layers: &[Vec<u8>], architecture: &str) -> Value {
    let diff_ids: Vec<String> = layers.iter().map(|layer| sha(layer)).collect();
    json!({
        "architecture": architecture, "os": "linux", "config": {"Env": ["PATH=/bin", "FROM=registry"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
}

pub(crate) fn descriptor(media: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media, "digest": sha(bytes), "size": bytes.len()})
}

impl Hub {
    pub(crate) fn new(repository: &str) -> Self {
        Self { repository: repository.to_owned(), ..Self::default() }
    }

    pub(crate) fn blob(&mut self, bytes: &[u8]) {
        let value = ("application/octet-stream".to_owned(), bytes.to_owned());
        self.content.insert(format!("blobs/{}", sha(bytes)), value);
    }

    /// A document under its digest and under this tag. Returns its descriptor.
    pub(crate) fn document(&mut self, tag: &str, media: &str, document: &Value) -> Value {
        let bytes = serde_json::to_vec(document).expect("JSON");
        for name in [tag, &sha(&bytes)] {
            self.content.insert(format!("manifests/{name}"), (media.to_owned(), bytes.clone()));
        }
        descriptor(media, &bytes)
    }

    /// The manifest of an image; its layers and its configuration are there.
    pub(crate) fn manifest(&mut self, layers: &[Vec<u8>], config: &Value) -> Value {
        let config = serde_json::to_vec(config).expect("JSON");
        self.blob(&config);
        layers.iter().for_each(|layer| self.blob(layer));
        let layers: Vec<Value> = layers.iter().map(|layer| descriptor(LAYER, layer)).collect();
        json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(CONFIG, &config), "layers": layers})
    }

    /// An image of this machine's platform. Returns the descriptor of its manifest.
    pub(crate) fn image(&mut self, tag: &str, layers: &[Vec<u8>]) -> Value {
        let manifest = self.manifest(layers, &config(layers, architectures().0));
        self.document(tag, MANIFEST, &manifest)
    }

    /// What follows the repository in the path of a request.
    pub(crate) fn what<'r>(&self, request: &'r Request) -> &'r str {
        request.path().strip_prefix(&format!("/v2/{}/", self.repository)).unwrap_or_default()
    }

    /// As a registry answers.
    pub(crate) fn answer(&self, request: &Request) -> Reply {
        let Some((media, bytes)) = self.content.get(self.what(request)) else {
            let text = r#"{"errors":[{"code":"NAME_UNKNOWN","message":"it is not here"}]}"#;
            return Reply::new(404, text);
        };
        let range =
            request.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        match range {
            None => {
                Reply::new(200, bytes.clone()).with("Content-Type", media).with("Docker-Content-Digest", sha(bytes))
            }
            Some(from) => {
                let from: usize = from;
                let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
                Reply::new(206, &bytes[from..]).with("Content-Range", range)
            }
        }
    }

    /// The whole of it as a server's answers.
    pub(crate) fn answers(self) -> impl Fn(&Request) -> Reply + Send + Sync + 'static {
        let hub = Arc::new(self);
        move |request| hub.answer(request)
    }
}
