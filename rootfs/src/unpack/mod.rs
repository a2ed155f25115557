//! Unpacking a layer: a tar archive, possibly compressed, becomes a directory in the form that overlayfs takes as a layer.
//!
//! Owns: the bounds of an archive, the reading of its frame, and every file that is made from it.
//! Invariants: nothing is created, changed or removed outside the directory, whatever the archive says: each path is
//! resolved by the kernel below the directory's descriptor, without following a link. What an archive claims is
//! bounded before memory or disk is taken for it. Bytes are hashed while they pass.
//! Leaves out: names of layers, durability, and what a layer lies upon.

mod apply;
mod boxed;
mod fault;
mod frames;
mod limits;
mod number;
mod pax;
mod place;
pub(crate) mod split;
mod stream;

pub(crate) use apply::Unpacked;
pub(crate) use boxed::unpack_box;
pub(crate) use fault::{Fault, Reason};
pub(crate) use frames::Kind;
pub use limits::Limits;
pub(crate) use stream::Passed;

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Unpacks `blob` into the empty directory `root`. The log for making the archive again goes to `log`; it is complete
/// only if the result says so.
pub(crate) fn unpack(
    blob: impl Read + Send,
    root: &Path,
    log: Option<File>,
    limits: Limits,
) -> Result<(Passed, Unpacked), Fault> {
    std::thread::scope(|scope| {
        let (pieces, pump) = stream::spawn(scope, blob, limits);
        let unpacked = apply::apply(pieces, root, log, limits);
        let passed = pump.join().map_err(|_| Fault::from(std::io::Error::other("the reading thread panicked")))?;
        let unpacked = unpacked?;
        let passed = passed.ok_or_else(|| Fault::from(std::io::Error::other("the blob was not read to its end")))?;
        Ok((passed, unpacked))
    })
}

/// An entry of an archive that is only listed.
pub(crate) struct Listed<'e> {
    pub(crate) kind: Kind,
    pub(crate) path: &'e [u8],
    pub(crate) link: &'e [u8],
    /// Where its content begins in the archive.
    pub(crate) at: u64,
    pub(crate) size: u64,
}

/// Tells the entries of an uncompressed archive until `each` returns `false`.
pub(crate) fn list(
    archive: impl Read + std::io::Seek,
    limits: Limits,
    each: &mut dyn FnMut(Listed<'_>) -> bool,
) -> Result<(), Fault> {
    let mut frames = frames::Frames::new(archive, limits, None);
    while let Some(entry) = frames.next_by_seeking()? {
        let at = frames.position()?;
        let (kind, path, link, size) = (entry.kind, entry.path.as_slice(), entry.link.as_slice(), entry.size);
        if !each(Listed { kind, path, link, at, size }) {
            break;
        }
    }
    Ok(())
}

/// Attributes that unpacking keeps.
pub(crate) use apply::is_kept as keeps_xattr;
/// Most parts of a sparse file.
pub(crate) use pax::SEGMENTS_MAX as SPARSE_PARTS_MAX;
/// Decompression without unpacking.
pub(crate) use stream::{inflate, is_compressed};
