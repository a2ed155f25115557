//! Cloning one image file into another: by reflink where the file system can, else by copying only what is not a hole.
//!
//! The reflink shares blocks copy-on-write and costs the same for every size; the sparse copy costs what the source
//! holds (a template holds about 100 KiB).

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, copy_file_range, ioctl_ficlone, seek};
use rustix::io::Errno;

/// Copied at once where the kernel does not copy by itself.
const PIECE_BYTES: usize = 1 << 20;
const SHORTER: &str = "the source became shorter while it was copied";

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
            let copied = match copy_file_range(source, Some(&mut in_offset), target, Some(&mut out_offset), wanted) {
                Ok(copied) => copied,
                // Between two file systems of different kinds: the source may lie outside the pool.
                Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP) => copy_piece(source, target, from, wanted)?,
                Err(errno) => return Err(errno.into()),
            };
            if copied == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, SHORTER));
            }
            from += copied as u64;
        }
        Ok(())
    })
}

/// Copies the data of `source` from `start` on to the same offsets of a device that reads as zeroes.
pub(crate) fn copy_data(source: &File, device: &File, start: u64) -> io::Result<()> {
    let length = source.metadata()?.len();
    for_each_segment(source, length, |from, end| {
        let mut from = from.max(start);
        while from < end {
            let wanted = usize::try_from(end - from).unwrap_or(usize::MAX);
            let copied = copy_piece(source, device, from, wanted)?;
            if copied == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, SHORTER));
            }
            from += copied as u64;
        }
        Ok(())
    })
}

/// Copies at most `wanted` bytes at `offset` through memory.
fn copy_piece(source: &File, target: &File, offset: u64, wanted: usize) -> io::Result<usize> {
    let mut buffer = vec![0; wanted.min(PIECE_BYTES)];
    let read = source.read_at(&mut buffer, offset)?;
    target.write_all_at(&buffer[..read], offset)?;
    Ok(read)
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
    use std::os::unix::fs::MetadataExt;

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
    fn between_kinds_of_file_systems_the_copy_is_the_same() {
        let memory = rustix::fs::memfd_create("source", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let (source, target) = (File::from(memory), tempfile::tempfile().unwrap());
        source.set_len(8 << 20).unwrap();
        source.write_all_at(&vec![7; (2 << 20) + 5], 3 << 20).unwrap();
        assert_eq!(clone_into(&source, &target).unwrap(), CloneMethod::SparseCopy);
        let mut copied = vec![1; 8 << 20];
        target.read_exact_at(&mut copied, 0).unwrap();
        let expected = |offset: usize| if ((3 << 20)..(5 << 20) + 5).contains(&offset) { 7 } else { 0 };
        assert!(copied.iter().enumerate().all(|(offset, byte)| *byte == expected(offset)), "content differs");
        assert!(target.metadata().unwrap().blocks() * 512 < 3 << 20, "the copy is not sparse");
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
