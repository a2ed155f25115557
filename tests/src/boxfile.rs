//! Builds from Boxfiles, as the operator makes them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use icebox_rootfs::images::{Image, Images};

use crate::{Daemon, wait_until};

/// The beginning of a Boxfile: an image with a shell.
pub const SHELL: &str =
    "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n";

/// A context with this Boxfile, busybox, and a few files.
#[must_use]
pub fn context(daemon: &Daemon, name: &str, boxfile: &str) -> PathBuf {
    let dir = daemon.run_dir().join(name);
    fs::create_dir_all(dir.join("src")).expect("a context");
    fs::copy("/usr/bin/busybox", dir.join("busybox")).expect("busybox-static is installed");
    fs::write(dir.join("src/file"), "content").expect("a file");
    fs::write(dir.join("left-out"), "x").expect("a file");
    fs::write(dir.join(".dockerignore"), "left-out\n").expect("patterns");
    fs::write(dir.join("Boxfile"), boxfile).expect("a Boxfile");
    dir
}

/// Builds; gives the result and what was said.
#[must_use]
pub fn build(daemon: &Daemon, context: &Path, more: &[&str]) -> (Output, String) {
    let mut args = vec!["image", "build"];
    args.extend(more);
    let context = context.to_str().expect("UTF-8");
    args.push(context);
    let output = daemon.icebox_as_operator(&args).output().expect("icebox image build ends");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, said)
}

/// Builds, which must succeed; gives the id and what was said.
#[must_use]
pub fn built(daemon: &Daemon, context: &Path, more: &[&str]) -> (String, String) {
    let (output, said) = build(daemon, context, more);
    assert!(output.status.success(), "{said}\n{}", daemon.log_tail());
    (String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned(), said)
}

/// A file of an image: the topmost layer that has it.
#[must_use]
pub fn read(images: &Images, image: &Image, path: &str) -> String {
    let dirs = images.layer_dirs(image).expect("layers");
    let found = dirs.iter().map(|dir| dir.join(path)).find(|path| path.exists());
    fs::read_to_string(found.unwrap_or_else(|| panic!("{path} is in no layer"))).expect("text")
}

/// No box, no file and no pin of a build is left.
pub fn no_box_is_left(daemon: &Daemon) {
    // A client that is gone does not wait for the end of its build.
    wait_until(Duration::from_secs(60), "the end of the build", || {
        let left = fs::read_dir(daemon.data_dir().join("builds")).expect("the folder of builds").flatten();
        daemon.api().list().is_empty()
            && left
                .into_iter()
                .all(|entry| ["cache", "mounts", "cache.urls"].contains(&entry.file_name().to_string_lossy().as_ref()))
    });
    let pins = Images::open(&daemon.images()).expect("the store");
    for image in pins.list().expect("images") {
        assert!(pins.pinned_by(&image.id).expect("pins").is_empty(), "{} stays in use", image.id);
    }
}
