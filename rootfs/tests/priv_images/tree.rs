//! A directory tree as text, for comparison.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{lgetxattr, llistxattr};
use sha2::{Digest, Sha256};

/// All that a layer has of a tree, by path: kind, owner, mode, time, content or target, attributes, and the number of links.
pub(crate) fn describe(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    walk(root, root, &mut found);
    found
}

fn walk(root: &Path, path: &Path, found: &mut BTreeMap<String, String>) {
    let facts = fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let kind = facts.file_type();
    let what = if kind.is_file() {
        let content = fs::read(path).expect("content");
        format!("file {} bytes {:.12x} links {}", facts.len(), Sha256::digest(content), facts.nlink())
    } else if kind.is_dir() {
        "dir".to_owned()
    } else if kind.is_symlink() {
        format!("link to {}", fs::read_link(path).expect("a target").display())
    } else if kind.is_fifo() {
        "pipe".to_owned()
    } else if kind.is_char_device() {
        format!("char {:x}", facts.rdev())
    } else {
        format!("{kind:?}")
    };
    let line = format!(
        "{what} {:o} {}:{} {}.{:09} {:?}",
        facts.mode() & 0o7777,
        facts.uid(),
        facts.gid(),
        facts.mtime(),
        facts.mtime_nsec(),
        attributes(path)
    );
    let name = path.strip_prefix(root).expect("below the root").as_os_str().to_owned();
    found.insert(name.into_vec().escape_ascii().to_string(), line);
    if kind.is_dir() {
        for entry in fs::read_dir(path).expect("a directory") {
            walk(root, &entry.expect("an entry").path(), found);
        }
    }
}

fn attributes(path: &Path) -> BTreeMap<String, String> {
    let mut list = vec![0; 65536];
    let length = llistxattr(path, &mut list).expect("a list of attributes");
    let names = list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 65536];
            let length =
                lgetxattr(path, CString::new(name).expect("a name").as_c_str(), &mut value).expect("an attribute");
            let name = Path::new(std::ffi::OsStr::from_bytes(name)).display().to_string();
            (name, value[..length].escape_ascii().to_string())
        })
        .collect()
}
