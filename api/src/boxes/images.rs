//! The images of boxes: which one a new box gets, what lies below a box with an image, and which images are in use.
//!
//! Owns: the base image of this version's recipe, the layers of an image by its id, and the pins by which other users of the
//! image directory know that boxes of this daemon use an image. A box keeps its image for life.
//! Invariant: an image is pinned before the record of a box with it is written.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use icebox_rootfs::ErrorKind;
use icebox_rootfs::image::{self, BaseImage};
use icebox_rootfs::images::{Images as Store, Root};
use tokio::sync::RwLock;

use super::tasks::blocking;
use crate::config::Config;
use crate::domain::runtimes;
use crate::error::{Cause, Error};
use crate::refusal::Refusal;

/// Names of the public API that mean the base image until an operator says otherwise.
const BASE_RUNTIMES: [&str; 2] = ["node", "python"];

/// The images of a daemon.
#[derive(Debug)]
pub(super) struct Images {
    pub(super) dir: PathBuf,
    init: PathBuf,
    /// Whose pins are set.
    pub(super) owner: PathBuf,
    /// Names of images that the operator has configured.
    runtimes: BTreeMap<String, String>,
    current: tokio::sync::OnceCell<String>,
    /// Roots by image; each is looked up once.
    pub(super) roots: Mutex<HashMap<String, Arc<Root>>>,
    pub(super) pinned: Mutex<BTreeSet<String>>,
    /// Read by creations from the choice of the image until the box is in the table, written by removals of images.
    pub(super) removing: RwLock<()>,
}

impl Images {
    /// The images of this configuration; the layer of tools is made from the binary `init`.
    pub(super) fn new(config: &Config, init: PathBuf) -> Self {
        Self {
            dir: config.image_dir(),
            init,
            owner: config.data_dir.clone(),
            runtimes: config.runtimes.clone(),
            current: tokio::sync::OnceCell::new(),
            roots: Mutex::default(),
            pinned: Mutex::default(),
            removing: RwLock::default(),
        }
    }

    /// The id of the base image for new boxes.
    pub(super) async fn current(&self) -> Result<String, Refusal> {
        let find = || async {
            let dir = self.dir.clone();
            let base = blocking("find the base image", move || image::find(&dir)).await?;
            let missing = || Refusal::Unavailable("there is no base image yet; run `iceboxd image` once".into());
            let base = base.ok_or_else(missing)?;
            let id = base.id();
            self.keep(&id, base_root(base)).await?;
            Ok::<_, Refusal>(id)
        };
        self.current.get_or_try_init(find).await.cloned()
    }

    /// The id of the image for a new box with this runtime: a name of the configuration, one of the public API, or an image.
    pub(super) async fn choose(&self, runtime: Option<&str>) -> Result<String, Refusal> {
        let Some(runtime) = runtime else { return self.current().await };
        let configured = self.runtimes.get(runtime);
        if configured.is_none()
            && let Some(built) = self.built(runtime).await?
        {
            return Ok(built);
        }
        if configured.is_none() && BASE_RUNTIMES.contains(&runtime) {
            return self.current().await;
        }
        let wanted = configured.map_or(runtime, String::as_str).to_owned();
        let dir = self.dir.clone();
        let found = blocking("find the image", move || Store::open(&dir)?.find(&wanted)).await;
        let image = found.map_err(|error| unknown(error, runtime, configured.map(String::as_str)))?;
        Ok(image.id)
    }

    /// The image of a runtime that was built from its Boxfile here.
    async fn built(&self, runtime: &str) -> Result<Option<String>, Refusal> {
        if runtimes::boxfile(runtime).is_none() {
            return Ok(None);
        }
        let (dir, name) = (self.dir.clone(), runtimes::image_name(runtime));
        let found = blocking("find the image of the runtime", move || match Store::open(&dir)?.find(&name) {
            Ok(image) => Ok(Some(image.id)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        });
        found.await.map_err(told)
    }

    /// Notes that boxes of this daemon use an image, on disk.
    pub(super) async fn pin(&self, id: &str) -> Result<(), Refusal> {
        let known = || self.pinned.lock().unwrap_or_else(PoisonError::into_inner);
        if known().contains(id) {
            return Ok(());
        }
        let (dir, owner, wanted) = (self.dir.clone(), self.owner.clone(), id.to_owned());
        blocking("pin the image", move || Store::open(&dir)?.pin(&owner, &wanted)).await.map_err(told)?;
        known().insert(id.to_owned());
        Ok(())
    }

    /// What lies below a box with this image, the topmost layer first.
    pub(super) async fn root(&self, id: &str) -> Result<Arc<Root>, Refusal> {
        if let Some(known) = self.known(id) {
            return Ok(known);
        }
        let (dir, wanted) = (self.dir.clone(), id.to_owned());
        let found = blocking("find the image", move || {
            let store = Store::open(&dir)?;
            store.by_id(&wanted)?.map(|image| store.root(&image)).transpose()
        });
        let missing = || {
            let dir = self.dir.display();
            Refusal::Unavailable(format!("the image '{id}' of this box is not in {dir}; put it back there"))
        };
        let root = found.await.map_err(told)?.ok_or_else(missing)?;
        Ok(self.keep(id, root).await?)
    }

    pub(super) fn known(&self, id: &str) -> Option<Arc<Root>> {
        self.roots.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// Caches the root of an image, with the layer of tools on top.
    async fn keep(&self, id: &str, mut root: Root) -> Result<Arc<Root>, Error> {
        let (dir, init) = (self.dir.clone(), self.init.clone());
        let tools = blocking("make the layer of tools", move || image::tools_layer(&dir, &init)).await?;
        root.layers.insert(0, tools);
        let root = Arc::new(root);
        self.roots.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned(), Arc::clone(&root));
        Ok(root)
    }
}

fn base_root(base: BaseImage) -> Root {
    Root { layers: vec![base.rootfs], env: Vec::new(), has_bash: true }
}

/// The command that gets an image which is not here.
fn how_to_get(image: &str) -> String {
    match runtimes::boxfile(image) {
        Some(_) => format!("icebox image build --runtime {image}"),
        None => format!("icebox image pull {image}"),
    }
}

/// The refusal of a runtime that is no image here.
fn unknown(error: Error, runtime: &str, configured: Option<&str>) -> Refusal {
    let Cause::Rootfs(cause) = error.cause() else { return error.into() };
    let shown: String = runtime.chars().take(200).collect();
    match (cause.kind(), configured) {
        (ErrorKind::NotFound, None) => Refusal::Invalid(format!(
            "the runtime '{shown}' is not available here: it is neither in [runtimes] of the configuration nor an image of \
             this host; the operator can get one with `{}` (node and python are always there)",
            how_to_get(&shown)
        )),
        (ErrorKind::NotFound, Some(image)) => Refusal::Invalid(format!(
            "the image '{image}' of the runtime '{shown}' is not on this host; the operator can get it with \
             `{}`",
            how_to_get(image)
        )),
        (ErrorKind::InvalidInput, _) => {
            Refusal::Invalid(format!("the runtime '{shown}' is no name of an image: {}", reason(cause)))
        }
        _ => error.into(),
    }
}

/// A refusal whose text the client may read: the causes of the store name images only.
pub(super) fn told(error: Error) -> Refusal {
    let Cause::Rootfs(cause) = error.cause() else { return error.into() };
    let text = || match cause.step() {
        icebox_rootfs::Step::ReadArchive | icebox_rootfs::Step::UnpackLayer => format!("{cause}: {}", reason(cause)),
        _ => format!("image '{}': {}", cause.subject(), reason(cause)),
    };
    match cause.kind() {
        ErrorKind::InvalidInput => Refusal::Invalid(text()),
        ErrorKind::NotFound => Refusal::NotFound(text()),
        ErrorKind::InUse => Refusal::Conflict(text()),
        _ => error.into(),
    }
}

fn reason(error: &icebox_rootfs::Error) -> String {
    error.cause().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(dir: &std::path::Path, runtimes: &[(&str, &str)]) -> Images {
        let config = Config {
            image_dir: Some(dir.to_owned()),
            data_dir: dir.join("data"),
            runtimes: runtimes.iter().map(|(name, image)| ((*name).to_owned(), (*image).to_owned())).collect(),
            ..Config::default()
        };
        Images::new(&config, dir.join("init"))
    }

    #[tokio::test]
    async fn each_image_has_its_own_layers_and_a_missing_one_is_named() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(dir.path().join("init"), "an init").expect("written");
        for recipe in ["11111111", "22222222"] {
            let image = dir.path().join(format!("bookworm-{recipe}"));
            std::fs::create_dir_all(image.join("rootfs")).expect("an image");
            let manifest = serde_json::json!({
                "recipe": recipe, "suite": "bookworm", "created_unix": 1, "size_bytes": 1, "packages": [],
            });
            std::fs::write(image.join("manifest.json"), manifest.to_string()).expect("a manifest");
        }
        // A second run of the daemon finds the same.
        for _ in 0..2 {
            let images = images(dir.path(), &[]);
            for id in ["bookworm-11111111", "bookworm-22222222"] {
                let layers = images.root(id).await.expect("layers").layers.clone();
                assert_eq!(layers.last(), Some(&dir.path().join(id).join("rootfs")));
                assert!(layers.first().is_some_and(|tools| tools.join("usr/local/bin/sudo").is_file()), "{layers:?}");
            }
            for gone in ["bookworm-33333333", "../x", ""] {
                let refused = images.root(gone).await.expect_err("no such image").to_string();
                assert!(refused.contains(gone) && refused.contains("not in"), "{refused}");
            }
            assert!(images.current().await.is_err(), "the image of the current recipe was not built");
        }
    }

    #[tokio::test]
    async fn a_runtime_without_an_image_says_how_to_get_one() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let images = images(dir.path(), &[("mine", "registry.example.com/mine:1")]);
        for (runtime, why) in [
            ("golang", "`icebox image build --runtime golang`"),
            ("mine", "`icebox image pull registry.example.com/mine:1`"),
            ("A B", "is no name of an image"),
            ("../etc", "is no name of an image"),
        ] {
            let refused = images.choose(Some(runtime)).await.expect_err(runtime);
            assert!(matches!(&refused, Refusal::Invalid(text) if text.contains(why)), "{refused}");
        }
    }
}
