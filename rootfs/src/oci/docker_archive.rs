//! What `docker save` writes: `manifest.json`, configurations, and layers by their paths.

use serde::Deserialize;

use super::files::Files;
use super::layout::parse;
use super::{DOCUMENT_BYTES_MAX, Found, FoundLayer};
use crate::unpack::Fault;

/// Images of one archive.
const IMAGES_MAX: usize = 256;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// The images of the archive; `None` if its `manifest.json` is missing or something else.
pub(crate) fn images(files: &dyn Files) -> Result<Option<Vec<Found>>, Fault> {
    let Some(manifest) = files.read("manifest.json", DOCUMENT_BYTES_MAX).map_err(Fault::reading)? else {
        return Ok(None);
    };
    if manifest.trim_ascii_start().first() != Some(&b'[') {
        return Ok(None);
    }
    let items: Vec<Item> = parse("manifest.json", &manifest)?;
    if items.is_empty() || items.len() > IMAGES_MAX {
        return Err(Fault::refused(format!(
            "its manifest.json names {} images; 1 to {IMAGES_MAX} are allowed",
            items.len()
        )));
    }
    items.into_iter().map(|item| image(files, item)).collect::<Result<_, _>>().map(Some)
}

fn image(files: &dyn Files, item: Item) -> Result<Found, Fault> {
    let config = files.read(&item.config, DOCUMENT_BYTES_MAX).map_err(Fault::reading)?;
    let config = config.ok_or_else(|| Fault::refused(format!("it has no file {}", item.config)))?;
    let layers = item.layers.unwrap_or_default();
    let layers = layers.into_iter().map(|file| FoundLayer { file, claimed: None }).collect();
    Ok(Found { names: item.repo_tags.unwrap_or_default(), config, layers })
}
