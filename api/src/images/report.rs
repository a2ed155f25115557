//! What is told of long work with images.

use icebox_rootfs::images::{Image, Progress};

use crate::refusal::Refusal;

/// Reports on their way to a client. What does not fit is dropped, but for the last ones.
pub(super) const REPORTS_MAX: usize = 64;

/// A step of getting or handing out an image.
#[derive(Debug)]
pub enum Report {
    /// A part of the work, for people.
    Work(String),
    /// Bytes of a layer that have gone over the network.
    Transfer(Progress),
    /// A layer.
    Layer(Progress),
    /// An image is there.
    Image(Box<Image>),
    /// An image is in a registry.
    Pushed {
        /// Its name there.
        name: String,
        /// The digest of its manifest.
        digest: String,
        /// It has another id there: a layer's archive could not be made again as it was.
        changed: bool,
    },
    /// The work has ended.
    Ended(Result<(), Refusal>),
}
