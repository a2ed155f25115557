//! Building images from Boxfiles.
//!
//! Owns: the context that a client sends, boxes in which commands run, the cache of layers, and the report. The rules of a
//! Boxfile are those of the crate `icebox-boxfile`, layers and images are kept by `icebox-rootfs`.
//! Invariants: a build leaves no box and no unfinished layer, however it ends; an image gets its name after everything
//! that it consists of is on disk; one build runs at a time.

mod cache;
mod caches;
mod context;
mod executor;
mod fetch;
mod layers;
mod mounts;
mod notes;
mod on_demand;
mod order;
mod record;
mod store;
mod trust;
mod urls;

use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use icebox_boxfile::{Boxfile, Failed, Options, Time};
use icebox_rootfs::images::Images;
use icebox_rootfs::oci::Reference;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};

use crate::boxes::Boxes;
use crate::clock;
use crate::config::Config;
use crate::domain::runtimes::Recipe;
use crate::error::Error;
use crate::lifecycle::Lifecycle;
use crate::refusal::Refusal;
use crate::runs::Runs;

use cache::{Cache, told};
use caches::Caches;
use context::Context;
use executor::Work;
use mounts::Mounts;
use notes::{UNFINISHED, sweep_unfinished};
use on_demand::OnDemand;
pub use on_demand::Stage;
use order::Means;
pub use order::{Order, STEP_LIMIT_DEFAULT, STEP_LIMIT_MAX};
pub use record::Record;
use record::Report;
use store::LayerStore;
use urls::Urls;

/// The folder in the data directory.
const DIR: &str = "builds";
/// Records on their way to a client.
const RECORDS_MAX: usize = 256;

/// The builds of a daemon. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Builds {
    means: Means,
    image_dir: PathBuf,
    dir: PathBuf,
    cache_bytes: u64,
    one: Arc<Semaphore>,
    on_demand: OnDemand,
}

impl Builds {
    /// The builds that use these boxes. Must be called on the event loop.
    #[must_use]
    pub fn new(config: &Config, boxes: Boxes, lifecycle: Lifecycle, runs: Runs) -> Self {
        let one = Arc::new(Semaphore::new(1));
        let (image_dir, dir) = (config.image_dir(), config.data_dir.join(DIR));
        let means = Means { boxes, lifecycle, runs, runtime: Handle::current() };
        let cache_bytes = config.build.cache_bytes;
        Self { means, image_dir, dir, cache_bytes, one, on_demand: OnDemand::default() }
    }

    /// An empty file for a context, which goes away when it is closed.
    pub fn context_file(&self) -> Result<File, Error> {
        let made = std::fs::create_dir_all(&self.dir).and_then(|()| tempfile::tempfile_in(&self.dir));
        made.map_err(|cause| Error::new("keep the context of a build in", self.dir.display().to_string(), cause))
    }

    /// The context of a runtime of this version: its Boxfile, and nothing else.
    pub fn context_of_runtime(&self, text: &str) -> Result<File, Error> {
        let failed = |cause| Error::new("write the context of a runtime in", self.dir.display().to_string(), cause);
        let mut header = tar::Header::new_ustar();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        let mut archive = tar::Builder::new(self.context_file()?);
        archive.append_data(&mut header, context::BOXFILE_ENTRY, text.as_bytes()).map_err(failed)?;
        archive.into_inner().map_err(failed)
    }

    /// How far the build of a runtime is that a box has asked for, and for how long; none if there was none.
    #[must_use]
    pub fn stage(&self, runtime: &str) -> Option<(Stage, Duration)> {
        self.on_demand.stage(runtime)
    }

    /// Has a runtime built, with the order for it, and waits for its image.
    pub async fn have_built(&self, recipe: &Recipe, order: Order) -> Result<(), Refusal> {
        self.on_demand.have_built(recipe, || Ok(self.build(order, self.context_of_runtime(&recipe.text)?))).await
    }

    /// Removes what builds of an earlier daemon have left. Their boxes are gone by now.
    pub fn sweep(&self) -> Result<(), Error> {
        let at = |cause: std::io::Error| Error::new("clear the folder", self.dir.display().to_string(), cause);
        if !self.dir.is_dir() {
            return Ok(());
        }
        for dir in [self.dir.clone(), self.dir.join("cache"), self.dir.join("mounts")] {
            sweep_unfinished(&dir).map_err(at)?;
        }
        let rootfs = |cause| Error::new("release the images of", self.dir.display().to_string(), cause);
        let images = Images::open(&self.image_dir).map_err(rootfs)?;
        images.set_pins(&self.dir, &BTreeSet::new()).map_err(rootfs)?;
        Cache::open(self.dir.join("cache")).and_then(|cache| cache.sweep(&images)).map_err(at)?;
        self.caches().and_then(|caches| caches.sweep(&images)).map_err(at)
    }

    fn caches(&self) -> std::io::Result<Caches> {
        Caches::open(self.dir.join("mounts"), self.cache_bytes)
    }

    /// True if no build is under way, as long as the value is kept.
    pub(crate) fn at_rest(&self) -> Option<tokio::sync::OwnedSemaphorePermit> {
        Arc::clone(&self.one).try_acquire_owned().ok()
    }

    /// Files of builds that have ended, with their bytes: unfinished layers, and entries of the cache whose image is gone.
    /// `_rest`: no build is under way.
    pub(crate) fn left(&self, _rest: &tokio::sync::OwnedSemaphorePermit) -> Result<Vec<(PathBuf, u64)>, Error> {
        let at = |cause: std::io::Error| Error::new("read the folder", self.dir.display().to_string(), cause);
        let Ok(entries) = std::fs::read_dir(&self.dir) else { return Ok(Vec::new()) };
        let mut left = Vec::new();
        for entry in entries {
            let path = entry.map_err(at)?.path();
            if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".tmp")) {
                left.push(path);
            }
        }
        let rootfs = |cause| Error::new("open the images of", self.dir.display().to_string(), cause);
        let images = Images::open(&self.image_dir).map_err(rootfs)?;
        left.extend(Cache::open(self.dir.join("cache")).and_then(|cache| cache.dead(&images)).map_err(at)?);
        let measured = |path: PathBuf| {
            let bytes = icebox_rootfs::images::allocated(&path);
            (path, bytes)
        };
        Ok(left.into_iter().map(measured).collect())
    }

    /// Removes one of them.
    pub(crate) fn remove_left(&self, path: &std::path::Path) -> Result<(), Error> {
        let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
        removed.map_err(|cause| Error::new("remove", path.display().to_string(), cause))
    }

    /// Begins a build with the archive in `context`. The records come as it goes on; it ends when they are not read any more.
    #[must_use]
    pub fn build(&self, order: Order, context: File) -> mpsc::Receiver<Record> {
        let (sender, records) = mpsc::channel(RECORDS_MAX);
        let builds = self.clone();
        tokio::spawn(async move {
            let report = Report(sender);
            let Ok(permit) = Arc::clone(&builds.one).acquire_owned().await else { return };
            let _ = tokio::task::spawn_blocking(move || {
                let last = match builds.run(order, context, &report) {
                    Ok(image) => image,
                    Err(failed) => Record::Error { error: failed.error.to_string(), output: failed.output },
                };
                report.send(last);
                drop(permit);
            })
            .await;
        });
        records
    }

    /// The whole build. Blocks.
    fn run(&self, order: Order, context: File, report: &Report) -> Result<Record, Failed> {
        let began = Instant::now();
        let name = order.file.clone().unwrap_or_else(|| "Boxfile".to_owned());
        let fail = |what: String| Failed {
            error: icebox_boxfile::Error { file: name.clone(), line: None, what, instead: None },
            output: String::new(),
        };
        let in_file = |error: icebox_boxfile::Error| Failed { error, output: String::new() };
        let mut context = Context::read(context).map_err(&fail)?;
        let (file, text) = context.boxfile(order.file.as_deref()).map_err(&fail)?;
        context.ignore().map_err(&fail)?;
        let boxfile = Boxfile::read(&file, &text).map_err(in_file)?;
        let images = Images::open(&self.image_dir).map_err(|error| fail(told(&error)))?;
        let temp = tempfile::Builder::new().prefix(UNFINISHED).tempdir_in(&self.dir);
        let store = LayerStore { images: images.clone(), pins: self.dir.clone() };
        let caches = self.caches().map_err(|error| fail(told(&error)))?;
        let mut work = Work {
            means: self.means.clone(),
            report: report.clone(),
            cache: Cache::open(self.dir.join("cache")).map_err(|error| fail(told(&error)))?,
            temp: temp.map_err(|error| fail(told(&error)))?,
            store: store.clone(),
            mounts: Mounts { caches: caches.clone(), store },
            replaced: Vec::new(),
            urls: Urls::default(),
            boxes_made: 0,
            step: 0,
            step_began: began,
            order,
        };
        let made = self.make(&mut work, &boxfile, &context, &fail);
        work.end_fetching();
        if let Err(error) = images.set_pins(&self.dir, &BTreeSet::new()) {
            tracing::warn!(%error, "images of a build stay in use");
        }
        if let Err(why) = remove_replaced(&images, &caches, &work.replaced) {
            tracing::warn!(why, "what a cache was before a build is left; pruning images removes it");
        }
        let image = made?;
        let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(Record::Image { id: image.id, names: image.names, bytes: image.size_bytes, ms })
    }

    fn make(
        &self,
        work: &mut Work,
        boxfile: &Boxfile,
        context: &Context,
        fail: &dyn Fn(String) -> Failed,
    ) -> Result<icebox_rootfs::images::Image, Failed> {
        let options = Options { target: work.order.target.clone(), args: work.order.args.clone() };
        let plan = icebox_boxfile::plan(boxfile, context, work, &options)
            .map_err(|error| Failed { error, output: String::new() })?;
        for warning in work.order.notes.iter().chain(&plan.warnings) {
            work.report.send(Record::Note(warning.clone()));
        }
        let seconds = clock::unix_ms() / 1000;
        let created = clock::rfc3339(seconds, 0);
        let cache = work.order.cache;
        let mut built = icebox_boxfile::build(&plan, context, work, Time { created: &created, seconds }, cache)?;
        built.config.config.labels.extend(work.order.labels.clone());
        let config = serde_json::to_vec(&built.config).map_err(|error| fail(told(&error)))?;
        let text = |error: icebox_rootfs::Error| fail(told(&error));
        let mut import = work.store.images.begin("a build", None).map_err(text)?;
        for layer in &built.layers {
            if !import.stored_layer(&layer.diff_id, None).map_err(text)? {
                return Err(fail(format!("the layer {} was removed during the build", layer.diff_id)));
            }
        }
        let names: Vec<Reference> = work.order.tag.iter().cloned().collect();
        import.commit(&config, &names).map_err(text)
    }
}

/// Removes images of caches that no cache is any more.
fn remove_replaced(images: &Images, caches: &Caches, replaced: &[String]) -> Result<(), String> {
    if replaced.is_empty() {
        return Ok(());
    }
    let current = caches.images().map_err(|error| told(&error))?;
    for id in replaced.iter().collect::<BTreeSet<_>>().into_iter().filter(|id| !current.contains(*id)) {
        match images.remove(id) {
            Err(error) if error.kind() == icebox_rootfs::ErrorKind::NotFound => {}
            other => drop(other.map_err(|error| told(&error))?),
        }
    }
    Ok(())
}
