//! What is compared: the files of an image, and its configuration.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{lgetxattr, llistxattr};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

/// Keys of a configuration that are compared; others are facts of the builder.
const KEYS: [&str; 12] = [
    "User",
    "Env",
    "Cmd",
    "Entrypoint",
    "WorkingDir",
    "Labels",
    "ExposedPorts",
    "Volumes",
    "StopSignal",
    "Healthcheck",
    "Shell",
    "OnBuild",
];
const IMAGE_KEYS: [&str; 3] = ["architecture", "os", "author"];
/// The label that buildah adds.
const LABEL_OF_BUILDAH: &str = "io.buildah.version";
const XATTR_BYTES_MAX: usize = 64 * 1024;

/// A file: all that matters of it but its time.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Shown(String);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The files of layers on top of each other, the topmost first, as the kernel shows them.
pub(crate) fn of_layers(layers: &[PathBuf], nothing: &Path) -> BTreeMap<String, Shown> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).expect("an overlay");
    // Without an upper layer there must be two lower ones.
    for layer in layers.iter().map(PathBuf::as_path).chain([nothing]) {
        fsconfig_set_string(&context, "lowerdir+", layer).expect("a layer");
    }
    fsconfig_create(&context).expect("an overlay of the layers");
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY).expect("a mount");
    of_dir(Path::new(&format!("/proc/self/fd/{}/.", mount.as_raw_fd())))
}

/// The files of a directory.
pub(crate) fn of_dir(root: &Path) -> BTreeMap<String, Shown> {
    let mut found = BTreeMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(relative) = todo.pop() {
        let at = root.join(&relative);
        let facts = fs::symlink_metadata(&at).expect("a file of the tree");
        if facts.is_dir() {
            let names = fs::read_dir(&at).expect("a directory");
            todo.extend(names.map(|entry| relative.join(entry.expect("an entry").file_name())));
        }
        if !relative.as_os_str().is_empty() {
            let path = format!("/{}", String::from_utf8_lossy(relative.as_os_str().as_bytes()).escape_debug());
            found.insert(path, show(&at, &facts));
        }
    }
    found
}

fn show(at: &Path, facts: &fs::Metadata) -> Shown {
    let owner = format!("{}:{}", facts.uid(), facts.gid());
    let mode = facts.mode() & 0o7777;
    let kind = facts.file_type();
    let mut text = if kind.is_symlink() {
        return Shown(format!("link {owner} to {}", fs::read_link(at).expect("a link").display()));
    } else if kind.is_dir() {
        format!("dir {mode:o} {owner}")
    } else if kind.is_file() {
        let bytes = fs::read(at).expect("a file");
        let digest = Sha256::digest(&bytes);
        format!("file {mode:o} {owner} {} {:02x}{:02x}{:02x}", bytes.len(), digest[0], digest[1], digest[2])
    } else if kind.is_fifo() {
        format!("fifo {mode:o} {owner}")
    } else {
        format!("other {mode:o} {owner} {}", facts.rdev())
    };
    let mut list = vec![0_u8; XATTR_BYTES_MAX];
    let length = llistxattr(at, &mut list).expect("attributes");
    let mut names: Vec<&[u8]> = list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    names.sort();
    for name in names.into_iter().filter(|name| !name.starts_with(b"trusted.overlay.")) {
        let name = std::ffi::OsStr::from_bytes(name);
        let mut value = vec![0_u8; XATTR_BYTES_MAX];
        let length = lgetxattr(at, name, &mut value).expect("an attribute");
        text.push_str(&format!(" {}={:x?}", name.display(), &value[..length]));
    }
    Shown(text)
}

/// The parts of the document of an image that are compared. What is empty is not there.
pub(crate) fn config(image: &Value) -> BTreeMap<String, Value> {
    let mut config: Map<String, Value> = image["config"].as_object().cloned().unwrap_or_default();
    if let Some(Value::Object(labels)) = config.get_mut("Labels") {
        labels.remove(LABEL_OF_BUILDAH);
    }
    let inner = KEYS.iter().filter_map(|key| Some((*key, config.remove(*key)?)));
    let outer = IMAGE_KEYS.iter().map(|key| (*key, image[*key].clone()));
    inner.chain(outer).filter(|(_, value)| !is_empty(value)).map(|(key, value)| (key.to_owned(), value)).collect()
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}
