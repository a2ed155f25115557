//! The archive of a box: a tar with the file `box.json`, then the directory `changes/` with what the box has changed in its
//! image, in the form of a layer (OCI image specification, "Layer Filesystem Changeset"). Holes of sparse files are left out.
//!
//! Owns the layout of the archive. Leaves out: the content of `box.json`, and where the tree comes from and goes to. The tree is
//! read below a descriptor and no link is followed; the archive is unpacked as that of an image is.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::error::{Cause, Error, Step};
use crate::pack::{Form, Packing, pack_as, pack_file, packed_bytes};
use crate::sparse::{BLOCK, padding};
use crate::unpack::{Limits, Reason, unpack_box};

/// The file of facts.
pub const FACTS: &str = "box.json";
/// The directory of changes.
pub const CHANGES: &str = "changes";
const PACKING: Packing<'static> = Packing { form: Form::Overlay, skip: &[], below: b"changes/", sparse: true };
/// Bytes of an archive and of the files in it, holes too. The disk of the box is the real bound.
const BYTES_MAX: u64 = 16 << 40;
/// Entries of an archive.
const ENTRIES_MAX: u64 = 16 << 20;

/// Bytes of the archive that [`write_archive`] makes of the upper directory of an overlay.
pub fn archive_bytes(facts: &[u8], upper: &Path) -> io::Result<u64> {
    let facts = facts.len() as u64;
    Ok(BLOCK + facts + padding(facts) + packed_bytes(upper, PACKING)?)
}

/// Writes the archive of a box. `made`: Unix seconds.
pub fn write_archive(facts: &[u8], made: u64, upper: &Path, mut output: impl Write) -> io::Result<()> {
    pack_file(FACTS.as_bytes(), facts, made, &mut output)?;
    pack_as(upper, PACKING, output)
}

/// Reads the archive of a box, compressed or not: its facts go to `open`, which gives the directory for the changes. Returns
/// what was left out.
///
/// # Errors
/// Those of `open`, and of an archive that is not acceptable.
pub fn read_archive<E: From<Error>>(
    archive: impl Read + Send,
    open: impl FnOnce(&[u8]) -> Result<PathBuf, E>,
) -> Result<Vec<String>, E> {
    let limits = Limits { bytes: BYTES_MAX, entries: ENTRIES_MAX, free_bytes: 0, ..Limits::default() };
    let unpacked = unpack_box(archive, (FACTS, CHANGES), limits, open);
    unpacked.map(|unpacked| unpacked.warnings).map_err(|unfit| match unfit.parts() {
        Err(error) => error,
        Ok((entry, reason)) => {
            let entry = entry.map(|entry| format!(", entry '{entry}'")).unwrap_or_default();
            let cause = match reason {
                Reason::Refused(why) => Cause::Refused(why),
                Reason::Io(error) => Cause::Io(error),
            };
            Error::new(Step::UnpackLayer, format!("the archive{entry}"), cause).into()
        }
    })
}
