//! Cloning one image file into another: by reflink where the file system can, else by copying only what is not a hole.
//!
//! The reflink shares blocks copy-on-write and costs the same for every size; the sparse copy costs what the source
//! holds (a template holds about 100 KiB).

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use rustix::fs::{SeekFrom, copy_file_range, ioctl_ficlone, seek};
use rustix::io::Errno;

/// The method that made a volume's first content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloneMethod {
    /// The blocks are shared with the template until written.
    Reflink,
    /// The file system cannot share blocks: the template's data was copied, its holes were kept.
    SparseCopy,
}

/// Makes the empty file `target` equal to `source`.
pub(crate) fn clone_into(source: &File, target: &File) -> io::Result<CloneMethod> {
    match ioctl_ficlone(target, source) {
        Ok(()) => Ok(CloneMethod::Reflink),
        // The file system cannot share blocks, or not these: ext4 (no such ioctl), another file system, an odd
        // alignment. A real failure (no space, I/O error) does not fall back to the copy.
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::XDEV | Errno::INVAL | Errno::NOSYS) => {
            sparse_copy(source, target)?;
            Ok(CloneMethod::SparseCopy)
        }
        Err(errno) => Err(errno.into()),
    }
}

/// Copies the data of `source` to the same offsets of the empty file `target`; holes stay holes.
pub(crate) fn sparse_copy(source: &File, target: &File) -> io::Result<()> {
    let length = source.metadata()?.len();
    target.set_len(length)?;
    for_each_segment(source, length, |mut from, end| {
        while from < end {
            let (mut in_offset, mut out_offset) = (from, from);
            let wanted = usize::try_from(end - from).unwrap_or(usize::MAX);
            let copied = copy_file_range(source, Some(&mut in_offset), target, Some(&mut out_offset), wanted)?;
            if copied == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the source became shorter while it was copied",
                ));
            }
            from += copied as u64;
        }
        Ok(())
    })
}

/// Calls `visit` with the start and end of every run of data in the file's first `length` bytes.
pub(crate) fn for_each_segment(
    file: impl AsFd,
    length: u64,
    mut visit: impl FnMut(u64, u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut position = 0;
    while position < length {
        let start = match seek(&file, SeekFrom::Data(position)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break, // only a hole is left
            Err(errno) => return Err(errno.into()),
        };
        let end = seek(&file, SeekFrom::Hole(start))?.min(length);
        visit(start, end)?;
        position = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek};
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn sparse_copy_keeps_content_and_holes() {
        let (source, target) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        source.set_len(64 << 20).unwrap();
        for offset in [0, 4096 * 5, (8 << 20) + 17, (64 << 20) - 3] {
            source.write_all_at(b"abc", offset).unwrap();
        }
        sparse_copy(&source, &target).unwrap();
        for mut file in [&source, &target] {
            file.rewind().unwrap(); // looking for holes moved the position
        }
        let (mut left, mut right) = (Vec::new(), Vec::new());
        (&source).read_to_end(&mut left).unwrap();
        (&target).read_to_end(&mut right).unwrap();
        assert!(left == right, "content differs");
        assert!(target.metadata().unwrap().blocks() * 512 < 1 << 20, "the copy is not sparse");
    }

    #[test]
    fn an_empty_source_gives_an_empty_target() {
        let (source, target) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        source.set_len(1 << 20).unwrap();
        sparse_copy(&source, &target).unwrap();
        assert_eq!(target.metadata().unwrap().len(), 1 << 20);
        assert_eq!(target.metadata().unwrap().blocks(), 0);
    }
}
