//! The frame of a tar archive: which bytes are headers and which belong to which entry.
//!
//! The layout of a header comes from the crate `tar`; what a sequence of headers means is decided here, as Go's
//! `archive/tar` decides it, which Docker, containerd and umoci read images with. Two readings of one archive are how a
//! file is smuggled past a check, so whatever these readers disagree about is refused. Every size is bounded before
//! memory is taken for it.

use std::io::{self, Read, Seek};

use tar::{GnuExtSparseHeader, Header};

use super::fault::{Fault, refuse};
use super::limits::Limits;
use super::number::{check_sum, number, signed};
use super::pax::{self, Pax, SEGMENTS_MAX};
use super::split::SplitLog;

/// Unit of a tar archive.
pub(super) const BLOCK: usize = 512;

/// The kind of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Dir,
    Symlink,
    Hardlink,
    Fifo,
    /// A character or block device.
    Device,
}

/// An entry's header.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: (i64, u32),
    /// Bytes of the file.
    pub(super) size: u64,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Offset and length of the segments that the archive has, for a sparse file.
    pub(super) segments: Option<Vec<(u64, u64)>>,
}

/// Reads an archive frame by frame.
pub(super) struct Frames<R> {
    input: R,
    log: Option<SplitLog>,
    /// Bytes of the current entry that were not read yet, and the padding after them.
    left: u64,
    padding: u64,
    /// Headers of every kind.
    headers: u64,
    limits: Limits,
    ended: bool,
}

/// Names from headers before an entry's own.
#[derive(Default)]
struct Before {
    pax: Option<Pax>,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl<R: Read + Seek> Frames<R> {
    /// [`Frames::next`], without reading the content of the last entry.
    pub(super) fn next_by_seeking(&mut self) -> Result<Option<Entry>, Fault> {
        let skipped = self.left + self.padding;
        if skipped > 0 {
            let skipped = i64::try_from(skipped).map_err(|_| Fault::refused("an entry is too large"))?;
            self.input.seek_relative(skipped)?;
            (self.left, self.padding) = (0, 0);
        }
        self.next()
    }

    /// Where the input is.
    pub(super) fn position(&mut self) -> Result<u64, Fault> {
        Ok(self.input.stream_position()?)
    }
}

impl<R: Read> Frames<R> {
    pub(super) fn new(input: R, limits: Limits, log: Option<SplitLog>) -> Self {
        Self { input, log, left: 0, padding: 0, headers: 0, limits, ended: false }
    }

    /// The next entry; none at the end of the archive. What was not read of the last one is skipped.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, Fault> {
        let mut before = Before::default();
        loop {
            let Some(header) = self.header()? else {
                if before.pax.is_some() || before.path.is_some() || before.link.is_some() {
                    refuse!("the archive ends with an extended header that belongs to no entry");
                }
                return Ok(None);
            };
            let size = number(&header.as_old().size, "size")?;
            match header.entry_type().as_byte() {
                b'x' => before.pax = Some(pax::parse(&self.small(size, self.limits.header_bytes)?)?),
                // For other archivers they set defaults; Go's reader leaves them to its caller, and Docker ignores them.
                b'g' => drop(self.small(size, self.limits.header_bytes)?),
                b'L' => before.path = Some(self.long_name(size)?),
                b'K' => before.link = Some(self.long_name(size)?),
                b'V' => self.begin(size)?,
                _ => return self.entry(&header, size, before).map(Some),
            }
        }
    }

    /// Reads from the content of the current entry.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Fault> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let got = read_some(&mut self.input, &mut buffer[..most]).map_err(Fault::reading)?;
        if got == 0 {
            refuse!("the archive is truncated");
        }
        if let Some(log) = &mut self.log {
            log.content(&buffer[..got])?;
        }
        self.left -= got as u64;
        Ok(got)
    }

    /// The content of the current entry becomes the file `path` as it is: the log names the file in place of the bytes.
    pub(super) fn content_is_file(&mut self, path: &[u8]) -> Result<(), Fault> {
        match &mut self.log {
            Some(log) => log.file(path, self.left),
            None => Ok(()),
        }
    }

    /// The archive cannot be made again from the files: there will be no log.
    pub(super) fn drop_log(&mut self) {
        self.log = None;
    }

    /// Gives back the input and the log, after the end.
    pub(super) fn into_parts(self) -> (R, Option<SplitLog>) {
        (self.input, self.log)
    }

    /// One block; `None` at the end of the input.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, Fault> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match read_some(&mut self.input, &mut block[filled..]).map_err(Fault::reading)? {
                0 if filled == 0 => return Ok(None),
                0 => refuse!("the archive is truncated"),
                got => filled += got,
            }
        }
        if let Some(log) = &mut self.log {
            log.raw(&block)?;
        }
        Ok(Some(block))
    }

    /// The next header that is not the end of the archive.
    fn header(&mut self) -> Result<Option<Header>, Fault> {
        self.skip()?;
        if self.ended {
            return Ok(None);
        }
        let Some(block) = self.block()? else {
            self.ended = true;
            return Ok(None);
        };
        if block.iter().all(|byte| *byte == 0) {
            // Two empty blocks end an archive; one does if nothing follows.
            match self.block()? {
                Some(second) if second.iter().any(|byte| *byte != 0) => {
                    refuse!("an empty block is followed by something other than the end of the archive")
                }
                _ => {}
            }
            self.ended = true;
            self.rest()?;
            return Ok(None);
        }
        self.headers += 1;
        if self.headers > self.limits.entries.saturating_mul(4) {
            refuse!("the archive has more than {} headers", self.limits.entries.saturating_mul(4));
        }
        let header = Header::from_byte_slice(&block).clone();
        check_sum(&header)?;
        Ok(Some(header))
    }

    /// Reads what follows the end of the archive: padding, or bytes that no reader looks at.
    fn rest(&mut self) -> Result<(), Fault> {
        let mut buffer = [0; 4 * BLOCK];
        loop {
            let got = read_some(&mut self.input, &mut buffer).map_err(Fault::reading)?;
            if got == 0 {
                return Ok(());
            }
            if let Some(log) = &mut self.log {
                log.raw(&buffer[..got])?;
            }
        }
    }

    fn begin(&mut self, size: u64) -> Result<(), Fault> {
        if size > self.limits.bytes {
            refuse!("it has {size} bytes; a layer has at most {}", self.limits.bytes);
        }
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        Ok(())
    }

    /// Skips the rest of the current entry and its padding.
    fn skip(&mut self) -> Result<(), Fault> {
        let mut buffer = [0; 16 * BLOCK];
        while self.read(&mut buffer)? > 0 {}
        if let Some(log) = &mut self.log {
            log.content_ends();
        }
        self.left = std::mem::take(&mut self.padding);
        while self.read(&mut buffer)? > 0 {}
        Ok(())
    }

    /// The whole content of a header that describes the next one.
    fn small(&mut self, size: u64, most: u64) -> Result<Vec<u8>, Fault> {
        if size > most {
            refuse!("an extended header has {size} bytes; at most {most} are allowed");
        }
        self.begin(size)?;
        let mut content = vec![0; usize::try_from(size).unwrap_or(0)];
        let mut filled = 0;
        while filled < content.len() {
            filled += self.read(&mut content[filled..])?;
        }
        Ok(content)
    }

    fn long_name(&mut self, size: u64) -> Result<Vec<u8>, Fault> {
        // The terminating NUL comes on top.
        let mut name = self.small(size, self.limits.path_bytes as u64 + 1)?;
        name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
        Ok(name)
    }

    fn entry(&mut self, header: &Header, size: u64, before: Before) -> Result<Entry, Fault> {
        let pax = before.pax.unwrap_or_default();
        let plain = header.path_bytes();
        let path = choose("name", before.path, pax.path, &plain)?;
        let link = choose("link", before.link, pax.link, &header.link_name_bytes().unwrap_or_default())?;
        let with_path = |fault: Fault| fault.in_entry(&path);
        let kind = kind(header, &path).map_err(with_path)?;
        let has_content = matches!(header.entry_type().as_byte(), b'0' | 0 | b'7' | b'S' | b'D');
        let mut stored = if has_content { pax.size.unwrap_or(size) } else { 0 };
        if kind == Kind::Dir && stored != 0 && header.entry_type().as_byte() != b'D' {
            return Err(with_path(Fault::refused("it is a directory with content")));
        }
        self.begin(stored).map_err(with_path)?;
        let mut path = path;
        let mut real = stored;
        let segments = self.segments(header, pax.sparse, &mut path, &mut stored, &mut real);
        let segments = segments.map_err(|fault| fault.in_entry(&path))?;
        let with_path = |fault: Fault| fault.in_entry(&path);
        let old = header.as_old();
        let id = |given: Option<u64>, field: &[u8; 8], what: &str| -> Result<u32, Fault> {
            let id = given.map_or_else(|| number(field, what), Ok)?;
            // The last one means "leave it as it is" to chown(2).
            u32::try_from(id)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| Fault::refused(format!("its {what} {id} is too large")))
        };
        let mtime = match pax.mtime {
            Some(time) => time,
            None => (signed(&old.mtime, "time").map_err(with_path)?, 0),
        };
        Ok(Entry {
            kind,
            mode: u32::try_from(number(&old.mode, "mode").map_err(with_path)? & 0o7777).unwrap_or(0),
            uid: id(pax.uid, &old.uid, "owner").map_err(with_path)?,
            gid: id(pax.gid, &old.gid, "group").map_err(with_path)?,
            mtime,
            size: real,
            xattrs: pax.xattrs,
            segments,
            link,
            path,
        })
    }

    /// The map of a sparse file, in any of the four forms of GNU tar. `stored` becomes what is left of the content after
    /// a map that is part of it, `real` the size of the file.
    fn segments(
        &mut self,
        header: &Header,
        keys: Option<pax::SparseKeys>,
        path: &mut Vec<u8>,
        stored: &mut u64,
        real: &mut u64,
    ) -> Result<Option<Vec<(u64, u64)>>, Fault> {
        let map = if header.entry_type().as_byte() == b'S' {
            let Some(gnu) = header.as_gnu() else { refuse!("it is a sparse file without GNU's header") };
            *real = number(&gnu.realsize, "real size")?;
            self.old_map(header)?
        } else if let Some(keys) = keys {
            if !matches!(header.entry_type().as_byte(), b'0' | 0 | b'7') {
                return Ok(None);
            }
            match (keys.major, keys.minor) {
                (Some(1), Some(0)) => {}
                (None | Some(0), _) => {}
                _ => refuse!("it is a sparse file of an unknown version"),
            }
            let Some(size) = keys.real_size else { refuse!("it is a sparse file without a size") };
            *real = size;
            if let Some(name) = keys.name {
                *path = name;
            }
            if keys.major == Some(1) {
                let map = self.inline_map()?;
                *stored = self.left;
                map
            } else {
                keys.map
            }
        } else {
            return Ok(None);
        };
        let mut end = 0_u64;
        let mut total = 0_u64;
        for (offset, length) in &map {
            if *offset < end {
                refuse!("its sparse segments overlap or are out of order");
            }
            end = offset
                .checked_add(*length)
                .filter(|end| *end <= *real)
                .ok_or_else(|| Fault::refused("its sparse segments reach beyond its size"))?;
            total += length;
        }
        if total != *stored {
            refuse!("its sparse segments have {total} bytes, but the archive has {stored} of it");
        }
        Ok(Some(map.into_iter().filter(|(_, length)| *length > 0).collect()))
    }

    /// The map in the header of the type `S`, and in the blocks that follow it.
    fn old_map(&mut self, header: &Header) -> Result<Vec<(u64, u64)>, Fault> {
        let Some(gnu) = header.as_gnu() else { return Ok(Vec::new()) };
        let mut map = Vec::new();
        let mut add = |list: &[tar::GnuSparseHeader]| -> Result<(), Fault> {
            for segment in list.iter().take_while(|segment| !segment.is_empty()) {
                if map.len() >= SEGMENTS_MAX {
                    refuse!("it has more than {SEGMENTS_MAX} sparse segments");
                }
                map.push((number(&segment.offset, "sparse map")?, number(&segment.numbytes, "sparse map")?));
            }
            Ok(())
        };
        add(&gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            let Some(block) = self.block()? else { refuse!("the archive is truncated") };
            let mut extended = GnuExtSparseHeader::new();
            extended.as_mut_bytes().copy_from_slice(&block);
            add(extended.sparse())?;
            more = extended.is_extended();
        }
        Ok(map)
    }

    /// The map at the beginning of the content (version 1.0): decimal lines, padded to whole blocks.
    fn inline_map(&mut self) -> Result<Vec<(u64, u64)>, Fault> {
        let mut text: Vec<u8> = Vec::new();
        let mut at = 0;
        let mut wanted: Option<u64> = None;
        let mut numbers = Vec::new();
        while wanted.is_none_or(|wanted| (numbers.len() as u64) < wanted) {
            let Some(newline) = text[at..].iter().position(|byte| *byte == b'\n') else {
                // A number has at most 20 digits, so a line never spans more than two blocks.
                if text.len() - at > 32 || self.left < BLOCK as u64 {
                    refuse!("its map of sparse segments is malformed");
                }
                let mut block = [0; BLOCK];
                let mut filled = 0;
                while filled < BLOCK {
                    filled += self.read(&mut block[filled..])?;
                }
                text.drain(..at);
                at = 0;
                text.extend_from_slice(&block);
                continue;
            };
            let value = pax::number(b"sparse map", &text[at..at + newline])?;
            at += newline + 1;
            match wanted {
                Some(_) => numbers.push(value),
                None if value <= SEGMENTS_MAX as u64 => wanted = Some(value * 2),
                None => refuse!("it has more than {SEGMENTS_MAX} sparse segments"),
            }
        }
        Ok(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }
}

fn read_some(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match input.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// A name that may be given in three ways. GNU's and POSIX's way at once must agree.
fn choose(what: &str, gnu: Option<Vec<u8>>, pax: Option<Vec<u8>>, plain: &[u8]) -> Result<Vec<u8>, Fault> {
    match (gnu, pax) {
        (Some(gnu), Some(pax)) if gnu != pax => {
            refuse!("two extended headers give an entry different values for its {what}")
        }
        (Some(name), _) | (None, Some(name)) => Ok(name),
        (None, None) => Ok(plain.to_vec()),
    }
}

fn kind(header: &Header, path: &[u8]) -> Result<Kind, Fault> {
    Ok(match header.entry_type().as_byte() {
        b'0' | 0 if path.ends_with(b"/") => Kind::Dir,
        b'0' | 0 | b'7' | b'S' => Kind::File,
        b'1' => Kind::Hardlink,
        b'2' => Kind::Symlink,
        b'3' | b'4' => Kind::Device,
        b'5' | b'D' => Kind::Dir,
        b'6' => Kind::Fifo,
        b'M' => refuse!("it is a part of a file that another archive begins"),
        other => refuse!("it has the unknown type '{}'", other.escape_ascii()),
    })
}
