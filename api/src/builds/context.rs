//! The context of a build: the archive that the client sends is indexed and never unpacked.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use icebox_boxfile::{BOXFILE_BYTES_MAX, Ignore, Kind, Node, Tree};
use sha2::{Digest, Sha256};
use tar::{Archive, EntryType};

/// The entry with the Boxfile, if it is not a file of the context.
pub(super) const BOXFILE_ENTRY: &str = ".icebox.boxfile";
/// The file with the patterns of what is left out.
const IGNORE_FILE: &str = ".dockerignore";
/// Most entries.
const ENTRIES_MAX: usize = 1 << 20;
/// Names of a Boxfile, if the client gives none.
const NAMES: [&str; 2] = ["Boxfile", "Dockerfile"];

#[derive(Debug)]
struct Entry {
    node: Node,
    /// Where the content begins in the archive.
    offset: u64,
    digest: [u8; 32],
}

/// A context.
#[derive(Debug)]
pub(super) struct Context {
    file: File,
    entries: BTreeMap<PathBuf, Entry>,
    /// The text of the Boxfile that came beside the context.
    own: Option<String>,
}

impl Context {
    /// Reads the archive in `file`. The error is for the client.
    pub(super) fn read(mut file: File) -> Result<Self, String> {
        let broken = |error: io::Error| format!("the context cannot be read: {error}");
        let mut entries = BTreeMap::new();
        let mut own = None;
        io::Seek::rewind(&mut file).map_err(broken)?;
        let mut archive = Archive::new(io::BufReader::new(file.try_clone().map_err(broken)?));
        for entry in archive.entries().map_err(broken)? {
            let mut entry = entry.map_err(broken)?;
            if entries.len() >= ENTRIES_MAX {
                return Err(format!("the context has more than {ENTRIES_MAX} entries"));
            }
            let name = entry.path().map_err(broken)?.into_owned();
            let Some(path) = inside(&name) else {
                return Err(format!("the context has the path '{}'", name.display()));
            };
            if name == Path::new(BOXFILE_ENTRY) {
                let mut text = String::new();
                entry.take(BOXFILE_BYTES_MAX as u64 + 1).read_to_string(&mut text).map_err(broken)?;
                own = Some(text);
                continue;
            }
            let header = entry.header();
            let kind = match header.entry_type() {
                EntryType::Directory => Kind::Dir,
                EntryType::Regular | EntryType::Continuous => Kind::File(entry.size()),
                EntryType::Symlink => {
                    Kind::Symlink(entry.link_name().map_err(broken)?.unwrap_or_default().into_owned())
                }
                // Another name of a file that is there: the same content.
                EntryType::Link => {
                    let first = entry.link_name().map_err(broken)?.and_then(|first| inside(&first));
                    let Some(known) = first.and_then(|first| entries.get(&first)) else {
                        return Err(format!("the context has a link '{}' to nothing", name.display()));
                    };
                    let Entry { node, offset, digest } = known;
                    let copy = Entry { node: node.clone(), offset: *offset, digest: *digest };
                    entries.insert(path, copy);
                    continue;
                }
                EntryType::GNUSparse => return Err(format!("the context has the sparse file '{}'", name.display())),
                _ => continue,
            };
            let mode = header.mode().map_err(broken)? & 0o7777;
            let mtime = i64::try_from(header.mtime().map_err(broken)?).unwrap_or(0);
            let offset = entry.raw_file_position();
            let mut hash = Sha256::new();
            if matches!(kind, Kind::File(_)) {
                io::copy(&mut entry, &mut hash).map_err(broken)?;
            }
            for above in path.ancestors().skip(1) {
                entries.entry(above.to_owned()).or_insert_with(|| directory(mtime));
            }
            // What the client sends belongs to root in the image.
            let node = Node { kind, mode, uid: 0, gid: 0, mtime, xattrs: Vec::new() };
            entries.insert(path, Entry { node, offset, digest: hash.finalize().into() });
        }
        entries.entry("/".into()).or_insert_with(|| directory(0));
        Ok(Self { file, entries, own })
    }

    /// The Boxfile: its name and its text. Must precede [`Context::ignore`], which may leave it out.
    pub(super) fn boxfile(&mut self, wanted: Option<&str>) -> Result<(String, String), String> {
        if let Some(text) = self.own.take() {
            return Ok((wanted.unwrap_or(NAMES[0]).to_owned(), text));
        }
        let names: Vec<&str> = wanted.map_or(NAMES.to_vec(), |name| vec![name]);
        for name in &names {
            let path = Path::new("/").join(name.trim_start_matches("./"));
            let Ok(path) = icebox_boxfile::resolve(self, &path, true) else { continue };
            if self.entries.contains_key(&path) {
                let mut text = String::new();
                let read =
                    self.open(&path).and_then(|file| file.take(BOXFILE_BYTES_MAX as u64 + 1).read_to_string(&mut text));
                read.map_err(|error| format!("{name}: {error}"))?;
                return Ok(((*name).to_owned(), text));
            }
        }
        Err(format!("there is no {} in the context", names.join(" and no ")))
    }

    /// Leaves out what the context's own `.dockerignore` says. A client may have done so already.
    pub(super) fn ignore(&mut self) -> Result<(), String> {
        let path = Path::new("/").join(IGNORE_FILE);
        if !self.entries.contains_key(&path) {
            return Ok(());
        }
        let mut text = String::new();
        let read = self.open(&path).and_then(|file| file.take(BOXFILE_BYTES_MAX as u64).read_to_string(&mut text));
        read.map_err(|error| format!("{IGNORE_FILE}: {error}"))?;
        let ignore = Ignore::read(&text)?;
        let kept: Vec<PathBuf> = self.entries.keys().filter(|path| !ignore.ignores(path)).cloned().collect();
        // The directories on the way to what is kept stay.
        let above: std::collections::BTreeSet<PathBuf> =
            kept.iter().flat_map(|path| path.ancestors().map(Path::to_owned)).collect();
        self.entries.retain(|path, _| above.contains(path) || path == Path::new("/"));
        Ok(())
    }
}

fn directory(mtime: i64) -> Entry {
    let node = Node { kind: Kind::Dir, mode: 0o755, uid: 0, gid: 0, mtime, xattrs: Vec::new() };
    Entry { node, offset: 0, digest: [0; 32] }
}

/// The path in the context; none if it leads out.
fn inside(name: &Path) -> Option<PathBuf> {
    let mut path = PathBuf::from("/");
    for part in name.components() {
        match part {
            Component::Normal(part) => path.push(part),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(path)
}

impl Tree for Context {
    fn node(&self, path: &Path) -> io::Result<Option<Node>> {
        Ok(self.entries.get(path).map(|entry| entry.node.clone()))
    }

    fn names(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let below = self.entries.range::<Path, _>((std::ops::Bound::Excluded(path), std::ops::Bound::Unbounded));
        let below = below.map(|(known, _)| known).take_while(|known| known.starts_with(path));
        let own = below.filter(|known| known.parent() == Some(path));
        Ok(own.filter_map(|known| known.file_name()).map(ToOwned::to_owned).collect())
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + '_>> {
        let entry = self.entries.get(path).ok_or(io::ErrorKind::NotFound)?;
        let Kind::File(size) = entry.node.kind else { return Err(io::ErrorKind::IsADirectory.into()) };
        Ok(Box::new(Part { file: &self.file, at: entry.offset, left: size }))
    }

    fn digest(&self, path: &Path) -> io::Result<[u8; 32]> {
        Ok(self.entries.get(path).ok_or(io::ErrorKind::NotFound)?.digest)
    }
}

/// A part of a file.
struct Part<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(into.len());
        let read = self.file.read_at(&mut into[..most], self.at)?;
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(entries: &[(&str, EntryType, &str)]) -> File {
        let mut builder = tar::Builder::new(tempfile::tempfile().expect("a file"));
        for (path, kind, text) in entries {
            let mut header = tar::Header::new_ustar();
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(0o644);
            header.set_uid(9);
            header.set_gid(9);
            header.set_mtime(5);
            let content = if kind.is_file() { *text } else { "" };
            if !kind.is_file() && !text.is_empty() {
                header.set_link_name_literal(text).expect("a link");
            }
            header.set_size(content.len() as u64);
            header.set_cksum();
            builder.append(&header, content.as_bytes()).expect("an entry");
        }
        builder.into_inner().expect("an archive")
    }

    #[test]
    fn an_archive_is_a_tree() {
        use EntryType::{Directory, Fifo, Link, Regular, Symlink};
        let mut context = Context::read(archive(&[
            ("./a", Regular, "one"),
            ("dir/b", Regular, "two"),
            ("dir2/", Directory, ""),
            ("link", Symlink, "dir"),
            ("hard", Link, "a"),
            ("fifo", Fifo, ""),
            ("Dockerfile", Regular, "FROM x"),
            (".dockerignore", Regular, "dir2\nDockerfile\n"),
        ]))
        .expect("a context");
        assert_eq!(context.names(Path::new("/dir")).expect("names"), ["b"]);
        let mut text = String::new();
        context.open(Path::new("/dir/b")).expect("a file").read_to_string(&mut text).expect("text");
        assert_eq!(text, "two");
        assert_eq!(context.digest(Path::new("/hard")).ok(), context.digest(Path::new("/a")).ok());
        assert!(context.node(Path::new("/fifo")).expect("a look").is_none());
        assert_eq!(context.node(Path::new("/a")).expect("a look").map(|node| (node.uid, node.mtime)), Some((0, 5)));
        assert_eq!(context.boxfile(None), Ok(("Dockerfile".to_owned(), "FROM x".to_owned())));
        context.ignore().expect("patterns");
        assert!(context.node(Path::new("/dir2")).expect("a look").is_none());
        assert!(context.boxfile(None).is_err_and(|why| why.contains("no Boxfile and no Dockerfile")));
    }

    #[test]
    fn a_context_that_leads_out_is_refused() {
        for (path, kind, text, wanted) in [
            ("../x", EntryType::Regular, "", "'../x'"),
            ("x", EntryType::Link, "none", "to nothing"),
            ("x", EntryType::Link, "../../etc/passwd", "to nothing"),
        ] {
            let refused = Context::read(archive(&[(path, kind, text)])).expect_err(path);
            assert!(refused.contains(wanted), "{refused}");
        }
        assert!(Context::read(tempfile::tempfile().expect("a file")).is_ok(), "an empty context is one");
    }
}
