//! The files of a layout or archive, by their names in it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};

use crate::unpack::{Fault, Kind, Limits, list};

/// Most entries of an archive of images: blobs and a few documents.
const ENTRIES_MAX: u64 = 100_000;

/// Files with names.
pub(crate) trait Files {
    /// Opens a file and tells its size; `None` if there is none of this name.
    fn open(&self, name: &str) -> io::Result<Option<(Box<dyn Read + Send + '_>, u64)>>;

    /// The whole content of a small file.
    fn read(&self, name: &str, most: u64) -> io::Result<Option<Vec<u8>>> {
        let Some((file, size)) = self.open(name)? else { return Ok(None) };
        if size > most {
            let why = format!("{name} has {size} bytes; at most {most} are allowed");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let mut content = Vec::new();
        file.take(most).read_to_end(&mut content)?;
        Ok(Some(content))
    }
}

/// A directory of this machine. Links may lead anywhere in it, and not out of it.
pub(crate) struct DirFiles {
    root: OwnedFd,
}

impl DirFiles {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
        Ok(Self { root: openat(CWD, path, flags, Mode::empty())? })
    }
}

impl Files for DirFiles {
    fn open(&self, name: &str) -> io::Result<Option<(Box<dyn Read + Send + '_>, u64)>> {
        // A pipe would block the open.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        match openat2(&self.root, name, flags, Mode::empty(), resolve) {
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(errno.into()),
            Ok(fd) => {
                let file = File::from(fd);
                let facts = file.metadata()?;
                if !facts.is_file() {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{name} is not a regular file")));
                }
                Ok(Some((Box::new(file), facts.len())))
            }
        }
    }
}

/// An uncompressed tar archive, read where its files are.
pub(crate) struct TarFiles {
    file: File,
    /// Offset and size.
    at: HashMap<String, (u64, u64)>,
    /// Symbolic and hard links: old versions of `docker save` have one for a layer that they wrote before.
    links: HashMap<String, String>,
}

impl TarFiles {
    /// Lists the archive. `None` if it has a file that no archive of images has, or no file at all.
    pub(crate) fn list(file: File) -> Result<Option<Self>, Fault> {
        let mut files = Self { file: file.try_clone()?, at: HashMap::new(), links: HashMap::new() };
        let mut foreign = false;
        list(
            io::BufReader::with_capacity(1 << 16, file),
            Limits { entries: ENTRIES_MAX, ..Limits::default() },
            &mut |entry| {
                let Some(name) = std::str::from_utf8(entry.path).ok().map(clean) else {
                    foreign = true;
                    return false;
                };
                if !name.is_empty() && !of_images(&name) {
                    foreign = true;
                    return false;
                }
                match entry.kind {
                    Kind::File => drop(files.at.insert(name, (entry.at, entry.size))),
                    Kind::Symlink => drop(files.links.insert(name.clone(), beside(&name, entry.link))),
                    Kind::Hardlink => drop(files.links.insert(name, clean(&String::from_utf8_lossy(entry.link)))),
                    _ => {}
                }
                true
            },
        )?;
        Ok((!foreign && !files.at.is_empty()).then_some(files))
    }
}

impl Files for TarFiles {
    fn open(&self, name: &str) -> io::Result<Option<(Box<dyn Read + Send + '_>, u64)>> {
        let name = clean(name);
        let place = self.at.get(&name).or_else(|| self.links.get(&name).and_then(|target| self.at.get(target)));
        Ok(place.map(|(at, size)| {
            let part: Box<dyn Read + Send> = Box::new(Part { file: &self.file, at: *at, left: *size });
            (part, *size)
        }))
    }
}

/// A part of a file, read by position.
struct Part<'f> {
    file: &'f File,
    at: u64,
    left: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let got = self.file.read_at(&mut buffer[..most], self.at)?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += got as u64;
        self.left -= got as u64;
        Ok(got)
    }
}

/// A name without its leading `./` and its trailing `/`.
fn clean(name: &str) -> String {
    name.split('/').filter(|part| !matches!(*part, "" | ".")).collect::<Vec<_>>().join("/")
}

/// The target of a link at `name`, as a name of the archive.
fn beside(name: &str, target: &[u8]) -> String {
    let target = String::from_utf8_lossy(target);
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Names that occur in archives of images: OCI's, and those of `docker save` in all its versions.
fn of_images(name: &str) -> bool {
    let first = name.split('/').next().unwrap_or_default();
    let stem = first.split('.').next().unwrap_or_default();
    let hex = stem.len() == 64 && stem.bytes().all(|byte| byte.is_ascii_hexdigit());
    hex || matches!(first, "oci-layout" | "index.json" | "blobs" | "manifest.json" | "repositories")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_archives_of_images() {
        let id = "ab".repeat(32);
        for name in
            ["blobs/sha256/x", "oci-layout", "manifest.json", &id, &format!("{id}/layer.tar"), &format!("{id}.json")]
        {
            assert!(of_images(name), "{name}");
        }
        for name in ["etc", "bin/sh", "manifest.json.d", "ab/layer.tar"] {
            assert!(!of_images(name), "{name}");
        }
        assert_eq!(beside("a/layer.tar", b"../b/layer.tar"), "b/layer.tar");
        assert_eq!(clean("./a//b/"), "a/b");
    }

    #[test]
    fn a_directory_is_not_left() {
        let dir = tempfile::tempdir().unwrap();
        let layout = dir.path().join("layout");
        std::fs::create_dir(&layout).unwrap();
        std::fs::write(dir.path().join("secret"), "x").unwrap();
        std::os::unix::fs::symlink("../secret", layout.join("index.json")).unwrap();
        let files = DirFiles::open(&layout).unwrap();
        assert!(files.open("index.json").is_err() && files.open("../secret").is_err());
        assert!(files.open("nothing").unwrap().is_none() && files.open("a/b").unwrap().is_none());
    }
}
