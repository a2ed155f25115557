//! The layers of a build in the store of images.
//!
//! Each layer is the topmost one of an image without a name. So the store knows who needs it, and pruning images prunes the
//! cache of builds.

use std::io::{self, BufWriter, Write as _};
use std::path::PathBuf;

use icebox_rootfs::images::{Expected, Image, Images};
use serde_json::json;

use super::cache::{Layer, told};

/// The store, and the images that must not be pruned while builds go on.
#[derive(Debug, Clone)]
pub(super) struct LayerStore {
    pub(super) images: Images,
    /// The owner of the pins.
    pub(super) pins: PathBuf,
}

impl LayerStore {
    /// Keeps an image until the build has ended.
    pub(super) fn pin(&self, id: &str) -> Result<(), String> {
        self.images.pin(&self.pins, id).map_err(|error| told(&error))
    }

    /// The image whose layers these are.
    pub(super) fn image_of(&self, layers: &[Layer]) -> Result<Option<Image>, String> {
        let Some(top) = layers.last() else { return Ok(None) };
        let image = self.images.by_id(&top.image).map_err(|error| told(&error))?;
        image.map(Some).ok_or_else(|| format!("the image {} was removed during the build", top.image))
    }

    /// Enters the layer of a step above others; the archive is what `write` writes.
    pub(super) fn enter(
        &self,
        below: &[Layer],
        write: impl FnOnce(&mut dyn io::Write) -> io::Result<()>,
    ) -> Result<Layer, String> {
        self.enter_for("a step of a build", below, write)
    }

    /// Enters a layer above others. `what` it is stands in the history of its image.
    pub(super) fn enter_for(
        &self,
        what: &str,
        below: &[Layer],
        write: impl FnOnce(&mut dyn io::Write) -> io::Result<()>,
    ) -> Result<Layer, String> {
        let text = |error: icebox_rootfs::Error| told(&error);
        let mut import = self.images.begin(what, None).map_err(text)?;
        for layer in below {
            if !import.stored_layer(&layer.diff_id, None).map_err(text)? {
                return Err(format!("the layer {} was removed during the build", layer.diff_id));
            }
        }
        let (reader, writer) = io::pipe().map_err(|error| told(&error))?;
        let facts = std::thread::scope(|scope| {
            let entering = scope.spawn(|| import.layer(reader, &Expected::default()));
            let mut output = BufWriter::with_capacity(256 << 10, writer);
            let written = write(&mut output).and_then(|()| output.flush());
            drop(output);
            let entered = entering.join().map_err(|_| "the store panicked".to_owned())?;
            match (entered, written) {
                (Ok(facts), Ok(())) => Ok(facts),
                // The end of one is the failure of the other.
                (Err(error), Ok(())) => Err(told(&error)),
                (Err(error), Err(written)) if written.kind() == io::ErrorKind::BrokenPipe => Err(told(&error)),
                (_, Err(written)) => Err(written.to_string()),
            }
        })?;
        let mut diff_ids: Vec<String> = below.iter().map(|layer| layer.diff_id.clone()).collect();
        diff_ids.push(facts.diff_id.clone());
        let config = json!({
            "architecture": icebox_boxfile::architecture(), "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": [{"created_by": what, "comment": "icebox build cache"}],
        });
        let image = import.commit(config.to_string().as_bytes(), &[]).map_err(text)?;
        self.pin(&image.id)?;
        Ok(Layer { diff_id: facts.diff_id, image: image.id })
    }
}
