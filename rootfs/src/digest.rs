//! The digest of the content of an image file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use sha2::{Digest, Sha256};

use crate::clone::for_each_segment;

/// The unit in which content is hashed: the block size of the file systems.
const BLOCK_BYTES: usize = 4096;
/// Bytes read at once.
const CHUNK_BYTES: usize = 1 << 20;

/// Hashes offset and content of every block that is not zero, so that the result does not depend on which zero blocks
/// the host's file system happens to keep as holes.
pub(crate) fn digest(file: &File) -> io::Result<String> {
    let length = file.metadata()?.len();
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    // Two runs of data may lie in one block.
    let mut done = 0;
    for_each_segment(file, length, |start, end| {
        let mut offset = done.max(start - start % BLOCK_BYTES as u64);
        while offset < end {
            let wanted = usize::try_from(end - offset).unwrap_or(CHUNK_BYTES).next_multiple_of(BLOCK_BYTES);
            let read = &mut chunk[..wanted.min(CHUNK_BYTES)];
            file.read_exact_at(read, offset)?;
            for block in read.chunks_exact(BLOCK_BYTES) {
                if block != [0; BLOCK_BYTES] {
                    hash.update(offset.to_le_bytes());
                    hash.update(block);
                }
                offset += BLOCK_BYTES as u64;
            }
        }
        done = offset;
        Ok(())
    })?;
    Ok(hex(&hash.finalize()))
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_ignores_the_layout_but_not_the_content() {
        let (sparse, dense) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        sparse.set_len(3 << 20).unwrap();
        dense.write_all_at(&vec![0; 3 << 20], 0).unwrap();
        for file in [&sparse, &dense] {
            file.write_all_at(b"x", 9000).unwrap();
            file.write_all_at(b"y", (2 << 20) + 4095).unwrap();
        }
        let first = digest(&sparse).unwrap();
        assert_eq!(first, digest(&dense).unwrap());
        sparse.write_all_at(b"y", 9001).unwrap();
        assert_ne!(first, digest(&sparse).unwrap());
    }
}
