//! The tree that overlayfs makes of layers, read without mounting it.
//!
//! A path is followed name by name through the layers; a link leads on within the tree. No path of the host is ever
//! followed: each name is looked at by itself, and a layer does not change.

use std::fs::{self, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Links that one path may lead through (the kernel has 40).
const LINKS_MAX: usize = 40;
/// Largest file that is read.
const READ_BYTES_MAX: u64 = 1 << 20;

/// Layers, the topmost first.
#[derive(Debug)]
pub(super) struct Merged {
    layers: Vec<PathBuf>,
}

/// What is at a path.
#[derive(Debug)]
pub(super) struct Seen {
    /// The path without links, relative to the root.
    pub(super) path: String,
    pub(super) facts: Metadata,
    /// The directories of the layers that make up this directory, the topmost first; or the one file.
    pub(super) at: Vec<PathBuf>,
}

impl Merged {
    pub(super) fn new(layers: Vec<PathBuf>) -> Self {
        Self { layers }
    }

    /// What is at a path; links on the way are followed, the last one too if `follow`.
    pub(super) fn look(&self, path: &str, follow: bool) -> io::Result<Option<Seen>> {
        let mut left: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
        let mut done: Vec<Seen> = vec![self.root()?];
        let mut links = 0;
        while let Some(name) = left.pop() {
            match name.as_str() {
                "" | "." => continue,
                ".." => {
                    if done.len() > 1 {
                        done.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let Some(parent) = done.last() else { return Ok(None) };
            let Some(seen) = child(parent, &name)? else { return Ok(None) };
            if seen.facts.is_symlink() && (follow || !left.iter().all(|rest| matches!(rest.as_str(), "" | "."))) {
                links += 1;
                if links > LINKS_MAX {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("{path} leads through too many links"),
                    ));
                }
                let target = fs::read_link(&seen.at[0])?;
                let Some(target) = target.to_str() else { return Ok(None) };
                if target.starts_with('/') {
                    done.truncate(1);
                }
                left.extend(target.split('/').rev().map(str::to_owned));
                continue;
            }
            done.push(seen);
        }
        Ok(done.pop())
    }

    /// The content of a regular file, links followed; `None` if it is none.
    pub(super) fn read(&self, path: &str) -> io::Result<Option<Vec<u8>>> {
        let Some(seen) = self.look(path, true)?.filter(|seen| seen.facts.is_file()) else { return Ok(None) };
        let file =
            fs::OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&seen.at[0])?;
        let mut content = Vec::new();
        file.take(READ_BYTES_MAX + 1).read_to_end(&mut content)?;
        if content.len() as u64 > READ_BYTES_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("/{path} has more than {READ_BYTES_MAX} bytes"),
            ));
        }
        Ok(Some(content))
    }

    /// A program that anyone may start.
    pub(super) fn is_program(&self, path: &str) -> io::Result<bool> {
        Ok(self.look(path, true)?.is_some_and(|seen| seen.facts.is_file() && seen.facts.mode() & 0o001 != 0))
    }

    fn root(&self) -> io::Result<Seen> {
        let Some(top) = self.layers.first() else { return Err(io::ErrorKind::NotFound.into()) };
        Ok(Seen { path: String::new(), facts: fs::symlink_metadata(top)?, at: self.layers.clone() })
    }
}

/// What the layers of a directory have under a name.
fn child(parent: &Seen, name: &str) -> io::Result<Option<Seen>> {
    let mut found: Option<Seen> = None;
    for dir in parent.at.iter().filter(|_| parent.facts.is_dir()) {
        let path = dir.join(name);
        let facts = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        if facts.file_type().is_char_device() && facts.rdev() == 0 {
            break;
        }
        let is_dir = facts.is_dir();
        let ends = is_dir && is_opaque(&path)?;
        match &mut found {
            None => {
                let below = if parent.path.is_empty() { name.to_owned() } else { format!("{}/{name}", parent.path) };
                found = Some(Seen { path: below, facts, at: vec![path] });
            }
            Some(above) if is_dir => above.at.push(path),
            Some(_) => break,
        }
        if !is_dir || ends {
            break;
        }
    }
    Ok(found)
}

fn is_opaque(dir: &Path) -> io::Result<bool> {
    let mut value = [0; 8];
    match rustix::fs::lgetxattr(dir, c"trusted.overlay.opaque", &mut value) {
        Ok(length) => Ok(&value[..length] == b"y"),
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_lead_on_in_the_tree_and_not_out_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let (top, bottom) = (dir.path().join("top"), dir.path().join("bottom"));
        fs::create_dir_all(top.join("etc")).unwrap();
        fs::create_dir_all(bottom.join("usr/bin")).unwrap();
        fs::create_dir_all(bottom.join("etc")).unwrap();
        fs::write(dir.path().join("secret"), "host").unwrap();
        fs::write(bottom.join("etc/passwd"), "below").unwrap();
        fs::write(bottom.join("etc/group"), "below").unwrap();
        fs::write(top.join("etc/passwd"), "above").unwrap();
        fs::write(bottom.join("usr/bin/sh"), "x").unwrap();
        symlink("usr/bin", bottom.join("bin")).unwrap();
        symlink("../../../secret", top.join("etc/out")).unwrap();
        symlink("/etc/passwd", top.join("etc/absolute")).unwrap();
        symlink("loop", top.join("etc/loop")).unwrap();
        let merged = Merged::new(vec![top, bottom]);
        let read = |path| merged.read(path).unwrap().map(|text| String::from_utf8(text).unwrap());
        assert_eq!(read("etc/passwd").as_deref(), Some("above"));
        assert_eq!(read("etc/group").as_deref(), Some("below"));
        assert_eq!(read("etc/absolute").as_deref(), Some("above"));
        assert_eq!((read("etc/out"), read("../secret"), read("etc/passwd/x")), (None, None, None));
        assert_eq!(merged.look("bin/sh", true).unwrap().unwrap().path, "usr/bin/sh");
        assert_eq!(merged.look("bin", false).unwrap().unwrap().path, "bin");
        assert_eq!(merged.look("etc", true).unwrap().unwrap().at.len(), 2);
        assert!(merged.look("etc/loop", true).is_err());
        assert!(!merged.is_program("bin/sh").unwrap());
    }
}
