//! The images of runtimes, which take minutes to build and are kept between runs of tests.

use std::fs::{self, File};
use std::path::PathBuf;

use nix::fcntl::{Flock, FlockArg};
use serde_json::Value;

use crate::daemon::{Daemon, image_dir};

/// The image directory of tests with runtimes, beside that of all tests: there a runtime is an image of its own, and what its
/// name means to other tests does not depend on what was built before.
#[must_use]
pub fn images_of_runtimes() -> PathBuf {
    let dir = image_dir().canonicalize().expect("an absolute path");
    dir.with_file_name("images-of-tests")
}

/// Builds a runtime, if its image is not there or is of another Boxfile or base image. It uses the machine's own way to
/// packages. Waits for another test that does the same.
pub fn have(runtime: &str) {
    let dir = images_of_runtimes();
    fs::create_dir_all(&dir).expect("a directory");
    let lock = File::create(dir.join("lock-of-tests")).expect("a lock");
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).expect("lock");
    let daemon = Daemon::start().with_images(&dir);
    if state(&daemon, runtime) == "ready" {
        return;
    }
    let output = daemon.icebox_as_operator(&["image", "build", "--runtime", runtime]).output().expect("icebox ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{runtime}: {said}");
    println!("{said}");
    assert_eq!(state(&daemon, runtime), "ready");
    // Of the image that it replaces nothing is needed any more.
    let pruned = daemon.icebox_as_operator(&["image", "prune"]).status().expect("icebox ends");
    assert!(pruned.success());
}

/// What is known of a runtime.
#[must_use]
pub fn facts(daemon: &Daemon, runtime: &str) -> Value {
    let known = daemon.api().get("/v1/runtimes").ok();
    let found = known.as_array().expect("a list").iter().find(|known| known["name"] == runtime).cloned();
    found.unwrap_or_else(|| panic!("{runtime} is not in {known}"))
}

/// What a box that asks for this runtime gets.
#[must_use]
pub fn state(daemon: &Daemon, runtime: &str) -> String {
    let facts = facts(daemon, runtime);
    facts["state"].as_str().unwrap_or_else(|| panic!("{facts}")).to_owned()
}
