//! Tar archives, block by block: what no well-behaved archiver writes can be written here.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

/// An archive that is being written.
#[derive(Default, Clone)]
pub(crate) struct Tar {
    bytes: Vec<u8>,
}

/// A header. The fields are those of POSIX ustar.
pub(crate) struct Head {
    block: [u8; 512],
}

/// Octal digits that fill a field but for its NUL.
fn octal(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    field[..digits].copy_from_slice(format!("{value:0digits$o}").as_bytes());
}

impl Head {
    pub(crate) fn new(kind: u8, name: &[u8]) -> Self {
        let mut block = [0; 512];
        let length = name.len().min(100);
        block[..length].copy_from_slice(&name[..length]);
        octal(&mut block[100..108], 0o644);
        octal(&mut block[108..116], 0);
        octal(&mut block[116..124], 0);
        octal(&mut block[124..136], 0);
        octal(&mut block[136..148], 1_700_000_000);
        block[156] = kind;
        block[257..263].copy_from_slice(b"ustar\0");
        block[263..265].copy_from_slice(b"00");
        Self { block }
    }

    pub(crate) fn size(mut self, size: u64) -> Self {
        octal(&mut self.block[124..136], size);
        self
    }

    pub(crate) fn mode(mut self, mode: u64) -> Self {
        octal(&mut self.block[100..108], mode);
        self
    }

    pub(crate) fn owner(mut self, uid: u64, gid: u64) -> Self {
        octal(&mut self.block[108..116], uid);
        octal(&mut self.block[116..124], gid);
        self
    }

    pub(crate) fn link(mut self, target: &[u8]) -> Self {
        self.block[157..157 + target.len()].copy_from_slice(target);
        self
    }

    pub(crate) fn device(mut self, major: u64, minor: u64) -> Self {
        octal(&mut self.block[329..337], major);
        octal(&mut self.block[337..345], minor);
        self
    }

    pub(crate) fn gnu(mut self) -> Self {
        self.block[257..265].copy_from_slice(b"ustar  \0");
        self
    }

    /// Any bytes at any place.
    pub(crate) fn raw(mut self, at: usize, bytes: &[u8]) -> Self {
        self.block[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    fn sealed(mut self) -> [u8; 512] {
        self.block[148..156].copy_from_slice(b"        ");
        let sum: u64 = self.block.iter().map(|byte| u64::from(*byte)).sum();
        self.block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.block
    }
}

impl Tar {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn head(mut self, head: Head) -> Self {
        self.bytes.extend(head.sealed());
        self
    }

    /// Content with its padding.
    pub(crate) fn content(mut self, content: &[u8]) -> Self {
        self.bytes.extend(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend(bytes);
        self
    }

    pub(crate) fn file(self, name: &str, content: &[u8]) -> Self {
        self.head(Head::new(b'0', name.as_bytes()).size(content.len() as u64)).content(content)
    }

    pub(crate) fn dir(self, name: &str) -> Self {
        self.head(Head::new(b'5', name.as_bytes()).mode(0o755))
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.head(Head::new(b'2', name.as_bytes()).link(target.as_bytes()).mode(0o777))
    }

    pub(crate) fn hardlink(self, name: &str, target: &str) -> Self {
        self.head(Head::new(b'1', name.as_bytes()).link(target.as_bytes()))
    }

    /// An extended header of POSIX before the next entry.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        self.pax_of(b'x', records)
    }

    pub(crate) fn pax_of(self, kind: u8, records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length.to_string().len() + rest != length {
                length = length.to_string().len() + rest;
            }
            body.extend(format!("{length} {key}=").bytes());
            body.extend(*value);
            body.push(b'\n');
        }
        self.head(Head::new(kind, b"PaxHeader").size(body.len() as u64)).content(&body)
    }

    /// A long name of GNU before the next entry.
    pub(crate) fn gnu_long(self, kind: u8, name: &[u8]) -> Self {
        let name = [name, b"\0"].concat();
        self.head(Head::new(kind, b"././@LongLink").gnu().size(name.len() as u64)).content(&name)
    }

    /// The archive with its end.
    pub(crate) fn end(self) -> Vec<u8> {
        self.bytes(&[0; 1024]).unended()
    }

    pub(crate) fn unended(self) -> Vec<u8> {
        self.bytes
    }
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut output = GzEncoder::new(Vec::new(), Compression::fast());
    output.write_all(bytes).expect("compressed");
    output.finish().expect("compressed")
}

/// A frame of zstd that stores its content as it is (RFC 8878: a frame header with the content's size, raw blocks).
pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0b1010_0000];
    frame.extend(u32::try_from(bytes.len()).expect("a small archive").to_le_bytes());
    let mut blocks = bytes.chunks(64 * 1024).peekable();
    while let Some(block) = blocks.next() {
        let last = u32::from(blocks.peek().is_none());
        let header = (u32::try_from(block.len()).expect("a small block") << 3) | last;
        frame.extend(&header.to_le_bytes()[..3]);
        frame.extend(block);
    }
    frame
}
