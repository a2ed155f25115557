//! The files of layers on top of each other, as overlayfs shows them, read without mounting them.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use icebox_boxfile::{Kind, Node, Tree};
use rustix::fs::{OFlags, lgetxattr, llistxattr};

/// The attribute by which overlayfs hides what lower layers have in a directory.
pub(super) const OPAQUE: &str = "trusted.overlay.opaque";
/// Longest list of attributes, and longest attribute (limits of Linux).
const XATTR_BYTES_MAX: usize = 64 * 1024;

/// Layers, the topmost first. Their files do not change.
#[derive(Debug)]
pub(super) struct Layers(Vec<PathBuf>);

/// What one layer says about a path.
pub(super) enum Found {
    /// It has this.
    Here(PathBuf, fs::Metadata),
    /// Nothing; the layers below decide.
    Below,
    /// It hides what is below.
    Hidden,
}

impl Layers {
    pub(super) fn new(dirs: Vec<PathBuf>) -> Self {
        Self(dirs)
    }

    /// What is at a path, and the layers below it that may add to a directory.
    fn find(&self, path: &Path) -> io::Result<Option<(usize, PathBuf, fs::Metadata)>> {
        for (number, layer) in self.0.iter().enumerate() {
            match in_layer(layer, path)? {
                Found::Here(at, facts) => return Ok(Some((number, at, facts))),
                Found::Hidden => return Ok(None),
                Found::Below => {}
            }
        }
        Ok(None)
    }
}

/// Looks a path up in one layer, component by component: no link is followed.
pub(super) fn in_layer(layer: &Path, path: &Path) -> io::Result<Found> {
    let mut at = layer.to_owned();
    let mut opaque = false;
    let parts: Vec<_> = path.strip_prefix("/").unwrap_or(path).components().collect();
    let Some(last) = parts.len().checked_sub(1) else { return Ok(Found::Here(at.clone(), fs::symlink_metadata(&at)?)) };
    for (number, part) in parts.iter().enumerate() {
        at.push(part);
        let facts = match fs::symlink_metadata(&at) {
            Ok(facts) => facts,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(if opaque { Found::Hidden } else { Found::Below });
            }
            Err(error) => return Err(error),
        };
        if is_whiteout(&facts) {
            return Ok(Found::Hidden);
        }
        if number == last {
            return Ok(Found::Here(at, facts));
        }
        if !facts.is_dir() {
            return Ok(Found::Hidden);
        }
        opaque |= is_opaque(&at);
    }
    Ok(Found::Below)
}

fn is_whiteout(facts: &fs::Metadata) -> bool {
    facts.file_type().is_char_device() && facts.rdev() == 0
}

fn is_opaque(dir: &Path) -> bool {
    let mut value = [0_u8; 1];
    lgetxattr(dir, OPAQUE, &mut value).is_ok_and(|length| length == 1 && value[0] == b'y')
}

/// Attributes that an image carries.
fn xattrs(path: &Path) -> Vec<(OsString, Vec<u8>)> {
    let mut list = vec![0_u8; XATTR_BYTES_MAX];
    let Ok(length) = llistxattr(path, &mut list) else { return Vec::new() };
    let mut found = Vec::new();
    for name in list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if !name.starts_with(b"user.") && name != b"security.capability" {
            continue;
        }
        let mut value = vec![0_u8; XATTR_BYTES_MAX];
        if let Ok(length) = lgetxattr(path, std::ffi::OsStr::from_bytes(name), &mut value) {
            value.truncate(length);
            found.push((std::ffi::OsStr::from_bytes(name).to_owned(), value));
        }
    }
    found.sort();
    found
}

impl Tree for Layers {
    fn node(&self, path: &Path) -> io::Result<Option<Node>> {
        let Some((_, at, facts)) = self.find(path)? else { return Ok(None) };
        let kind = if facts.is_dir() {
            Kind::Dir
        } else if facts.is_file() {
            Kind::File(facts.len())
        } else if facts.is_symlink() {
            Kind::Symlink(fs::read_link(&at)?)
        } else {
            Kind::Other
        };
        let xattrs = if matches!(kind, Kind::File(_) | Kind::Dir) { xattrs(&at) } else { Vec::new() };
        let (mode, uid, gid) = (facts.mode() & 0o7777, facts.uid(), facts.gid());
        Ok(Some(Node { kind, mode, uid, gid, mtime: facts.mtime(), xattrs }))
    }

    fn names(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let (mut names, mut hidden) = (BTreeSet::new(), BTreeSet::new());
        for layer in &self.0 {
            let at = match in_layer(layer, path)? {
                Found::Here(at, facts) if facts.is_dir() => at,
                Found::Here(..) | Found::Hidden => break,
                Found::Below => continue,
            };
            for entry in fs::read_dir(&at)? {
                let entry = entry?;
                let name = entry.file_name();
                if names.contains(&name) || hidden.contains(&name) {
                    continue;
                }
                let whiteout = is_whiteout(&entry.metadata()?);
                if whiteout {
                    hidden.insert(name)
                } else {
                    names.insert(name)
                };
            }
            if is_opaque(&at) {
                break;
            }
        }
        Ok(names.into_iter().collect())
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + '_>> {
        let (_, at, facts) = self.find(path)?.ok_or(io::ErrorKind::NotFound)?;
        if !facts.is_file() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file: File = rustix::fs::open(&at, flags, rustix::fs::Mode::empty())?.into();
        Ok(Box::new(file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, mknodat};

    #[test]
    fn upper_layers_hide_and_replace() {
        let dir = tempfile::tempdir().expect("a directory");
        let layer = |name: &str, files: &[(&str, &str)]| {
            let root = dir.path().join(name);
            fs::create_dir(&root).expect("a layer");
            for (path, text) in files {
                let at = root.join(path);
                fs::create_dir_all(at.parent().expect("a parent")).expect("directories");
                fs::write(&at, text).expect("a file");
            }
            root
        };
        let low = layer("low", &[("a/x", "low x"), ("a/y", "low y"), ("b/z", "z"), ("c/w", "w"), ("f/in", "in")]);
        let high = layer("high", &[("a/x", "high x"), ("c/new", "new"), ("f", "a file now")]);
        mknodat(CWD, high.join("a/y"), FileType::CharacterDevice, Mode::empty(), 0).expect("a whiteout");
        mknodat(CWD, high.join("b"), FileType::CharacterDevice, Mode::empty(), 0).expect("a whiteout");
        lsetxattr(high.join("c"), OPAQUE, b"y", XattrFlags::empty()).expect("opaque");
        std::os::unix::fs::symlink("/etc/passwd", high.join("link")).expect("a link");
        let layers = Layers::new(vec![high, low]);
        let names = |path: &str| layers.names(Path::new(path)).expect("names");
        assert_eq!(names("/"), ["a", "c", "f", "link"]);
        assert_eq!(names("/a"), ["x"]);
        assert_eq!(names("/c"), ["new"]);
        let has = |path: &str| layers.node(Path::new(path)).expect("a look").is_some();
        for (path, wanted) in
            [("/a/x", true), ("/a/y", false), ("/b/z", false), ("/c/w", false), ("/f/in", false), ("/link/x", false)]
        {
            assert_eq!(has(path), wanted, "{path}");
        }
        let mut text = String::new();
        layers.open(Path::new("/a/x")).expect("a file").read_to_string(&mut text).expect("text");
        assert_eq!(text, "high x");
        assert!(layers.open(Path::new("/link")).is_err());
    }
}
