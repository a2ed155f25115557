//! The base image of boxes. `iceboxd` knows how to make it; this only makes sure that it can.

use std::path::Path;
use std::process::Command;

use crate::error::Result;
use crate::{deps, places, run, say};

/// Makes the base image, or finds it made. `iceboxd` shows the progress.
pub(crate) fn prepare(bin: &Path) -> Result<()> {
    run::require_root("image")?;
    let dir = places::image_dir();
    say::heading("Base image (Debian bookworm; about a minute when it is not cached)");
    deps::ensure(&[deps::IMAGE])?;
    run::shown(Command::new(bin.join("iceboxd")).arg("image").arg("--image-dir").arg(dir))
}
