//! What COPY, ADD and WORKDIR change, as the entries of a layer.
//!
//! The layer is made from the files themselves and the tree of the image below it; nothing is mounted and nothing runs.
//! The rules of the destination are buildkit's: a directory source gives its content, a file goes into a destination that
//! ends with a slash or is a directory, links on the way to the destination are followed in the image.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::chmod::Chmod;
use crate::error::Fault;
use crate::ignore::Ignore;
use crate::owner::Owner;
use crate::tree::{Kind, Node, Tree, glob, resolve, resolve_by, walk};

/// Mode of directories that are made on the way.
const DIR_MODE: u32 = 0o755;
/// Names with this prefix mean deletions in the archive of a layer.
const WHITEOUT: &[u8] = b".wh.";

/// Where the content of a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// There is none: a directory or a link.
    None,
    /// Here.
    Bytes(Vec<u8>),
    /// In the source with this number.
    Source(usize, PathBuf),
    /// In the spool file, from this offset on.
    Spool(u64),
    /// Another name of this file of the same layer.
    Link(PathBuf),
}

/// An entry of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// What it is.
    pub node: Node,
    /// Its content.
    pub content: Content,
}

/// The entries of a layer above the tree `base`.
pub struct Changes<'a> {
    pub(crate) base: &'a dyn Tree,
    pub(crate) items: BTreeMap<PathBuf, Item>,
    now: i64,
}

/// How files are copied.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rules {
    pub(crate) owner: Option<Owner>,
    pub(crate) chmod: Option<Chmod>,
    pub(crate) exclude: Ignore,
    pub(crate) parents: bool,
}

impl Rules {
    fn apply(&self, mut node: Node) -> Node {
        if let Some(owner) = self.owner {
            (node.uid, node.gid) = (owner.uid, owner.gid);
        }
        if let Some(chmod) = &self.chmod
            && !matches!(node.kind, Kind::Symlink(_))
        {
            node.mode = chmod.apply(node.mode, node.kind == Kind::Dir);
        }
        node
    }
}

impl<'a> Changes<'a> {
    /// No changes yet. New directories get the time `now`, in seconds since 1970.
    #[must_use]
    pub fn new(base: &'a dyn Tree, now: i64) -> Self {
        Self { base, items: BTreeMap::new(), now }
    }

    /// True if nothing is changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// What is at a path now.
    pub(crate) fn node(&self, path: &Path) -> io::Result<Option<Node>> {
        match self.items.get(path) {
            Some(item) => Ok(Some(item.node.clone())),
            // The root is there in an empty image, too.
            None if path == Path::new("/") => Ok(self.base.node(path)?.or_else(|| Some(self.directory()))),
            None => self.base.node(path),
        }
    }

    fn directory(&self) -> Node {
        Node { kind: Kind::Dir, mode: DIR_MODE, uid: 0, gid: 0, mtime: self.now, xattrs: Vec::new() }
    }

    /// The path to which a path of the image leads.
    pub(crate) fn resolve(&self, path: &Path, last: bool) -> io::Result<PathBuf> {
        resolve_by(&|at| self.node(at), path, last)
    }

    fn is_dir(&self, path: &Path) -> io::Result<bool> {
        Ok(matches!(self.node(path)?, Some(Node { kind: Kind::Dir, .. })))
    }

    /// Makes the directories of a resolved path that do not exist. They get the owner of what is copied, and a mode of their own.
    pub(crate) fn make_dirs(&mut self, path: &Path, rules: &Rules) -> Result<(), Fault> {
        let mut missing = Vec::new();
        for at in path.ancestors() {
            match self.node(at)? {
                Some(Node { kind: Kind::Dir, .. }) => break,
                Some(_) => return Err(Fault::new(format!("{} is not a directory in the image", at.display()))),
                None => missing.push(at.to_owned()),
            }
        }
        for at in missing.into_iter().rev() {
            let mut node = self.directory();
            if let Some(owner) = rules.owner {
                (node.uid, node.gid) = (owner.uid, owner.gid);
            }
            self.put(at, Item { node, content: Content::None })?;
        }
        Ok(())
    }

    /// WORKDIR: the directory exists, and belongs to `owner` if it is new.
    pub(crate) fn workdir(&mut self, path: &str, owner: Owner) -> Result<(), Fault> {
        let path = self.resolve(Path::new(path), true)?;
        self.make_dirs(&path, &Rules { owner: Some(owner), ..Rules::default() })
    }

    /// Enters an item at a resolved path.
    pub(crate) fn put(&mut self, path: PathBuf, item: Item) -> Result<(), Fault> {
        let name = path.file_name().unwrap_or_default().as_bytes();
        if name.starts_with(WHITEOUT) {
            let what = format!("{} cannot be in an image: names that begin with .wh. mean deletions", path.display());
            return Err(Fault::instead(what, "leave it out with .dockerignore or --exclude"));
        }
        let is_dir = item.node.kind == Kind::Dir;
        match self.node(&path)? {
            Some(old) if old.kind == Kind::Dir && !is_dir => {
                return Err(Fault::new(format!("a file cannot replace the directory {}", path.display())));
            }
            Some(old) if old.kind != Kind::Dir && is_dir => {
                return Err(Fault::instead(
                    format!("a directory cannot replace the file or link {}", path.display()),
                    "copy its content to the path to which the link leads",
                ));
            }
            _ => {}
        }
        self.items.insert(path, item);
        Ok(())
    }

    /// The place of a file with `name` for a destination as it is written.
    pub(crate) fn place(&mut self, dest: &str, name: &Path, rules: &Rules) -> Result<PathBuf, Fault> {
        let resolved = self.prepare(dest, rules)?;
        if self.is_dir(&resolved)? { Ok(self.resolve_child(&resolved, name)?) } else { Ok(resolved) }
    }

    fn resolve_child(&self, dir: &Path, name: &Path) -> io::Result<PathBuf> {
        self.resolve(&dir.join(name), false)
    }

    /// Resolves a destination and makes what must exist before anything is copied to it.
    pub(crate) fn prepare(&mut self, dest: &str, rules: &Rules) -> Result<PathBuf, Fault> {
        let resolved = self.resolve(Path::new(dest), true)?;
        if dest.ends_with('/') {
            self.make_dirs(&resolved, rules)?;
        } else if let Some(parent) = resolved.parent() {
            self.make_dirs(parent, rules)?;
        }
        Ok(resolved)
    }

    /// A file whose content is known.
    pub(crate) fn add_bytes(&mut self, dest: &str, name: &str, bytes: Vec<u8>, rules: &Rules) -> Result<(), Fault> {
        let place = self.place(dest, Path::new(name), rules)?;
        let node = Node {
            kind: Kind::File(bytes.len() as u64),
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: self.now,
            xattrs: Vec::new(),
        };
        self.put(place, Item { node: rules.apply(node), content: Content::Bytes(bytes) })
    }

    /// Copies what matches `pattern` in the source `number`, whose tree is `tree`.
    pub(crate) fn copy(
        &mut self,
        (number, tree): (usize, &dyn Tree),
        pattern: &str,
        dest: &str,
        rules: &Rules,
    ) -> Result<(), Fault> {
        if rules.parents {
            let (base, inner) = pattern.split_once("/./").unwrap_or(("/", pattern));
            let root = glob(tree, base)?.pop().unwrap_or_else(|| "/".into());
            for found in glob(tree, &format!("{base}/{inner}"))? {
                self.copy_with_parents((number, tree), &root, &found, dest, rules)?;
            }
            return Ok(());
        }
        for found in glob(tree, pattern)? {
            self.copy_found((number, tree), &found, dest, rules)?;
        }
        Ok(())
    }

    /// Copies a file, or the content of a directory.
    pub(crate) fn copy_found(
        &mut self,
        (number, tree): (usize, &dyn Tree),
        found: &Path,
        dest: &str,
        rules: &Rules,
    ) -> Result<(), Fault> {
        let source = resolve(tree, found, true)?;
        let Some(node) = tree.node(&source)? else { return Ok(()) };
        if node.kind == Kind::Dir {
            // A destination that is new is a copy of the directory itself, with its owner and mode.
            let target = self.prepare(dest, rules)?;
            return self.copy_tree((number, tree), &source, &target, rules);
        }
        let name = found.file_name().map(PathBuf::from).unwrap_or_default();
        if rules.exclude.ignores(&name) {
            return Ok(());
        }
        self.copy_file((number, &source), node, dest, &name, rules)
    }

    /// A file of the source `number` that goes to a destination as it is written.
    pub(crate) fn copy_file(
        &mut self,
        (number, from): (usize, &Path),
        node: Node,
        dest: &str,
        name: &Path,
        rules: &Rules,
    ) -> Result<(), Fault> {
        let place = self.place(dest, name, rules)?;
        self.copy_one(number, from, node, place, rules)
    }

    fn copy_with_parents(
        &mut self,
        (number, tree): (usize, &dyn Tree),
        root: &Path,
        found: &Path,
        dest: &str,
        rules: &Rules,
    ) -> Result<(), Fault> {
        let target = self.prepare(&format!("{}/", dest.trim_end_matches('/')), rules)?;
        let relative = found.strip_prefix(root).unwrap_or(found).to_owned();
        let above: Vec<&Path> = relative.ancestors().skip(1).filter(|part| !part.as_os_str().is_empty()).collect();
        for part in above.into_iter().rev() {
            let Some(node) = tree.node(&resolve(tree, &root.join(part), true)?)? else { continue };
            if self.node(&target.join(part))?.is_none() {
                self.copy_one(number, &root.join(part), node, target.join(part), rules)?;
            }
        }
        self.copy_tree((number, tree), found, &target.join(&relative), rules)
    }

    /// The directory `from` of the only source, `tree`, is at `to` with the owner and mode of `top`.
    pub(crate) fn copy_dir(&mut self, tree: &dyn Tree, from: &Path, to: &Path, top: Node) -> Result<(), Fault> {
        let rules = Rules::default();
        if let Some(parent) = to.parent() {
            self.make_dirs(parent, &rules)?;
        }
        self.put(to.to_owned(), Item { node: top, content: Content::None })?;
        self.copy_tree((0, tree), from, to, &rules)
    }

    /// Copies everything at and below `source` to `target`.
    fn copy_tree(
        &mut self,
        (number, tree): (usize, &dyn Tree),
        source: &Path,
        target: &Path,
        rules: &Rules,
    ) -> Result<(), Fault> {
        let mut fault = None;
        let walked = walk(tree, source, &mut |at, relative, node| {
            let top = relative.as_os_str().is_empty();
            if !top && rules.exclude.prunes(relative) {
                return Ok(false);
            }
            let place = if top { target.to_owned() } else { target.join(relative) };
            // The metadata of a destination that exists stays.
            let keep = top && node.kind == Kind::Dir && self.is_dir(&place)?;
            if keep || (!top && rules.exclude.ignores(relative)) {
                return Ok(true);
            }
            let copied = (|| {
                if let Some(parent) = place.parent() {
                    self.make_dirs(parent, rules)?;
                }
                self.copy_one(number, at, node, place, rules)
            })();
            copied.map(|()| true).map_err(|error| {
                let message = error.what.clone();
                fault = Some(error);
                io::Error::other(message)
            })
        });
        match fault {
            Some(fault) => Err(fault),
            None => Ok(walked?),
        }
    }

    fn copy_one(&mut self, number: usize, from: &Path, node: Node, to: PathBuf, rules: &Rules) -> Result<(), Fault> {
        let content = match node.kind {
            Kind::File(_) => Content::Source(number, from.to_owned()),
            Kind::Dir | Kind::Symlink(_) => Content::None,
            Kind::Other => return Ok(()),
        };
        self.put(to, Item { node: rules.apply(node), content })
    }

    /// All entries in the order of an archive: directories before what is in them, further names of a file last. The
    /// directories of the image on the way are there with their own owner and mode.
    ///
    /// # Errors
    /// The image cannot be read.
    pub fn entries(&self) -> io::Result<Vec<(PathBuf, Item)>> {
        let mut all = BTreeMap::new();
        for (path, item) in &self.items {
            for above in path.ancestors().skip(1) {
                if above == Path::new("/") || self.items.contains_key(above) || all.contains_key(above) {
                    continue;
                }
                if let Some(node) = self.base.node(above)? {
                    all.insert(above.to_owned(), Item { node, content: Content::None });
                }
            }
            all.insert(path.clone(), item.clone());
        }
        let (links, mut entries): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|(_, item)| matches!(item.content, Content::Link(_)));
        entries.extend(links);
        Ok(entries)
    }
}

#[cfg(test)]
#[path = "changes_tests.rs"]
mod tests;
