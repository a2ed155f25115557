//! Entering an image: its layers are unpacked one by one, then all of it appears at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use oci_spec::image::{Digest, ImageConfiguration};
use sha2::{Digest as _, Sha256};

use super::facts::{self, BlobFacts, Image, LayerFacts};
use super::lock::{Lock, Temp};
use super::place::{ID_PREFIX, Images, MANIFESTS, is_image_id};
use crate::digest::hex;
use crate::error::{At, Cause, Error, Result, Step};
use crate::files;
use crate::oci::{DOCUMENT_BYTES_MAX, LAYERS_MAX, Reference};
use crate::unpack::{self, Fault, Limits, Reason};

/// The file of an import that lists the stored layers that it counts on, in its unfinished directory.
const COUNTED_ON: &str = "layers";

/// A report of an import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Number of the layer, from 1.
    pub layer: usize,
    /// Layers of the image, where known.
    pub layers: Option<usize>,
    /// Bytes of its blob that were read.
    pub done: u64,
    /// Bytes of its blob, where known.
    pub total: Option<u64>,
    /// It was there already.
    pub known: bool,
}

/// Receives the reports, on several threads.
pub type Report = Arc<dyn Fn(Progress) + Send + Sync>;

/// What a layer must turn out to be.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    /// Digest and size of the blob.
    pub blob: Option<(Digest, u64)>,
    /// Digest of the archive in it: `sha256:` and hexadecimal digits.
    pub diff_id: Option<String>,
}

/// An image that is being entered. Dropped without [`Import::commit`], it leaves nothing.
pub struct Import {
    images: Images,
    temp: Temp,
    source: String,
    limits: Limits,
    report: Option<Report>,
    layers_total: Option<usize>,
    /// Layers in order, the lowest first.
    layers: Vec<Layer>,
    /// Where new ones lie, by diff id.
    fresh: BTreeMap<String, PathBuf>,
    counted_on: BTreeSet<String>,
}

struct Layer {
    facts: LayerFacts,
    blob: Option<BlobFacts>,
}

impl std::fmt::Debug for Import {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Import")
            .field("source", &self.source)
            .field("layers", &self.layers.len())
            .finish_non_exhaustive()
    }
}

impl Images {
    /// Begins to enter an image. `source` says where it comes from, for people and in errors.
    pub fn begin(&self, source: &str, report: Option<Report>) -> Result<Import> {
        Ok(Import {
            images: self.clone(),
            temp: self.temp("import")?,
            source: source.to_owned(),
            limits: Limits::default(),
            report,
            layers_total: None,
            layers: Vec::new(),
            fresh: BTreeMap::new(),
            counted_on: BTreeSet::new(),
        })
    }

    /// Layers that imports under way count on.
    pub(super) fn counted_on(&self, lock: &Lock) -> Result<BTreeSet<String>> {
        let mut all = BTreeSet::new();
        for temp in self.living_temps(lock)? {
            let list: Option<BTreeSet<String>> = facts::read_json(&temp.join(COUNTED_ON))?;
            all.extend(list.unwrap_or_default());
        }
        Ok(all)
    }
}

impl Import {
    /// Other bounds than the default ones.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// The number of layers that will come, for the reports.
    pub fn set_layers_total(&mut self, total: usize) {
        self.layers_total = Some(total);
    }

    /// A directory that goes with the import.
    #[must_use]
    pub fn temp_dir(&self) -> &std::path::Path {
        self.temp.path()
    }

    /// Whether the store has the layer with this diff id. If so, it stays until the import has ended.
    pub fn count_on(&mut self, diff_id: &str) -> Result<bool> {
        self.counted(diff_id).map(|facts| facts.is_some())
    }

    /// Takes the stored layer with this diff id as the next one, if there is one. It stays until the import has ended.
    pub fn stored_layer(&mut self, diff_id: &str, blob: Option<BlobFacts>) -> Result<bool> {
        let facts = match self.layers.iter().find(|layer| layer.facts.diff_id == diff_id) {
            Some(layer) => layer.facts.clone(),
            None => match self.counted(diff_id)? {
                Some(facts) => facts,
                None => return Ok(false),
            },
        };
        self.push(facts, blob)?;
        let layer = self.layers.len();
        self.tell(Progress { layer, layers: self.layers_total, done: 0, total: None, known: true });
        Ok(true)
    }

    fn counted(&mut self, diff_id: &str) -> Result<Option<LayerFacts>> {
        if !is_image_id(diff_id) {
            return Err(self.refuse(&format!("the diff id '{}' is not SHA-256", diff_id.escape_default())));
        }
        let _lock = self.images.lock()?;
        let Some(facts) = self.images.layer(diff_id)? else { return Ok(None) };
        if self.counted_on.insert(diff_id.to_owned()) {
            let path = self.temp.path().join(COUNTED_ON);
            fs::write(&path, facts::json(&path, &self.counted_on)?).at(Step::StoreImage, &path)?;
        }
        Ok(Some(facts))
    }

    /// Unpacks the next layer from its blob. Both digests are computed while the bytes pass.
    pub fn layer(&mut self, blob: impl Read + Send, expected: &Expected) -> Result<LayerFacts> {
        let number = self.layers.len() + 1;
        let dir = self.temp.path().join(number.to_string());
        let diff = dir.join("diff");
        for dir in [&dir, &diff] {
            DirBuilder::new().mode(0o755).create(dir).at(Step::UnpackLayer, dir)?;
        }
        let path = dir.join("archive.gz");
        let log = File::create_new(&path).at(Step::UnpackLayer, &path)?;
        let blob = Counted {
            inner: blob,
            left: expected.blob.as_ref().map(|(_, size)| *size),
            done: 0,
            told: 0,
            report: self.report.clone(),
            progress: Progress {
                layer: number,
                layers: self.layers_total,
                done: 0,
                total: expected.blob.as_ref().map(|(_, size)| *size),
                known: false,
            },
        };
        let (passed, unpacked) =
            unpack::unpack(blob, &diff, Some(log), self.limits).map_err(|fault| self.fault(number, &diff, fault))?;
        let wrong = |what: &str, found: &str, claimed: &str| {
            self.refuse(&format!("layer {number}: {what} is sha256:{found}, but it should be {claimed}"))
        };
        if let Some((digest, size)) = &expected.blob
            && (passed.blob != digest.digest() || passed.blob_bytes != *size)
        {
            let found = format!("{} with {} bytes", passed.blob, passed.blob_bytes);
            return Err(wrong("the blob", &found, &format!("{digest} with {size} bytes")));
        }
        let diff_id = format!("{ID_PREFIX}{}", passed.diff_id);
        if let Some(claimed) = &expected.diff_id
            && *claimed != diff_id
        {
            return Err(wrong("the archive", &passed.diff_id, claimed));
        }
        if !unpacked.logged {
            fs::remove_file(&path).at(Step::UnpackLayer, &path)?;
        }
        let facts = LayerFacts {
            diff_id: diff_id.clone(),
            entries: unpacked.entries,
            bytes: unpacked.bytes,
            opaque_root: unpacked.opaque_root,
            implied: unpacked.implied,
            warnings: unpacked.warnings,
            exact: unpacked.logged,
        };
        let path = dir.join("layer.json");
        fs::write(&path, facts::json(&path, &facts)?).at(Step::UnpackLayer, &path)?;
        let blob =
            BlobFacts { digest: format!("{ID_PREFIX}{}", passed.blob), size: passed.blob_bytes, repository: None };
        self.push(facts.clone(), Some(blob))?;
        self.fresh.entry(diff_id).or_insert(dir);
        Ok(facts)
    }

    /// Where the last layer's blob was pulled from, as `registry/repository`.
    pub fn pulled_from(&mut self, repository: &str) {
        if let Some(blob) = self.layers.last_mut().and_then(|layer| layer.blob.as_mut()) {
            blob.repository = Some(repository.to_owned());
        }
    }

    /// Enters the image with this configuration under these names. Everything is on disk when this returns.
    pub fn commit(self, config: &[u8], names: &[Reference]) -> Result<Image> {
        if config.len() as u64 > DOCUMENT_BYTES_MAX {
            return Err(self.refuse(&format!("its configuration has more than {DOCUMENT_BYTES_MAX} bytes")));
        }
        let text = std::str::from_utf8(config).map_err(|_| self.refuse("its configuration is not UTF-8"))?;
        let read: ImageConfiguration = serde_json::from_slice(config)
            .map_err(|error| self.refuse(&format!("its configuration is malformed: {error}")))?;
        let claimed = read.rootfs().diff_ids();
        let diff_ids: Vec<String> = self.layers.iter().map(|layer| layer.facts.diff_id.clone()).collect();
        if *claimed != diff_ids {
            return Err(self.refuse(&format!(
                "its configuration lists the layers [{}], but they are [{}]",
                claimed.join(", "),
                diff_ids.join(", ")
            )));
        }
        let image = Image {
            id: format!("{ID_PREFIX}{}", hex(&Sha256::digest(config))),
            config: text.to_owned(),
            diff_ids,
            blobs: self.layers.iter().map(|layer| layer.blob.clone()).collect(),
            stored_unix: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            size_bytes: self.layers.iter().map(|layer| layer.facts.bytes).sum(),
            source: self.source.clone(),
            names: names.iter().map(ToString::to_string).collect(),
        };
        self.publish(&image)?;
        Ok(image)
    }

    fn publish(&self, image: &Image) -> Result<()> {
        let at = |path: &std::path::Path, done: io::Result<()>| done.at(Step::StoreImage, path);
        let layers_dir = self.images.layers_dir();
        if !self.fresh.is_empty() {
            // Tens of thousands of files: one flush of the file system instead of one per file.
            let temp = File::open(self.temp.path()).at(Step::StoreImage, self.temp.path())?;
            at(self.temp.path(), rustix::fs::syncfs(&temp).map_err(io::Error::from))?;
        }
        let lock = self.images.lock()?;
        for (diff_id, dir) in &self.fresh {
            let name = self.images.layer_dir(diff_id);
            // Another import was quicker: its layer has the same content.
            if !name.is_dir() {
                at(&name, fs::rename(dir, &name))?;
            }
        }
        at(&layers_dir, files::sync_dir(&layers_dir))?;
        let path = self.images.manifest_path(&image.id);
        let manifests = self.images.dir().join(MANIFESTS);
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        at(&path, files::write_atomic(&manifests, &name, &facts::json(&path, image)?, 0o644))?;
        if !image.names.is_empty() {
            let mut all = self.images.names()?;
            all.extend(image.names.iter().map(|name| (name.clone(), image.id.clone())));
            self.images.set_names(&all, &lock)?;
        }
        Ok(())
    }

    fn push(&mut self, facts: LayerFacts, blob: Option<BlobFacts>) -> Result<()> {
        if self.layers.len() >= LAYERS_MAX {
            return Err(self.refuse(&format!("it has more than {LAYERS_MAX} layers")));
        }
        self.layers.push(Layer { facts, blob });
        Ok(())
    }

    fn tell(&self, progress: Progress) {
        if let Some(report) = &self.report {
            report(progress);
        }
    }

    fn refuse(&self, why: &str) -> Error {
        Error::new(Step::StoreImage, self.source.clone(), Cause::Refused(why.to_owned()))
    }

    fn fault(&self, number: usize, dir: &std::path::Path, fault: Fault) -> Error {
        let entry = fault.entry.map(|entry| format!(", entry '{entry}'")).unwrap_or_default();
        match fault.reason {
            Reason::Refused(why) => {
                Error::new(Step::UnpackLayer, format!("{number} of {}{entry}", self.source), Cause::Refused(why))
            }
            Reason::Io(error) => Error::new(Step::UnpackLayer, format!("{}{entry}", dir.display()), Cause::Io(error)),
        }
    }
}

/// Reports are made each time this much was read.
const REPORT_STEP_BYTES: u64 = 1 << 20;

/// Counts what is read, and ends a blob that is longer than it claims.
struct Counted<R> {
    inner: R,
    /// Bytes that may still come.
    left: Option<u64>,
    done: u64,
    told: u64,
    report: Option<Report>,
    progress: Progress,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buffer)?;
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(got as u64).ok_or_else(|| {
                let total = self.progress.total.unwrap_or(0);
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("the blob has more than the {total} bytes that it should have"),
                )
            })?;
        }
        self.done += got as u64;
        if let Some(report) = &self.report
            && (self.done - self.told >= REPORT_STEP_BYTES || got == 0)
        {
            self.told = self.done;
            report(Progress { done: self.done, ..self.progress.clone() });
        }
        Ok(got)
    }
}
