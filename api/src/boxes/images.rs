//! The read-only layers below a box: the base image that its record names, and the layer with our own tools above it.
//!
//! Owns: the image of a new box (the one of this version's recipe), and the layers of an image by its id. A box keeps
//! its image for life: an image of an earlier recipe must stay in the image directory as long as a box uses it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use icebox_rootfs::image::{self, BaseImage};

use super::tasks::blocking;
use crate::error::Error;
use crate::refusal::Refusal;

/// The images of a daemon.
#[derive(Debug)]
pub(super) struct Images {
    dir: PathBuf,
    init: PathBuf,
    current: tokio::sync::OnceCell<String>,
    /// Layers by image, the topmost first; each is looked up once.
    layers: Mutex<HashMap<String, Vec<PathBuf>>>,
}

impl Images {
    /// The images in `dir`; the layer of tools is made from the binary `init`.
    pub(super) fn new(dir: PathBuf, init: PathBuf) -> Self {
        Self { dir, init, current: tokio::sync::OnceCell::new(), layers: Mutex::default() }
    }

    /// The id of the image for new boxes.
    pub(super) async fn current(&self) -> Result<String, Refusal> {
        let find = || async {
            let dir = self.dir.clone();
            let base = blocking("find the base image", move || image::find(&dir)).await?;
            let missing = || Refusal::Unavailable("there is no base image yet; run `iceboxd image` once".into());
            Ok::<_, Refusal>(self.keep(base.ok_or_else(missing)?).await?)
        };
        self.current.get_or_try_init(find).await.cloned()
    }

    /// The layers below a box with this image.
    pub(super) async fn layers(&self, id: &str) -> Result<Vec<PathBuf>, Refusal> {
        if let Some(known) = self.known(id) {
            return Ok(known);
        }
        let (dir, wanted) = (self.dir.clone(), id.to_owned());
        let base = blocking("find the base image", move || image::by_id(&dir, &wanted)).await?;
        let missing = || {
            let dir = self.dir.display();
            Refusal::Unavailable(format!("the base image '{id}' of this box is not in {dir}; put it back there"))
        };
        let id = self.keep(base.ok_or_else(missing)?).await?;
        Ok(self.known(&id).unwrap_or_default())
    }

    fn known(&self, id: &str) -> Option<Vec<PathBuf>> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// Caches the layers of an image; returns its id.
    async fn keep(&self, base: BaseImage) -> Result<String, Error> {
        let (dir, init, id) = (self.dir.clone(), self.init.clone(), base.id());
        let tools = blocking("make the layer of tools", move || image::tools_layer(&dir, &init)).await?;
        let layers = vec![tools, base.rootfs];
        self.layers.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), layers);
        Ok(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_image_has_its_own_layers_and_a_missing_one_is_named() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let init = dir.path().join("init");
        std::fs::write(&init, "an init").expect("written");
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
            let images = Images::new(dir.path().to_owned(), init.clone());
            for id in ["bookworm-11111111", "bookworm-22222222"] {
                let layers = images.layers(id).await.expect("layers");
                assert_eq!(layers.last(), Some(&dir.path().join(id).join("rootfs")));
                assert!(layers.first().is_some_and(|tools| tools.join("usr/local/bin/sudo").is_file()), "{layers:?}");
            }
            for gone in ["bookworm-33333333", "../x", ""] {
                let refused = images.layers(gone).await.expect_err("no such image").to_string();
                assert!(refused.contains(gone) && refused.contains("not in"), "{refused}");
            }
            assert!(images.current().await.is_err(), "the image of the current recipe was not built");
        }
    }
}
