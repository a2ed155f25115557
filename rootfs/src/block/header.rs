//! What Icebox writes at the start of a block device: whose it is, and what is being done with it.
//!
//! The first 1024 bytes of an ext4 are a boot block that no file system code reads or changes, so the header lies beside the
//! file system of a box, and the device says by itself which box has it. A header fits into one sector, which a disk writes
//! whole or not at all.
//!
//! Invariant: bytes that are not exactly what Icebox writes are no header.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::digest::hex;
use crate::id;

/// Bytes of a header, which are those of the smallest sector.
pub(super) const BYTES: usize = 512;
/// Bytes of an ext4 before its superblock.
pub(crate) const BOOT_BLOCK_BYTES: u64 = 1024;
const MAGIC: &str = "icebox-device-1";
/// Hexadecimal digits of the checksum.
const SUM_DIGITS: usize = 16;

/// What a device of an installation is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Use {
    /// Nobody's. It reads as zeroes, but for the header.
    Free,
    /// It is to become the disk of a box, and is not yet.
    Making,
    /// The disk of a box.
    Disk,
    /// It was the disk of a box, or is new, and is being overwritten.
    Wiping,
}

impl Use {
    const ALL: [(Use, &'static str); 4] =
        [(Use::Free, "free"), (Use::Making, "making"), (Use::Disk, "disk"), (Use::Wiping, "wiping")];

    fn word(&self) -> &'static str {
        Self::ALL.iter().find(|(one, _)| one == self).map_or("", |(_, word)| word)
    }
}

/// A header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    /// The installation that has the device.
    pub(super) owner: String,
    pub(super) state: Use,
    /// Of two disks of one box, the one with the higher number counts: it was to take the place of the other.
    pub(super) generation: u64,
    /// The box; empty for a free device.
    pub(super) id: String,
}

impl Header {
    pub(super) fn encode(&self) -> [u8; BYTES] {
        let text = format!("{MAGIC} {} {} {} {}", self.owner, self.state.word(), self.generation, self.id);
        let line = format!("{text}\n{}\n", sum(&text));
        let mut bytes = [0; BYTES];
        // Owner and id are bounded, so that it fits.
        let length = line.len().min(BYTES);
        bytes[..length].copy_from_slice(&line.as_bytes()[..length]);
        bytes
    }

    /// `None` if the bytes are no header.
    pub(super) fn decode(bytes: &[u8; BYTES]) -> Option<Header> {
        let text = std::str::from_utf8(bytes).ok()?.trim_end_matches('\0');
        let (line, rest) = text.split_once('\n')?;
        if rest != format!("{}\n", sum(line)) {
            return None;
        }
        let mut words = line.split(' ');
        let mut next = || words.next();
        if next()? != MAGIC {
            return None;
        }
        let owner = next()?.to_owned();
        let word = next()?;
        let (state, _) = Use::ALL.into_iter().find(|(_, known)| *known == word)?;
        let generation = next()?.parse().ok()?;
        let id = next()?.to_owned();
        let is_id = id.is_empty() || id::check(&id).is_ok();
        is_id.then_some(Header { owner, state, generation, id })
    }

    /// Writes it; on return it is on disk.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let device = OpenOptions::new().write(true).open(path)?;
        device.write_all_at(&self.encode(), 0)?;
        device.sync_all()
    }
}

/// The header of a device; `None` if it has none.
pub(super) fn read(path: &Path) -> io::Result<Option<Header>> {
    let mut bytes = [0; BYTES];
    match File::open(path)?.read_exact_at(&mut bytes, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        read => read.map(|()| Header::decode(&bytes)),
    }
}

fn sum(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))[..SUM_DIGITS].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(state: Use, id: &str) -> Header {
        Header { owner: "0123456789abcdef".repeat(2), state, generation: 7, id: id.to_owned() }
    }

    #[test]
    fn a_header_is_read_as_it_was_written() {
        for (state, _) in Use::ALL {
            for id in ["", "right-flamingo-14486", &"x".repeat(id::VOLUME_ID_BYTES_MAX)] {
                let header = header(state.clone(), id);
                assert_eq!(Header::decode(&header.encode()), Some(header));
            }
        }
    }

    #[test]
    fn what_differs_by_one_byte_is_no_header() {
        let good = header(Use::Disk, "a-1").encode();
        let used = good.iter().rposition(|byte| *byte != 0).unwrap();
        for place in 0..=used {
            let mut bad = good;
            bad[place] ^= 1;
            assert_eq!(Header::decode(&bad), None, "byte {place}");
        }
        let mut longer = good;
        longer[BYTES - 1] = b'x';
        assert_eq!(Header::decode(&longer), None);
        assert_eq!(Header::decode(&[0; BYTES]), None);
        assert_eq!(Header::decode(&header(Use::Disk, "../x").encode()), None);
    }
}
