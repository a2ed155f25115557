//! The store of images and its unpacker. Needs root: owners, whiteouts and attributes of overlayfs are made.

mod corpus;
mod layers;
mod store;
mod tars;
mod tools;
mod tree;

use icebox_rootfs::images::Images;

/// A store in a directory of its own.
fn store() -> (tempfile::TempDir, Images) {
    assert!(rustix::process::geteuid().is_root(), "this test makes files of several owners: run it as root");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let images = Images::open(&dir.path().join("images")).expect("a store");
    (dir, images)
}

/// An error with its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
