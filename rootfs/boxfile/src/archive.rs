//! ADD of an archive: its entries become those of the layer.
//!
//! The crate `tar` parses; where an entry goes is decided here, inside the image: a name never leaves the destination, and
//! links on the way are followed in the image, not on this machine.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use flate2::read::MultiGzDecoder;
use ruzstd::decoding::StreamingDecoder;
use tar::{Archive, Entry, EntryType};

use crate::changes::{Changes, Content, Item, Rules};
use crate::error::Fault;
use crate::tree::{Kind, Node};

/// Most entries of an archive.
const ENTRIES_MAX: u64 = 1 << 20;
/// Most bytes that an archive unpacks to.
const BYTES_MAX: u64 = 64 << 30;
/// Bytes at the beginning by which an archive is known.
pub(crate) const HEAD_BYTES: usize = 512;

/// How an archive is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
    /// Known, but not unpacked here.
    Foreign(&'static str),
}

/// How the bytes that begin with `head` are packed, if they can be an archive.
pub(crate) fn packing(head: &[u8]) -> Option<Packing> {
    let tar = head.len() >= HEAD_BYTES && {
        let mut header = tar::Header::new_old();
        header.as_mut_bytes().copy_from_slice(&head[..HEAD_BYTES]);
        let sum: u32 = head[..HEAD_BYTES]
            .iter()
            .enumerate()
            .map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) })
            .sum();
        header.cksum().is_ok_and(|known| known == sum)
    };
    match head {
        _ if tar => Some(Packing::Plain),
        [0x1f, 0x8b, ..] => Some(Packing::Gzip),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Packing::Zstd),
        [b'B', b'Z', b'h', ..] => Some(Packing::Foreign("bzip2")),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Packing::Foreign("xz")),
        _ => None,
    }
}

/// Where the contents of unpacked files are kept until the layer is written.
pub(crate) struct Spool {
    pub(crate) file: File,
    pub(crate) length: u64,
}

/// Unpacks an archive to the destination. `false`: the bytes are no archive, and nothing is changed.
pub(crate) fn unpack(
    changes: &mut Changes<'_>,
    packing: Packing,
    bytes: impl Read,
    dest: &str,
    rules: &Rules,
    spool: &mut Spool,
) -> Result<bool, Fault> {
    let stream: Box<dyn Read> = match packing {
        Packing::Plain => Box::new(bytes),
        Packing::Gzip => Box::new(MultiGzDecoder::new(bytes)),
        Packing::Zstd => match StreamingDecoder::new(bytes) {
            Ok(decoder) => Box::new(decoder),
            Err(error) => return Err(Fault::new(format!("the archive cannot be read: {error}"))),
        },
        Packing::Foreign(name) => {
            let instead = "write COPY to take it as it is, or pack it with gzip or zstd";
            return Err(Fault::instead(format!("archives of {name} are not unpacked"), instead));
        }
    };
    // A compressed file need not be an archive.
    let mut head = Vec::with_capacity(HEAD_BYTES);
    let mut stream = stream;
    let read = stream.by_ref().take(HEAD_BYTES as u64).read_to_end(&mut head);
    if read.is_err() || self::packing(&head) != Some(Packing::Plain) {
        return Ok(false);
    }
    let target = changes.prepare(&format!("{}/", dest.trim_end_matches('/')), rules)?;
    let mut archive = Archive::new(io::Cursor::new(head).chain(stream));
    let broken = |error: io::Error| Fault::new(format!("the archive cannot be read: {error}"));
    for (count, entry) in (0..).zip(archive.entries().map_err(broken)?) {
        if count >= ENTRIES_MAX {
            return Err(Fault::new(format!("the archive has more than {ENTRIES_MAX} entries")));
        }
        one(changes, &mut entry.map_err(broken)?, &target, rules, spool)?;
    }
    Ok(true)
}

/// A path of the archive at or below `target`.
fn below(changes: &Changes<'_>, target: &Path, name: &[u8]) -> Result<PathBuf, Fault> {
    let mut path = PathBuf::new();
    for part in Path::new(std::ffi::OsStr::from_bytes(name)).components() {
        match part {
            Component::Normal(part) => path.push(part),
            Component::ParentDir => {
                return Err(Fault::new(format!("the archive has the name '{}'", name.escape_ascii())));
            }
            _ => {}
        }
    }
    // The destination is resolved already.
    if path.as_os_str().is_empty() { Ok(target.to_owned()) } else { Ok(changes.resolve(&target.join(path), false)?) }
}

fn one<R: Read>(
    changes: &mut Changes<'_>,
    entry: &mut Entry<'_, R>,
    target: &Path,
    rules: &Rules,
    spool: &mut Spool,
) -> Result<(), Fault> {
    let broken = |error: io::Error| Fault::new(format!("the archive cannot be read: {error}"));
    let name = entry.path_bytes().into_owned();
    let path = below(changes, target, &name)?;
    if let Some(parent) = path.parent() {
        changes.make_dirs(parent, rules)?;
    }
    let header = entry.header();
    let number = |value: io::Result<u64>| value.map(|value| u32::try_from(value).unwrap_or(u32::MAX)).map_err(broken);
    let mut node = Node {
        kind: Kind::Dir,
        mode: header.mode().map_err(broken)? & 0o7777,
        uid: number(header.uid())?,
        gid: number(header.gid())?,
        mtime: i64::try_from(header.mtime().map_err(broken)?).unwrap_or(0),
        xattrs: Vec::new(),
    };
    if let Some(owner) = rules.owner {
        (node.uid, node.gid) = (owner.uid, owner.gid);
    }
    let content = match header.entry_type() {
        EntryType::Directory => {
            // An entry for a directory that is reached through a link says nothing about the link.
            if let Some(Node { kind: Kind::Symlink(_), .. }) = changes.node(&path)? {
                return Ok(());
            }
            Content::None
        }
        EntryType::Symlink => {
            let link = entry.link_name_bytes().ok_or_else(|| Fault::new("the archive has a link without a target"))?;
            node.kind = Kind::Symlink(PathBuf::from(std::ffi::OsStr::from_bytes(&link)));
            node.mode = 0o777;
            Content::None
        }
        EntryType::Link => {
            let link = entry.link_name_bytes().ok_or_else(|| Fault::new("the archive has a link without a target"))?;
            let first = below(changes, target, &link)?;
            let first = changes.items.get(&first).cloned().map(|item| (item, first));
            let Some((item, first)) = first else {
                return Err(Fault::new(format!(
                    "the archive has a link to '{}', which is not before it",
                    link.escape_ascii()
                )));
            };
            let first = if let Content::Link(first) = item.content { first } else { first };
            node = item.node;
            Content::Link(first)
        }
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            let begin = spool.length;
            let size = io::copy(&mut entry.take(BYTES_MAX), &mut spool.file).map_err(broken)?;
            spool.length += size;
            if spool.length > BYTES_MAX {
                return Err(Fault::new(format!("the archive unpacks to more than {BYTES_MAX} bytes")));
            }
            node.kind = Kind::File(size);
            Content::Spool(begin)
        }
        // Devices and FIFOs are left out, as COPY does.
        _ => return Ok(()),
    };
    changes.put(path, Item { node, content })
}

/// Ends writing to the spool.
pub(crate) fn flush(spool: &mut Spool) -> io::Result<()> {
    spool.file.flush()
}
