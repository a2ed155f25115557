//! The layer above the base image that carries our own program under the name people expect: `sudo`.
//!
//! The resident init's binary chooses its role by its name. The layer is named by the hash of the binary, so a new
//! version makes a new layer and running boxes keep theirs.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::digest::hex;
use crate::error::{At, Result, Step};
use crate::files;

const DIRECTORY: &str = "usr/local/bin";
const PROGRAM: &str = "sudo";
/// The path that scripts expect; a link to the program.
const LINK: (&str, &str) = ("usr/bin/sudo", "../local/bin/sudo");
/// Largest binary; Icebox's own is small, so a larger file is a mistake.
const BINARY_BYTES_MAX: u64 = 64 << 20;

/// The layer with that binary, made now if need be.
pub fn tools_layer(image_dir: &Path, init_binary: &Path) -> Result<PathBuf> {
    let mut binary = Vec::new();
    let file = File::open(init_binary).at(Step::ToolsLayer, init_binary)?;
    file.take(BINARY_BYTES_MAX).read_to_end(&mut binary).at(Step::ToolsLayer, init_binary)?;
    let layer = image_dir.join(format!("tools-{}", &hex(&Sha256::digest(&binary))[..8]));
    if layer.is_dir() {
        return Ok(layer);
    }
    super::build::make_image_dir(image_dir)?;
    let lock = super::build::lock(image_dir, &mut |_| {})?;
    if !layer.is_dir() {
        let temp = files::temp_path(image_dir, "tools");
        let made = fill(&temp, &binary).and_then(|()| {
            fs::rename(&temp, &layer).at(Step::ToolsLayer, &layer)?;
            files::sync_dir(image_dir).at(Step::ToolsLayer, image_dir)
        });
        if made.is_err() {
            let _ = fs::remove_dir_all(&temp);
        }
        made?;
    }
    drop(lock);
    Ok(layer)
}

fn fill(layer: &Path, binary: &[u8]) -> Result<()> {
    let dir = layer.join(DIRECTORY);
    DirBuilder::new().recursive(true).mode(0o755).create(&dir).at(Step::ToolsLayer, &dir)?;
    let link = layer.join(LINK.0);
    let beside = link.parent().unwrap_or(layer);
    DirBuilder::new().recursive(true).mode(0o755).create(beside).at(Step::ToolsLayer, beside)?;
    std::os::unix::fs::symlink(LINK.1, &link).at(Step::ToolsLayer, &link)?;
    // The umask of the caller must not decide what boxes may read.
    let of_layer = |path: &&Path| path.starts_with(layer);
    for made in dir.ancestors().take_while(of_layer).chain(beside.ancestors().take_while(of_layer)) {
        fs::set_permissions(made, Permissions::from_mode(0o755)).at(Step::ToolsLayer, made)?;
    }
    let path = dir.join(PROGRAM);
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o755).open(&path).at(Step::ToolsLayer, &path)?;
    file.write_all(binary).at(Step::ToolsLayer, &path)?;
    file.set_permissions(Permissions::from_mode(0o755)).at(Step::ToolsLayer, &path)?;
    // One call makes the file and its directories durable.
    rustix::fs::syncfs(&file).at(Step::ToolsLayer, &path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layer_is_made_once_per_binary() {
        let dir = tempfile::tempdir().unwrap();
        let images = dir.path().join("images");
        let init = dir.path().join("icebox-init");
        fs::write(&init, b"first").unwrap();
        let first = tools_layer(&images, &init).unwrap();
        assert_eq!(tools_layer(&images, &init).unwrap(), first);
        let sudo = first.join("usr/local/bin/sudo");
        assert_eq!(fs::read(&sudo).unwrap(), b"first");
        assert_eq!(fs::read(first.join("usr/bin/sudo")).unwrap(), b"first");
        for path in [sudo.as_path(), &first, &first.join("usr/local"), &first.join("usr/bin")] {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o7777, 0o755, "{}", path.display());
        }
        fs::write(&init, b"second").unwrap();
        assert_ne!(tools_layer(&images, &init).unwrap(), first);
        assert_eq!(fs::read(&sudo).unwrap(), b"first");
    }
}
