//! Sparse files in a tar archive, in the form that GNU tar calls 1.0: the map of the data stands before the data.

use std::fs::File;
use std::io;

use crate::clone::for_each_segment;
use crate::unpack::SPARSE_PARTS_MAX;

/// Unit of a tar archive.
pub(crate) const BLOCK: u64 = 512;

/// Offsets and lengths of the data of a file.
pub(crate) type Map = [(u64, u64)];

/// Bytes after a content up to the next block.
pub(crate) fn padding(length: u64) -> u64 {
    length.next_multiple_of(BLOCK) - length
}

/// The data of a file with holes; none if it has too many parts to be worth it. Never empty: the last part tells where the
/// file ends.
pub(crate) fn map_of(file: &File, size: u64) -> io::Result<Option<Vec<(u64, u64)>>> {
    let mut map = Vec::new();
    for_each_segment(file, size, |start, end| {
        if map.len() < SPARSE_PARTS_MAX {
            map.push((start, end - start));
        }
        Ok(())
    })?;
    if map.len() >= SPARSE_PARTS_MAX {
        return Ok(None);
    }
    if map.last().is_none_or(|(offset, length)| offset + length < size) {
        map.push((size, 0));
    }
    Ok(Some(map))
}

/// The map as it stands before the data, padded.
pub(crate) fn map_text(map: &Map) -> Vec<u8> {
    let mut text = format!("{}\n", map.len());
    for (offset, length) in map {
        text.push_str(&format!("{offset}\n{length}\n"));
    }
    let mut text = text.into_bytes();
    text.resize(text.len().next_multiple_of(BLOCK as usize), 0);
    text
}

/// The name that GNU tar gives a sparse file in the plain header.
pub(crate) fn sparse_name(path: &[u8]) -> Vec<u8> {
    let (dir, name) = path.split_at(path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1));
    [dir, b"GNUSparseFile.0/", name].concat()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn a_map_ends_where_the_file_ends() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1; 4096], 1 << 20).unwrap();
        file.set_len(8 << 20).unwrap();
        let map = map_of(&file, 8 << 20).unwrap().unwrap();
        assert_eq!(map, [(1 << 20, 4096), (8 << 20, 0)]);
        let text = map_text(&map);
        assert_eq!(text.len() as u64 % BLOCK, 0);
        assert!(text.starts_with(b"2\n1048576\n4096\n8388608\n0\n\0"));
        // All of it is a hole.
        let empty = tempfile::tempfile().unwrap();
        empty.set_len(1 << 20).unwrap();
        assert_eq!(map_of(&empty, 1 << 20).unwrap().unwrap(), [(1 << 20, 0)]);
        assert_eq!(sparse_name(b"a/b"), b"a/GNUSparseFile.0/b");
    }
}
