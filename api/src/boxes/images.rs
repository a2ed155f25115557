//! The images of boxes: the base image, what lies below a box with an image, and which images are in use.
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
use crate::config::{Config, Runtime};
use crate::error::{Cause, Error};
use crate::refusal::Refusal;

/// The images of a daemon.
#[derive(Debug)]
pub(super) struct Images {
    pub(super) dir: PathBuf,
    init: PathBuf,
    /// Whose pins are set.
    pub(super) owner: PathBuf,
    /// The runtimes that the operator has configured.
    pub(super) runtimes: BTreeMap<String, Runtime>,
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

pub(super) fn reason(error: &icebox_rootfs::Error) -> String {
    error.cause().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(dir: &std::path::Path, runtimes: &[(&str, &str)]) -> Images {
        let config = Config {
            image_dir: Some(dir.to_owned()),
            data_dir: dir.join("data"),
            runtimes: runtimes
                .iter()
                .map(|(name, image)| ((*name).to_owned(), Runtime::Image((*image).to_owned())))
                .collect(),
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
            ("ruby-alpine", "`icebox image import ARCHIVE --name ruby-alpine`"),
            ("ruby-alpine", "[runtimes]"),
            ("mine-alpine", "neither in [runtimes]"),
            ("mine", "`icebox image pull registry.example.com/mine:1`"),
            ("A B", "is no name of an image"),
            ("../etc", "is no name of an image"),
        ] {
            let refused = images.choose(Some(runtime)).await.expect_err(runtime);
            assert!(matches!(&refused, Refusal::Invalid(text) if text.contains(why)), "{refused}");
        }
    }
}
