//! The archive of a layer that COPY, ADD or WORKDIR makes.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use tar::{Builder, EntryType, Header};

use crate::changes::{Changes, Content, Item};
use crate::tree::{Kind, Node, Nothing, Tree};

/// Largest number in the octal fields of a header.
const OCTAL_ID_MAX: u32 = 0o7_777_777;

/// Writes the archive. `sources` are the trees to which the items refer, `spool` has the contents of unpacked archives.
///
/// # Errors
/// A source cannot be read or `output` cannot be written.
pub fn write_layer(
    changes: &Changes<'_>,
    sources: &[&dyn Tree],
    spool: Option<&File>,
    output: &mut dyn Write,
) -> io::Result<()> {
    let mut archive = Builder::new(output);
    for (path, item) in changes.entries()? {
        if path == Path::new("/") {
            continue;
        }
        entry(&mut archive, &path, &item, sources, spool)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    }
    archive.into_inner()?.flush()
}

/// Writes a layer that has the directory `from` of `tree` at `to`, whose own owner and mode are those of `top`.
///
/// # Errors
/// The tree cannot be read, has a name that no layer can have, or `output` cannot be written.
pub fn write_copy(tree: &dyn Tree, from: &Path, to: &Path, top: Node, output: &mut dyn Write) -> io::Result<()> {
    let mut changes = Changes::new(&Nothing, top.mtime);
    let put = changes.copy_dir(tree, from, to, top);
    put.map_err(|fault| io::Error::other(fault.what))?;
    write_layer(&changes, &[tree], None, output)
}

fn entry(
    archive: &mut Builder<&mut dyn Write>,
    path: &Path,
    item: &Item,
    sources: &[&dyn Tree],
    spool: Option<&File>,
) -> io::Result<()> {
    let node = &item.node;
    let name = path.strip_prefix("/").unwrap_or(path);
    let mut header = Header::new_ustar();
    header.set_mode(node.mode & 0o7777);
    header.set_uid(node.uid.min(OCTAL_ID_MAX).into());
    header.set_gid(node.gid.min(OCTAL_ID_MAX).into());
    header.set_mtime(u64::try_from(node.mtime).unwrap_or(0));
    header.set_size(0);
    let mut pax: Vec<(String, Vec<u8>)> = Vec::new();
    for (key, id) in [("uid", node.uid), ("gid", node.gid)] {
        if id > OCTAL_ID_MAX {
            pax.push((key.to_owned(), id.to_string().into_bytes()));
        }
    }
    for (name, value) in &node.xattrs {
        pax.push((format!("SCHILY.xattr.{}", name.to_string_lossy()), value.clone()));
    }
    let mut path_bytes = name.as_os_str().as_bytes().to_vec();
    if node.kind == Kind::Dir {
        path_bytes.push(b'/');
    }
    if header.set_path(std::ffi::OsStr::from_bytes(&path_bytes)).is_err() {
        pax.push(("path".to_owned(), path_bytes));
    }
    let link = match (&node.kind, &item.content) {
        (_, Content::Link(first)) => Some((EntryType::Link, first.strip_prefix("/").unwrap_or(first))),
        (Kind::Symlink(target), _) => Some((EntryType::Symlink, target.as_path())),
        _ => None,
    };
    if let Some((kind, target)) = link {
        header.set_entry_type(kind);
        // The text of a link is kept as it is; the crate would clean it.
        if header.set_link_name_literal(target.as_os_str().as_bytes()).is_err() {
            pax.push(("linkpath".to_owned(), target.as_os_str().as_bytes().to_vec()));
        }
    } else if node.kind == Kind::Dir {
        header.set_entry_type(EntryType::Directory);
    } else {
        header.set_entry_type(EntryType::Regular);
        header.set_size(size(&node.kind));
    }
    archive.append_pax_extensions(pax.iter().map(|(key, value)| (key.as_str(), value.as_slice())))?;
    header.set_cksum();
    if link.is_some() || node.kind == Kind::Dir {
        return archive.append(&header, io::empty());
    }
    let content: Box<dyn Read + '_> = match &item.content {
        Content::Bytes(bytes) => Box::new(bytes.as_slice()),
        Content::Source(number, path) => {
            let tree = sources.get(*number).ok_or_else(|| io::Error::other("its source is not there"))?;
            tree.open(path)?
        }
        Content::Spool(offset) => {
            let file = spool.ok_or_else(|| io::Error::other("its spool file is not there"))?;
            Box::new(At { file, offset: *offset })
        }
        Content::None | Content::Link(_) => Box::new(io::empty()),
    };
    let mut content = Exactly { from: content, left: size(&node.kind) };
    archive.append(&header, &mut content)
}

fn size(kind: &Kind) -> u64 {
    if let Kind::File(size) = kind { *size } else { 0 }
}

/// A file from an offset on.
struct At<'a> {
    file: &'a File,
    offset: u64,
}

impl Read for At<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(into, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

/// As many bytes as the header says; a file that has become shorter is an error.
struct Exactly<R> {
    from: R,
    left: u64,
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(into.len());
        if most == 0 {
            return Ok(0);
        }
        let read = self.from.read(&mut into[..most])?;
        if read == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter while it was read"));
        }
        self.left -= read as u64;
        Ok(read)
    }
}
