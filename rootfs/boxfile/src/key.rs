//! Keys of steps: equal keys mean equal results.

use std::fmt;
use std::fmt::Write as _;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::ignore::Ignore;
use crate::tree::{Kind, Tree, walk};

/// The key of a step: of what is below it, of what it does, and of the files that it reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key([u8; 32]);

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Changes with what a step means: keys of earlier versions are not found again.
const VERSION: &str = "icebox-boxfile-1";

/// Makes a key from fields. Each has its length before it, so that no two lists of fields are the same bytes.
pub(crate) struct Hasher(Sha256);

impl Hasher {
    pub(crate) fn new(what: &str) -> Self {
        Self(Sha256::new()).field(VERSION).field(what)
    }

    pub(crate) fn field(mut self, field: impl AsRef<[u8]>) -> Self {
        self.add(field);
        self
    }

    pub(crate) fn add(&mut self, field: impl AsRef<[u8]>) {
        let field = field.as_ref();
        self.0.update((field.len() as u64).to_le_bytes());
        self.0.update(field);
    }

    pub(crate) fn list<'a>(mut self, fields: impl ExactSizeIterator<Item = &'a String>) -> Self {
        self.add((fields.len() as u64).to_le_bytes());
        fields.for_each(|field| self.add(field));
        self
    }

    pub(crate) fn below(self, key: Key) -> Self {
        self.field(key.0)
    }

    pub(crate) fn key(self) -> Key {
        Key(self.0.finalize().into())
    }

    /// The files at and below `path`: names, kinds, modes and contents. Times and owners of a context change nothing.
    pub(crate) fn files(&mut self, tree: &dyn Tree, path: &Path, exclude: &Ignore) -> io::Result<()> {
        walk(tree, path, &mut |at, relative, node| {
            if exclude.prunes(relative) {
                return Ok(false);
            }
            if exclude.ignores(relative) {
                return Ok(true);
            }
            self.add(relative.as_os_str().as_bytes());
            self.add(node.mode.to_le_bytes());
            match &node.kind {
                Kind::File(_) => {
                    self.add("file");
                    self.add(tree.digest(at)?);
                }
                Kind::Dir => self.add("dir"),
                Kind::Symlink(target) => {
                    self.add("link");
                    self.add(target.as_os_str().as_bytes());
                }
                Kind::Other => self.add("other"),
            }
            Ok(true)
        })
    }
}

/// `sha256:` and hexadecimal digits.
#[must_use]
pub fn digest_text(digest: &[u8]) -> String {
    let mut text = String::from("sha256:");
    for byte in digest {
        let _ = write!(text, "{byte:02x}");
    }
    text
}
