//! The base image of boxes: made here, in this process, while cargo builds the programs.
//!
//! Leaves out how an image is made: that is `icebox_rootfs::image`, which `iceboxd image` uses too.

use std::path::Path;
use std::time::Instant;

use icebox_rootfs::image::{self, Phase};

use crate::error::{Cause, Error, Result};
use crate::{places, say};

/// The program that the tools layer is made of.
const INIT: &str = "icebox-init";

/// Makes the Debian image, or finds it. Prints a line for each phase. Its packages have to be installed.
pub(crate) fn base() -> Result<()> {
    let dir = places::image_dir();
    if image::find(&dir).map_err(|error| failed(&dir, error))?.is_some() {
        return Ok(());
    }
    let started = Instant::now();
    let mut phase: Option<Phase> = None;
    let built = image::build(&dir, &mut |progress| {
        if phase.replace(progress.phase) != Some(progress.phase) {
            say::fact(&format!("[{:>3} s] base image: {}", started.elapsed().as_secs(), progress.phase));
        }
    });
    let built = built.map_err(|error| failed(&dir, error))?;
    say::fact(&format!("base image made in {} s: {}", started.elapsed().as_secs(), built.dir.display()));
    Ok(())
}

/// Makes the layer with the tools of this build, or finds it.
pub(crate) fn tools(bin: &Path) -> Result<()> {
    let dir = places::image_dir();
    image::tools_layer(&dir, &bin.join(INIT)).map(drop).map_err(|error| failed(&dir, error))
}

fn failed(dir: &Path, error: icebox_rootfs::Error) -> Error {
    let cause = std::error::Error::source(&error).map_or_else(String::new, |cause| format!(": {cause}"));
    Error::new("make the base image in", dir.display().to_string(), Cause::Unexpected(format!("{error}{cause}")))
}
