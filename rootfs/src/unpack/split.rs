//! The log from which a layer's archive is made again, byte for byte, out of its unpacked files.
//!
//! The digest of a layer is that of its archive. Two archivers never write the same bytes for a tree, so whatever is not
//! the content of a file is kept: headers, padding, the end. In place of a file's content the log has its path. (Docker
//! keeps the same under the name tar-split.)

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;

use flate2::Compression;
use flate2::bufread::GzDecoder;
use flate2::write::GzEncoder;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

const RAW: u8 = b'r';
const FILE: u8 = b'f';
/// Raw bytes are written in pieces of at most this.
const PIECE_BYTES: usize = 64 * 1024;

/// Writes the log.
pub(crate) struct SplitLog {
    output: GzEncoder<BufWriter<File>>,
    pending: Vec<u8>,
    in_file: bool,
}

impl SplitLog {
    pub(crate) fn new(file: File) -> Self {
        let output = GzEncoder::new(BufWriter::new(file), Compression::fast());
        Self { output, pending: Vec::with_capacity(PIECE_BYTES), in_file: false }
    }

    /// Bytes of the frame.
    pub(super) fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= PIECE_BYTES { self.flush() } else { Ok(()) }
    }

    /// The next `size` bytes of content are those of the file `path`.
    pub(super) fn file(&mut self, path: &[u8], size: u64) -> Result<(), super::fault::Fault> {
        if size == 0 {
            return Ok(());
        }
        self.flush()?;
        self.output.write_all(&[FILE])?;
        self.output.write_all(&size.to_le_bytes())?;
        self.output.write_all(&(path.len() as u32).to_le_bytes())?;
        self.output.write_all(path)?;
        self.in_file = true;
        Ok(())
    }

    /// Content of an entry: of the announced file, or else part of the frame.
    pub(super) fn content(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.in_file { Ok(()) } else { self.raw(bytes) }
    }

    pub(super) fn content_ends(&mut self) {
        self.in_file = false;
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        self.output.write_all(&[RAW])?;
        self.output.write_all(&(self.pending.len() as u32).to_le_bytes())?;
        self.output.write_all(&self.pending)?;
        self.pending.clear();
        Ok(())
    }

    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        self.output.finish()?.flush()
    }
}

/// Writes the archive whose log is `log` and whose files are below `root`.
pub(crate) fn replay(log: &Path, root: &Path, output: &mut dyn Write) -> io::Result<()> {
    let mut log = BufReader::new(GzDecoder::new(BufReader::new(File::open(log)?)));
    let root = File::open(root)?;
    loop {
        let mut tag = [0];
        if log.read(&mut tag)? == 0 {
            return Ok(());
        }
        match tag[0] {
            RAW => {
                let length = u64::from(read_u32(&mut log)?);
                exactly(io::copy(&mut log.by_ref().take(length), output)?, length)?;
            }
            FILE => {
                let mut size = [0; 8];
                log.read_exact(&mut size)?;
                let size = u64::from_le_bytes(size);
                let mut path = vec![0; read_u32(&mut log)? as usize];
                log.read_exact(&mut path)?;
                let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
                let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
                let file = File::from(openat2(&root, path, flags, Mode::empty(), resolve)?);
                exactly(io::copy(&mut file.take(size), output)?, size)?;
            }
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "the log of the layer is damaged")),
        }
    }
}

fn read_u32(log: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    log.read_exact(&mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

fn exactly(copied: u64, wanted: u64) -> io::Result<()> {
    if copied == wanted { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}
