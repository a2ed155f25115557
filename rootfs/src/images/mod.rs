//! The store of images: unpacked layers, the images made of them, and their names.
//!
//! Layout below the image directory, beside the base images (`crate::image`):
//!
//! - `layers/<diff id>/{diff/,layer.json,archive.gz}`: a layer as overlayfs takes it, the facts about it, and the log from
//!   which its archive is made again;
//! - `manifests/<image id>.json`: an image: configuration, ordered layers, source;
//! - `refs.json`: names and the ids of their images;
//! - `pins/<owner>/<image id>`: images that the boxes of a daemon use;
//! - `adapted/<image id>/`: the layer that turns an image into the root of a box.
//!
//! Invariants: what has its final name is complete and on disk; an image is entered after its layers and a name after its
//! image, so that a crash leaves all of it or nothing. Names that begin with `.tmp-` are unfinished: their maker holds
//! an `flock` on them, and those that nobody holds are swept. `lock` is held for changes of names only, never while a
//! layer is unpacked or fetched. A layer goes when no image and no import under way names it.

mod adapt;
mod export;
mod facts;
mod import;
mod lock;
mod lookup;
mod merged;
mod names;
mod orphans;
mod place;
mod remove;
mod source;

pub use adapt::Root;
pub use export::Parcel;
pub use facts::{BlobFacts, Image, LayerFacts};
pub use import::{Expected, Import, Progress, Report};
pub use orphans::{StrayImage, StrayImageKind, allocated};
pub use place::Images;
pub use remove::Pruned;
pub use source::ArchiveKind;
