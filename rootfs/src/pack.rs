//! A directory becomes a tar archive: the form in which a layer travels.
//!
//! The order is that of the names, so a tree gives the same bytes each time. Nothing is followed; files are opened below the
//! directory's descriptor.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fgetxattr, flistxattr, openat, readlinkat, statat};
use rustix::io::Errno;
use tar::{EntryType, Header};

use crate::sparse::{BLOCK, Map, map_of, map_text, padding, sparse_name};

/// Deepest directory that is walked.
const DEPTH_MAX: usize = 128;
/// Most bytes of names that are held at once: those of the directories above an entry, and the first of each hard link.
const HELD_BYTES_MAX: usize = 256 << 20;
/// What a name costs beside its bytes.
const NAME_COSTS: usize = 64;
/// Longest list of attributes, and longest attribute (limits of Linux).
const XATTR_BYTES_MAX: usize = 64 * 1024;
/// Most lists and attributes are small.
const XATTR_BYTES_FIRST: usize = 256;

/// What the directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A file tree. Device nodes are entries of their own.
    Plain,
    /// A layer of overlayfs, such as its `upper`: character devices 0:0 and opaque directories become whiteouts of OCI.
    Overlay,
}

/// What is written of a tree, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packing<'a> {
    pub(crate) form: Form,
    /// Relative paths, which are left out with all below.
    pub(crate) skip: &'a [&'a [u8]],
    /// The directory of the archive that the tree becomes; empty, or with a slash at its end.
    pub(crate) below: &'a [u8],
    /// Holes of files are left out (GNU's sparse format 1.0).
    pub(crate) sparse: bool,
}

/// Writes the tree at `root` as a tar archive.
pub fn pack(root: &Path, form: Form, output: impl Write) -> io::Result<()> {
    pack_without(root, form, &[], output)
}

/// Writes the tree at `root` as a tar archive, without what is at and below the paths `skip`, which are relative.
pub fn pack_without(root: &Path, form: Form, skip: &[&[u8]], output: impl Write) -> io::Result<()> {
    pack_as(root, Packing { form, skip, below: b"", sparse: false }, output)
}

/// Writes the tree at `root`, and the end of the archive.
pub(crate) fn pack_as(root: &Path, packing: Packing<'_>, output: impl Write) -> io::Result<()> {
    pack_tree(root, packing, output, false).map(drop)
}

/// The bytes that [`pack_as`] would write. No content of a file is read.
pub(crate) fn packed_bytes(root: &Path, packing: Packing<'_>) -> io::Result<u64> {
    pack_tree(root, packing, io::sink(), true)
}

fn pack_tree(root: &Path, packing: Packing<'_>, output: impl Write, only_count: bool) -> io::Result<u64> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
    let fd = openat(CWD, root, flags, Mode::empty())?;
    let output = BufWriter::with_capacity(256 * 1024, Counted { inner: output, bytes: 0 });
    let mut packer = Packer { output, packing, only_count, links: HashMap::new(), held: 0 };
    let stat = rustix::fs::fstat(&fd)?;
    let mut path = packing.below.to_vec();
    let top: &[u8] = if path.is_empty() { b"./" } else { &path };
    packer.entry(top, &[], &stat, EntryType::Directory, 0, Extra { attributes: xattrs(fd.as_fd())?, map: &[] })?;
    packer.dir(&fd, &mut path, 0)?;
    packer.output.write_all(&[0; 2 * BLOCK as usize])?;
    packer.output.flush()?;
    Ok(packer.output.get_ref().bytes)
}

/// Writes one small file of our own, without the end of an archive.
pub(crate) fn pack_file(name: &[u8], content: &[u8], mtime: u64, output: &mut impl Write) -> io::Result<()> {
    let mut header = Header::new_ustar();
    header.set_path(std::str::from_utf8(name).map_err(io::Error::other)?)?;
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    header.set_mtime(mtime);
    header.set_cksum();
    output.write_all(header.as_bytes())?;
    output.write_all(content)?;
    io::copy(&mut io::repeat(0).take(padding(content.len() as u64)), output).map(drop)
}

struct Counted<W> {
    inner: W,
    bytes: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Extended attributes by their names.
type Attributes = Vec<(CString, Vec<u8>)>;

/// What an extended header tells of an entry.
struct Extra<'a> {
    attributes: Attributes,
    /// The map of a sparse file; empty for any other.
    map: &'a Map,
}

impl Extra<'_> {
    const NONE: Extra<'static> = Extra { attributes: Vec::new(), map: &[] };
}

struct Packer<'a, W: Write> {
    output: BufWriter<Counted<W>>,
    packing: Packing<'a>,
    /// The content of files is counted and not read.
    only_count: bool,
    /// First paths of files with several links, by device and inode.
    links: HashMap<(u64, u64), Vec<u8>>,
    /// Bytes of names in memory.
    held: usize,
}

impl<W: Write> Packer<'_, W> {
    fn dir(&mut self, dir: &OwnedFd, path: &mut Vec<u8>, depth: usize) -> io::Result<()> {
        if depth > DEPTH_MAX {
            return Err(at(path, io::Error::new(io::ErrorKind::InvalidInput, "it is nested too deeply")));
        }
        let mut names = Vec::new();
        let held = self.held;
        for entry in Dir::read_from(dir)? {
            let entry = entry?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                self.hold(entry.file_name().to_bytes().len()).map_err(|error| at(path, error))?;
                names.push(entry.file_name().to_owned());
            }
        }
        let names_held = self.held - held;
        names.sort();
        for name in names {
            let length = path.len();
            path.extend_from_slice(name.to_bytes());
            let skipped = self.packing.skip.contains(&path.get(self.packing.below.len()..).unwrap_or_default());
            let done =
                if skipped { Ok(()) } else { self.one(dir, &name, path, depth).map_err(|error| at(path, error)) };
            path.truncate(length);
            done?;
        }
        self.held -= names_held;
        Ok(())
    }

    /// Counts a name that is kept in memory. The tree may be a tenant's, and made to use up memory.
    fn hold(&mut self, bytes: usize) -> io::Result<()> {
        self.held += bytes + NAME_COSTS;
        if self.held > HELD_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it has too many names or hard links"));
        }
        Ok(())
    }

    fn one(&mut self, dir: &OwnedFd, name: &CStr, path: &mut Vec<u8>, depth: usize) -> io::Result<()> {
        let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::Directory && stat.st_nlink > 1 && !self.is_whiteout(&stat) {
            let inode = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&inode) {
                let first = first.clone();
                return self.entry(path, &first, &stat, EntryType::Link, 0, Extra::NONE);
            }
            self.hold(path.len())?;
            self.links.insert(inode, path.clone());
        }
        let open =
            |flags| openat(dir, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY, Mode::empty());
        match kind {
            FileType::Directory => {
                let fd = open(OFlags::DIRECTORY)?;
                let (opaque, attributes) = self.dir_attributes(fd.as_fd())?;
                path.push(b'/');
                self.entry(path, &[], &stat, EntryType::Directory, 0, Extra { attributes, map: &[] })?;
                if opaque {
                    let marker = [path.as_slice(), b".wh..wh..opq"].concat();
                    self.marker(&marker)?;
                }
                self.dir(&fd, path, depth + 1)
            }
            FileType::RegularFile => {
                let file = File::from(open(OFlags::NONBLOCK)?);
                self.file(path, &file, &stat)
            }
            FileType::Symlink => {
                let target = readlinkat(dir, name, Vec::new())?;
                self.entry(path, target.as_bytes(), &stat, EntryType::Symlink, 0, Extra::NONE)
            }
            FileType::Fifo => self.entry(path, &[], &stat, EntryType::Fifo, 0, Extra::NONE),
            FileType::CharacterDevice if self.is_whiteout(&stat) => {
                let start = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
                let marker = [&path[..start], b".wh.", &path[start..]].concat();
                self.marker(&marker)
            }
            FileType::CharacterDevice => self.entry(path, &[], &stat, EntryType::Char, 0, Extra::NONE),
            FileType::BlockDevice => self.entry(path, &[], &stat, EntryType::Block, 0, Extra::NONE),
            // A socket is nothing without the process that listens on it; tar has no form for one.
            _ => Ok(()),
        }
    }

    fn file(&mut self, path: &[u8], file: &File, stat: &Stat) -> io::Result<()> {
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let attributes = xattrs(file.as_fd())?;
        let has_holes = u64::try_from(stat.st_blocks).unwrap_or(0) * BLOCK < size;
        let map = if self.packing.sparse && has_holes { map_of(file, size)? } else { None };
        let Some(map) = map else {
            self.entry(path, &[], stat, EntryType::Regular, size, Extra { attributes, map: &[] })?;
            self.content(file, 0, size)?;
            return self.zeros(padding(size));
        };
        let text = map_text(&map);
        let stored = text.len() as u64 + map.iter().map(|(_, length)| length).sum::<u64>();
        self.entry(path, &[], stat, EntryType::Regular, stored, Extra { attributes, map: &map })?;
        self.output.write_all(&text)?;
        for (offset, length) in &map {
            self.content(file, *offset, *length)?;
        }
        self.zeros(padding(stored))
    }

    /// A part of a file. One that shrinks meanwhile must not move what follows.
    fn content(&mut self, file: &File, offset: u64, length: u64) -> io::Result<()> {
        if self.only_count {
            self.output.get_mut().bytes += length;
            return Ok(());
        }
        let mut part = file;
        part.seek(SeekFrom::Start(offset))?;
        if io::copy(&mut Read::by_ref(&mut part).take(length), &mut self.output)? != length {
            return Err(io::Error::other("it shrank while it was read"));
        }
        Ok(())
    }

    fn zeros(&mut self, length: u64) -> io::Result<()> {
        io::copy(&mut io::repeat(0).take(length), &mut self.output).map(drop)
    }

    fn is_whiteout(&self, stat: &Stat) -> bool {
        let character = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
        self.packing.form == Form::Overlay && character && stat.st_rdev == 0
    }

    /// Attributes of a directory, and whether it hides what lies below it.
    fn dir_attributes(&self, fd: BorrowedFd<'_>) -> io::Result<(bool, Attributes)> {
        if self.packing.form == Form::Overlay {
            for name in [c"trusted.overlay.redirect", c"user.overlay.redirect"] {
                if attribute(fd, name)?.is_some() {
                    let why = "it was renamed and has its content in a lower layer";
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
                }
            }
        }
        let marked = |name| Ok::<_, io::Error>(attribute(fd, name)?.is_some_and(|value| value == b"y"));
        let opaque = self.packing.form == Form::Overlay
            && (marked(c"trusted.overlay.opaque")? || marked(c"user.overlay.opaque")?);
        Ok((opaque, xattrs(fd)?))
    }

    /// An empty file that means something to who unpacks the layer.
    fn marker(&mut self, path: &[u8]) -> io::Result<()> {
        let mut header = Header::new_ustar();
        header.set_mode(0o644);
        header.set_entry_type(EntryType::Regular);
        let mut records = Vec::new();
        put_name(&mut header.as_old_mut().name, b"path", path, &mut records);
        self.headers(header, &records)
    }

    fn entry(
        &mut self,
        path: &[u8],
        link: &[u8],
        stat: &Stat,
        kind: EntryType,
        size: u64,
        extra: Extra<'_>,
    ) -> io::Result<()> {
        let mut header = Header::new_ustar();
        let mut records = Vec::new();
        if extra.map.is_empty() {
            put_name(&mut header.as_old_mut().name, b"path", path, &mut records);
        } else {
            // A reader that does not know the format sees a file of another name.
            put_name(&mut header.as_old_mut().name, b"path", &sparse_name(path), &mut records);
            let real = stat.st_size.to_string();
            let keys: [(&[u8], &[u8]); 4] =
                [(b"major", b"1"), (b"minor", b"0"), (b"name", path), (b"realsize", real.as_bytes())];
            for (key, value) in keys {
                record(&mut records, &[b"GNU.sparse.", key].concat(), value);
            }
        }
        put_name(&mut header.as_old_mut().linkname, b"linkpath", link, &mut records);
        header.set_entry_type(kind);
        header.set_mode(stat.st_mode & 0o7777);
        header.set_uid(stat.st_uid.into());
        header.set_gid(stat.st_gid.into());
        header.set_size(size);
        let seconds = stat.st_mtime;
        header.set_mtime(u64::try_from(seconds).unwrap_or(0));
        if stat.st_mtime_nsec != 0 || seconds < 0 {
            record(&mut records, b"mtime", decimal(seconds, stat.st_mtime_nsec).as_bytes());
        }
        if matches!(kind, EntryType::Char | EntryType::Block) {
            header.set_device_major(rustix::fs::major(stat.st_rdev))?;
            header.set_device_minor(rustix::fs::minor(stat.st_rdev))?;
        }
        for (name, value) in extra.attributes {
            record(&mut records, &[b"SCHILY.xattr.", name.to_bytes()].concat(), &value);
        }
        self.headers(header, &records)
    }

    fn headers(&mut self, mut header: Header, records: &[u8]) -> io::Result<()> {
        if !records.is_empty() {
            let mut extended = Header::new_ustar();
            extended.set_entry_type(EntryType::XHeader);
            extended.as_old_mut().name[..9].copy_from_slice(b"PaxHeader");
            extended.set_mode(0o644);
            extended.set_size(records.len() as u64);
            extended.set_cksum();
            self.output.write_all(extended.as_bytes())?;
            self.output.write_all(records)?;
            self.zeros(padding(records.len() as u64))?;
        }
        header.set_cksum();
        self.output.write_all(header.as_bytes())
    }
}

fn at(path: &[u8], error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.escape_ascii()))
}

/// A name goes into its field, or into an extended header if it does not fit or isn't plain.
fn put_name(field: &mut [u8; 100], key: &[u8], name: &[u8], records: &mut Vec<u8>) {
    let length = name.len().min(field.len());
    field[..length].copy_from_slice(&name[..length]);
    if name.len() > field.len() || !name.is_ascii() {
        record(records, key, name);
    }
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length.to_string().len() + rest != length {
        length = length.to_string().len() + rest;
    }
    records.extend_from_slice(format!("{length} ").as_bytes());
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

fn decimal(seconds: i64, nanoseconds: u64) -> String {
    if seconds >= 0 || nanoseconds == 0 {
        return format!("{seconds}.{nanoseconds:09}");
    }
    // Seconds are rounded down, but a decimal fraction counts away from zero.
    let whole = seconds + 1;
    let sign = if whole == 0 { "-" } else { "" };
    format!("{sign}{whole}.{:09}", 1_000_000_000 - nanoseconds)
}

/// Attributes that a layer carries: those that unpacking keeps.
fn xattrs(fd: BorrowedFd<'_>) -> io::Result<Attributes> {
    let list = grown(|buffer| match flistxattr(fd, buffer) {
        Err(Errno::OPNOTSUPP) => Ok(0),
        other => other,
    })?;
    let mut found = Vec::new();
    for name in list.split(|byte| *byte == 0).filter(|name| crate::unpack::keeps_xattr(name)) {
        let name = CString::new(name)?;
        if let Some(value) = attribute(fd, &name)? {
            found.push((name, value));
        }
    }
    found.sort();
    Ok(found)
}

fn attribute(fd: BorrowedFd<'_>, name: &CStr) -> io::Result<Option<Vec<u8>>> {
    match grown(|buffer| fgetxattr(fd, name, buffer)) {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// The result of a call that fills a buffer, with a large buffer if a small one does not do.
fn grown(call: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut buffer = vec![0; XATTR_BYTES_FIRST];
    let length = match call(&mut buffer) {
        Err(Errno::RANGE) => {
            buffer.resize(XATTR_BYTES_MAX, 0);
            call(&mut buffer)?
        }
        other => other?,
    };
    buffer.truncate(length);
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_count_themselves() {
        for length in [1, 90, 91, 92, 93, 94, 95, 985, 990, 995, 9984] {
            let mut records = Vec::new();
            record(&mut records, b"key", &vec![b'x'; length]);
            let text = String::from_utf8(records).unwrap();
            assert_eq!(text.split(' ').next().unwrap().parse::<usize>().unwrap(), text.len());
        }
    }

    #[test]
    fn times_before_1970_have_a_sign() {
        assert_eq!(decimal(5, 1), "5.000000001");
        assert_eq!(decimal(-1, 500_000_000), "-0.500000000");
        assert_eq!(decimal(-2, 250_000_000), "-1.750000000");
        assert_eq!(decimal(-2, 0), "-2.000000000");
    }
}
