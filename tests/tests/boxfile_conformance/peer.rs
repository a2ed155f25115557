//! buildah, with a store of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nix::mount::{MntFlags, umount2};
use serde_json::Value;

/// buildah.
pub(crate) struct Buildah {
    root: PathBuf,
    run: PathBuf,
}

impl Buildah {
    /// A store in `home`. Podman takes a run directory with a short path only.
    pub(crate) fn new(home: &Path, run: &Path) -> Self {
        let (root, run) = (home.join("buildah"), run.join("buildah"));
        for dir in [&root, &run] {
            fs::create_dir_all(dir).expect("a directory");
        }
        Self { root, run }
    }

    /// Runs buildah, or podman on the same store.
    fn call(&self, program: &str, args: &[&str]) -> Result<Output, String> {
        let mut command = Command::new(program);
        command.arg("--root").arg(&self.root).arg("--runroot").arg(&self.run).args(["--storage-driver", "overlay"]);
        let output = command.args(args).output().expect("buildah and podman are installed");
        if output.status.success() {
            return Ok(output);
        }
        Err(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
    }

    /// Builds an image. The format is Docker's, since OCI's has no health check and no shell.
    pub(crate) fn build(&self, file: &Path, context: &Path, tag: &str, more: &[String]) -> Result<(), String> {
        let mut args = vec!["build", "--isolation=chroot", "--format=docker", "--pull=never", "-t", tag];
        args.extend(more.iter().map(String::as_str));
        args.extend(["-f", file.to_str().expect("UTF-8"), context.to_str().expect("UTF-8")]);
        self.call("buildah", &args).map(drop)
    }

    /// The files of an image, as `read` sees them, and its configuration.
    pub(crate) fn look_into<T>(&self, tag: &str, read: impl Fn(&Path) -> T) -> Result<(T, Value), String> {
        let inspected = self.call("buildah", &["inspect", "--type", "image", tag]).and_then(said)?;
        let config: Value = serde_json::from_str(&inspected).map_err(|error| error.to_string())?;
        // buildah would run what ONBUILD says first.
        let found = self.call("podman", &["image", "mount", tag]).and_then(said);
        let found = found.map(|at| read(Path::new(&at)));
        self.call("podman", &["image", "unmount", tag])?;
        Ok((found?, config["Docker"].clone()))
    }
}

impl Drop for Buildah {
    /// Podman mounts its store on itself, and a mount stays where a build of buildah has failed.
    fn drop(&mut self) {
        let table = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
        let left: Vec<&Path> = points.filter(|point| point.starts_with(&self.root)).collect();
        for point in left.into_iter().rev() {
            if let Err(cause) = umount2(point, MntFlags::MNT_DETACH) {
                eprintln!("cannot unmount {}: {cause}", point.display());
            }
        }
    }
}

fn said(output: Output) -> Result<String, String> {
    Ok(String::from_utf8(output.stdout).map_err(|error| error.to_string())?.trim().to_owned())
}
