//! A tree of files that is read without being mounted: the context of a build, or the root of an image.
//!
//! Paths are absolute within the tree. Symbolic links are followed here, inside the tree, and never by the kernel.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::pattern;

/// Most symbolic links on the way to a file, as in the kernel.
const LINKS_MAX: usize = 40;
/// Deepest directory that is copied.
const DEPTH_MAX: usize = 256;

/// The kind of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A regular file with its size.
    File(u64),
    /// A directory.
    Dir,
    /// A symbolic link with its target.
    Symlink(PathBuf),
    /// A device, a FIFO or a socket. COPY leaves them out.
    Other,
}

/// What is known about a file without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its kind.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Its owner, as the image says.
    pub uid: u32,
    /// Its group, as the image says.
    pub gid: u32,
    /// When it was changed last, in seconds since 1970.
    pub mtime: i64,
    /// Extended attributes.
    pub xattrs: Vec<(OsString, Vec<u8>)>,
}

/// A tree of files.
pub trait Tree {
    /// What is at `path`; no link is followed. `None` if there is nothing.
    ///
    /// # Errors
    /// The tree cannot be read.
    fn node(&self, path: &Path) -> io::Result<Option<Node>>;

    /// The names in a directory, sorted.
    ///
    /// # Errors
    /// The tree cannot be read.
    fn names(&self, path: &Path) -> io::Result<Vec<OsString>>;

    /// The content of a file.
    ///
    /// # Errors
    /// The file cannot be opened.
    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + '_>>;

    /// SHA-256 of a file.
    ///
    /// # Errors
    /// The file cannot be read.
    fn digest(&self, path: &Path) -> io::Result<[u8; 32]> {
        let mut hash = Sha256::new();
        io::copy(&mut self.open(path)?, &mut hash)?;
        Ok(hash.finalize().into())
    }
}

/// The tree without files.
#[derive(Debug, Clone, Copy)]
pub struct Nothing;

impl Tree for Nothing {
    fn node(&self, _: &Path) -> io::Result<Option<Node>> {
        Ok(None)
    }
    fn names(&self, _: &Path) -> io::Result<Vec<OsString>> {
        Ok(Vec::new())
    }
    fn open(&self, _: &Path) -> io::Result<Box<dyn Read + '_>> {
        Err(io::ErrorKind::NotFound.into())
    }
}

/// The path to which `path` leads. Every link on the way is followed; the last component only if `last`. What does not
/// exist is taken as it is written.
///
/// # Errors
/// The tree cannot be read, or there are too many links.
pub fn resolve(tree: &dyn Tree, path: &Path, last: bool) -> io::Result<PathBuf> {
    resolve_by(&|at| tree.node(at), path, last)
}

/// [`resolve`] in what `node` finds.
pub(crate) fn resolve_by(
    node: &dyn Fn(&Path) -> io::Result<Option<Node>>,
    path: &Path,
    last: bool,
) -> io::Result<PathBuf> {
    let mut todo: VecDeque<OsString> = parts(path);
    let mut done = PathBuf::from("/");
    let mut links = 0;
    while let Some(part) = todo.pop_front() {
        if part == ".." {
            done.pop();
            continue;
        }
        done.push(&part);
        if todo.is_empty() && !last {
            break;
        }
        if let Some(Node { kind: Kind::Symlink(target), .. }) = node(&done)? {
            links += 1;
            if links > LINKS_MAX {
                return Err(io::Error::other(format!("{} has too many symbolic links", path.display())));
            }
            done.pop();
            if target.is_absolute() {
                done = PathBuf::from("/");
            }
            for part in parts(&target).into_iter().rev() {
                todo.push_front(part);
            }
        }
    }
    Ok(done)
}

fn parts(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect()
}

/// The paths that match `pattern`, sorted. A path without wildcards is itself if it exists.
pub(crate) fn glob(tree: &dyn Tree, pattern: &str) -> io::Result<Vec<PathBuf>> {
    let mut found = vec![PathBuf::from("/")];
    for part in parts(Path::new(pattern)) {
        let text = part.to_string_lossy();
        let mut next = Vec::new();
        for dir in found {
            if part == ".." {
                next.push(dir.parent().unwrap_or(&dir).to_owned());
                continue;
            }
            let dir = resolve(tree, &dir, true)?;
            if !pattern::has_wildcards(&text) {
                let path = dir.join(unescape(&part));
                if tree.node(&path)?.is_some() {
                    next.push(path);
                }
                continue;
            }
            if !matches!(tree.node(&dir)?, Some(Node { kind: Kind::Dir, .. })) {
                continue;
            }
            for name in tree.names(&dir)? {
                let matches = pattern::component(part.as_bytes(), name.as_bytes());
                if matches.map_err(|fault| io::Error::new(io::ErrorKind::InvalidInput, fault.what))? {
                    next.push(dir.join(name));
                }
            }
        }
        found = next;
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// A component without the backslashes that escape its characters.
fn unescape(part: &OsStr) -> OsString {
    let mut bytes = Vec::with_capacity(part.len());
    let mut escaped = false;
    for byte in part.as_bytes() {
        if *byte == b'\\' && !escaped {
            escaped = true;
        } else {
            bytes.push(*byte);
            escaped = false;
        }
    }
    OsStr::from_bytes(&bytes).to_owned()
}

/// Calls `each` with every file at and below `path` (a directory before its content), by its path relative to `path`. What is below
/// a directory is left out if `each` answers `false`.
pub(crate) fn walk(
    tree: &dyn Tree,
    path: &Path,
    each: &mut dyn FnMut(&Path, &Path, Node) -> io::Result<bool>,
) -> io::Result<()> {
    let mut todo = vec![(path.to_owned(), PathBuf::new(), 0)];
    while let Some((at, relative, depth)) = todo.pop() {
        let Some(node) = tree.node(&at)? else { continue };
        let is_dir = node.kind == Kind::Dir;
        if depth > DEPTH_MAX {
            return Err(io::Error::other(format!("{} is more than {DEPTH_MAX} directories deep", at.display())));
        }
        if each(&at, &relative, node)? && is_dir {
            for name in tree.names(&at)?.into_iter().rev() {
                todo.push((at.join(&name), relative.join(&name), depth + 1));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// A tree in memory.
    #[derive(Debug, Default, Clone)]
    pub(crate) struct Mem(BTreeMap<PathBuf, (Node, Vec<u8>)>);

    impl Mem {
        /// `path/` is a directory, `path>target` a link, `path=content` a file, each with an optional `@mode`.
        pub(crate) fn of(list: &[&str]) -> Self {
            let mut mem = Self::default();
            mem.put("/", Kind::Dir, 0o755, b"");
            for item in list {
                let (item, mode) = item.split_once('@').map_or((*item, None), |(item, mode)| (item, Some(mode)));
                let mode = mode.map(|mode| u32::from_str_radix(mode, 8).expect("octal"));
                if let Some((path, content)) = item.split_once('=') {
                    mem.put(path, Kind::File(content.len() as u64), mode.unwrap_or(0o644), content.as_bytes());
                } else if let Some((path, target)) = item.split_once('>') {
                    mem.put(path, Kind::Symlink(target.into()), 0o777, b"");
                } else {
                    mem.put(item.trim_end_matches('/'), Kind::Dir, mode.unwrap_or(0o755), b"");
                }
            }
            mem
        }

        fn put(&mut self, path: &str, kind: Kind, mode: u32, content: &[u8]) {
            let path = Path::new("/").join(path);
            for parent in path.ancestors().skip(1) {
                let dir = Node { kind: Kind::Dir, mode: 0o755, uid: 0, gid: 0, mtime: 0, xattrs: Vec::new() };
                self.0.entry(parent.to_owned()).or_insert((dir, Vec::new()));
            }
            let node = Node { kind, mode, uid: 0, gid: 0, mtime: 1, xattrs: Vec::new() };
            self.0.insert(path, (node, content.to_vec()));
        }
    }

    impl Tree for Mem {
        fn node(&self, path: &Path) -> io::Result<Option<Node>> {
            Ok(self.0.get(path).map(|(node, _)| node.clone()))
        }
        fn names(&self, path: &Path) -> io::Result<Vec<OsString>> {
            let inside = self.0.keys().filter(|known| known.parent() == Some(path));
            Ok(inside.filter_map(|known| known.file_name()).map(OsStr::to_owned).collect())
        }
        fn open(&self, path: &Path) -> io::Result<Box<dyn Read + '_>> {
            let (_, content) = self.0.get(path).ok_or(io::ErrorKind::NotFound)?;
            Ok(Box::new(content.as_slice()))
        }
    }

    #[test]
    fn links_are_followed_inside_the_tree() {
        let tree = Mem::of(&["usr/bin/sh=x", "bin>usr/bin", "a/b/c=1", "up>../../../a", "abs>/a/b", "loop>loop"]);
        for (path, wanted) in [
            ("/bin/sh", "/usr/bin/sh"),
            ("/up/b/c", "/a/b/c"),
            ("/abs/c", "/a/b/c"),
            ("/abs/../x", "/a/x"),
            ("/new/dir", "/new/dir"),
            ("/../..", "/"),
        ] {
            assert_eq!(resolve(&tree, Path::new(path), true).expect(path), Path::new(wanted), "{path}");
        }
        assert_eq!(resolve(&tree, Path::new("/bin"), false).expect("a link"), Path::new("/bin"));
        assert!(resolve(&tree, Path::new("/loop/x"), true).is_err());
    }

    #[test]
    fn patterns_find_files() {
        let tree = Mem::of(&["a.txt=1", "b.txt=2", "c.md=3", "d/e.txt=4", "d/f.txt=5", "x[0]=6", "l>d"]);
        for (pattern, wanted) in [
            ("*.txt", vec!["/a.txt", "/b.txt"]),
            ("d/*", vec!["/d/e.txt", "/d/f.txt"]),
            ("*/e.txt", vec!["/d/e.txt"]),
            ("l/e.txt", vec!["/d/e.txt"]),
            ("a.txt", vec!["/a.txt"]),
            ("/a.txt", vec!["/a.txt"]),
            ("./d/../a.txt", vec!["/a.txt"]),
            ("x[[]0]", vec!["/x[0]"]),
            ("none", vec![]),
            ("none/*", vec![]),
            (".", vec!["/"]),
        ] {
            let found = glob(&tree, pattern).expect(pattern);
            assert!(
                found.contains(&PathBuf::from(*wanted.first().unwrap_or(&"/"))) || wanted.is_empty(),
                "{pattern} {found:?}"
            );
            let wanted: Vec<PathBuf> = wanted.into_iter().map(PathBuf::from).collect();
            if pattern != "*/e.txt" {
                assert_eq!(found, wanted, "{pattern}");
            }
        }
    }
}
