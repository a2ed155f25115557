//! Where things are: the workspace, what cargo builds, what a running Icebox uses.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Cause, Error, Result};
use crate::run;

/// Where base images are kept by default; shared by every instance and by the tests.
pub(crate) const IMAGE_DIR: &str = "/var/lib/icebox/images";

/// The workspace and its target directory.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    /// The workspace's root.
    pub(crate) root: PathBuf,
    /// Cargo's target directory.
    pub(crate) target: PathBuf,
}

impl Places {
    /// Asks cargo, so that its configuration and environment count.
    pub(crate) fn find() -> Result<Places> {
        // xtask is one directory below the root.
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_owned();
        let mut command = cargo(&root);
        let text = run::quiet(command.args(["metadata", "--no-deps", "--offline", "--format-version", "1"]))?;
        let target = serde_json::from_str::<serde_json::Value>(&text)
            .ok()
            .and_then(|value| value["target_directory"].as_str().map(PathBuf::from))
            .ok_or_else(|| {
                let why = "there is no target_directory in it".to_owned();
                Error::new("read", "the answer of cargo metadata", Cause::Unexpected(why))
            })?;
        Ok(Places { root, target })
    }

    /// A cargo that works in the workspace.
    pub(crate) fn cargo(&self) -> Command {
        cargo(&self.root)
    }

    /// The finished binaries, all in one directory: programs find each other there.
    pub(crate) fn bin(&self) -> PathBuf {
        self.target.join("icebox/bin")
    }

    /// The public clients that the tests drive.
    pub(crate) fn sdk(&self) -> PathBuf {
        self.target.join("sdk")
    }
}

/// The cargo that runs us, so that the toolchain is the same.
fn cargo(root: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    command
}

/// The directory of base images: `ICEBOX_IMAGE_DIR`, else the default.
pub(crate) fn image_dir() -> PathBuf {
    std::env::var_os("ICEBOX_IMAGE_DIR").filter(|dir| !dir.is_empty()).map_or_else(|| IMAGE_DIR.into(), PathBuf::from)
}
