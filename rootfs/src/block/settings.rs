//! Which block devices there are for disks, as the operator says.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The devices of the driver `block`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockSettings {
    /// Where devices come from.
    pub source: BlockSource,
    /// New disks lie on them. Otherwise only those that do so already.
    pub for_new: bool,
    /// Take devices of the list even if they have content that is not ours.
    pub force: bool,
}

/// Where devices come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlockSource {
    /// Paths of devices; the last part of a path may have one `*`.
    List(Vec<String>),
    /// A program that makes and deletes them, and its first arguments.
    Program(Vec<String>),
}

/// A device of the list, or of the program, that is not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The device.
    pub path: PathBuf,
    /// Why.
    pub why: String,
}

/// The devices that there are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceReport {
    /// The disks of new boxes lie on them.
    pub for_new: bool,
    /// Those that have the disk of a box.
    pub disks: usize,
    /// Those that a new box can have.
    pub free: usize,
    /// Those that are being overwritten, or deleted.
    pub wiping: usize,
    /// Those that are not used.
    pub refused: Vec<Refused>,
}

/// The paths that a pattern stands for, sorted.
pub(super) fn expand(pattern: &str) -> io::Result<Vec<PathBuf>> {
    let path = Path::new(pattern);
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some((before, after)) = name.split_once('*') else { return Ok(vec![path.to_owned()]) };
    let mut found = Vec::new();
    for entry in fs::read_dir(path.parent().unwrap_or(Path::new("/")))? {
        let entry = entry?;
        let fits = entry.file_name().to_str().is_some_and(|name| {
            name.len() >= before.len() + after.len() && name.starts_with(before) && name.ends_with(after)
        });
        found.extend(fits.then(|| entry.path()));
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_part_of_a_name() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["box-1", "box-2", "other", "box"] {
            fs::write(dir.path().join(name), b"").unwrap();
        }
        let expanded = |pattern: &str| {
            let paths = expand(&dir.path().join(pattern).display().to_string()).unwrap();
            paths.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect::<Vec<_>>()
        };
        assert_eq!(expanded("box-*"), ["box-1", "box-2"]);
        assert_eq!(expanded("*x"), ["box"]);
        assert_eq!(expanded("missing"), ["missing"]);
        assert!(expand("/no/such/directory/*").is_err());
    }
}
