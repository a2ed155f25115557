//! What a store holds without an owner: disks, snapshots, unfinished files, and loop devices.
//!
//! The caller says what has an owner; this finds the rest by its name and place. Names that Icebox does not give are told
//! apart by the caller. Leaves out: when something is removed.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{At, Result, Step};
use crate::files;
use crate::id;
use crate::store::{Place, Store, VOLUME_SUFFIX};
use crate::sys::loopdev;
use crate::template::Kind;

/// Something without an owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stray {
    /// What it is.
    pub kind: StrayKind,
    /// What people are shown.
    pub name: String,
    /// Id of the box or snapshot; empty for an unfinished file.
    pub id: String,
    /// Bytes that it occupies.
    pub bytes: u64,
    path: PathBuf,
    /// It is a block device of the operator's.
    is_device: bool,
}

/// Kinds of what a store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StrayKind {
    /// A loop device with a disk or snapshot behind it.
    Loop,
    /// The disk of a box.
    Volume,
    /// A volume of files.
    Data,
    /// A snapshot.
    Snapshot,
    /// An unfinished file of a process that has ended.
    Unfinished,
}

impl Store {
    /// What belongs to none of these boxes and snapshots, and all volumes of files. Loop devices come first: their files cannot be removed before.
    pub fn strays(&self, boxes: &BTreeSet<String>, snapshots: &BTreeSet<String>) -> Result<Vec<Stray>> {
        let (mut found, none) = (self.stray_loops(boxes)?, BTreeSet::new());
        found.extend(self.stray_devices(boxes)?);
        for place in &self.places {
            let (kind, is_id): (_, fn(&str) -> bool) = (StrayKind::Volume, |id| id::check(id).is_ok());
            found.extend(strays_in(&place.volumes, kind, is_id, boxes)?);
            let (kind, is_id): (_, fn(&str) -> bool) = (StrayKind::Snapshot, |id| id::check_snapshot(id).is_ok());
            found.extend(strays_in(&place.snapshots, kind, is_id, snapshots)?);
            let data = place.directory(Kind::Data);
            found.extend(strays_in(data, StrayKind::Data, |id| id::check(id).is_ok(), &none)?);
            for dir in [&place.volumes, &place.snapshots, data, place.templates()] {
                found.extend(unfinished_in(dir)?);
            }
        }
        Ok(found)
    }

    /// Removes it. A loop device that is still mounted is detached by its last user.
    pub fn remove_stray(&self, stray: &Stray) -> Result<()> {
        if stray.is_device {
            return self.remove_volume(&stray.id);
        }
        if stray.kind == StrayKind::Loop {
            let device = OpenOptions::new().read(true).open(&stray.path).at(Step::RemoveVolume, &stray.path)?;
            return match loopdev::clear(device.as_fd()) {
                Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(()),
                done => done.at(Step::RemoveVolume, &stray.path),
            };
        }
        match fs::remove_file(&stray.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.raw_os_error() == Some(libc::EISDIR) => {
                fs::remove_dir_all(&stray.path).at(Step::RemoveVolume, &stray.path)?;
            }
            done => done.at(Step::RemoveVolume, &stray.path)?,
        }
        let dir = stray.path.parent().unwrap_or(Path::new("/"));
        files::sync_dir(dir).at(Step::RemoveVolume, dir)
    }

    /// Devices with a file of this store that no box has, or that has no name any more.
    fn stray_loops(&self, boxes: &BTreeSet<String>) -> Result<Vec<Stray>> {
        let mut found = Vec::new();
        let subject = Path::new("/sys/block");
        for entry in fs::read_dir(subject).at(Step::FindVolume, subject)? {
            let name = entry.at(Step::FindVolume, subject)?.file_name();
            let attached = subject.join(&name).join("loop/backing_file");
            let Ok(text) = fs::read_to_string(&attached) else { continue };
            let path = Path::new("/dev").join(&name);
            let Ok(device) = OpenOptions::new().read(true).open(&path) else { continue };
            // It may have been detached since.
            let Ok(status) = loopdev::status(device.as_fd()) else { continue };
            let Some(id) = self.owner_of(text.trim_end(), status.device) else { continue };
            if !boxes.contains(&id) {
                let bytes = self.volume(&id)?.map_or(Ok(0), |volume| volume.allocated_bytes())?;
                found.push(Stray {
                    kind: StrayKind::Loop,
                    name: format!("{} ({id})", path.display()),
                    id,
                    bytes,
                    path,
                    is_device: false,
                });
            }
        }
        Ok(found)
    }

    /// Disks that no box has among the devices of the operator's.
    fn stray_devices(&self, boxes: &BTreeSet<String>) -> Result<Vec<Stray>> {
        let mut found = Vec::new();
        for (id, path) in self.device_disks() {
            if !boxes.contains(&id) {
                let bytes = self.volume(&id)?.map_or(Ok(0), |volume| volume.allocated_bytes())?;
                let name = format!("{} ({id})", path.display());
                found.push(Stray { kind: StrayKind::Volume, name, id, bytes, path, is_device: true });
            }
        }
        Ok(found)
    }

    /// The id of the box whose disk has this path, as the kernel shows it, on the file system with this number.
    fn owner_of(&self, shown: &str, device: u64) -> Option<String> {
        let path = Path::new(shown.strip_suffix(" (deleted)").unwrap_or(shown));
        let id = path.file_name()?.to_str()?.strip_suffix(VOLUME_SUFFIX)?;
        id::check(id).ok()?;
        let around = fs::metadata(self.data_dir()).ok()?.dev();
        let is_here = |place: &Place| {
            let here = fs::metadata(&place.volumes).is_ok_and(|found| found.dev() == device);
            // A pool is mounted in no namespace: its paths begin at its root.
            let dir = if device == around { fs::canonicalize(&place.volumes).ok() } else { Some("/volumes".into()) };
            here && path.parent() == dir.as_deref()
        };
        self.places.iter().any(is_here).then(|| id.to_owned())
    }
}

fn strays_in(dir: &Path, kind: StrayKind, is_id: fn(&str) -> bool, owned: &BTreeSet<String>) -> Result<Vec<Stray>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).at(Step::FindVolume, dir)? {
        let entry = entry.at(Step::FindVolume, dir)?;
        let name = entry.file_name();
        let Some(id) = name.to_str().and_then(|name| name.strip_suffix(VOLUME_SUFFIX)) else { continue };
        // A box that was deleted meanwhile is no stray.
        let Ok(metadata) = entry.path().symlink_metadata() else { continue };
        if is_id(id) && metadata.is_file() && !owned.contains(id) {
            found.push(Stray {
                kind,
                name: id.to_owned(),
                id: id.to_owned(),
                bytes: metadata.blocks() * 512,
                path: entry.path(),
                is_device: false,
            });
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Unfinished files of other processes: the lock of the data directory says that they have ended.
fn unfinished_in(dir: &Path) -> Result<Vec<Stray>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).at(Step::FindVolume, dir)? {
        let entry = entry.at(Step::FindVolume, dir)?;
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(files::TEMP_PREFIX)) else { continue };
        let maker = rest.rsplit('-').nth(1).and_then(|pid| pid.parse().ok());
        let Ok(metadata) = entry.path().symlink_metadata() else { continue };
        if maker != Some(std::process::id()) {
            let path = entry.path();
            let (name, bytes) = (path.display().to_string(), metadata.blocks() * 512);
            found.push(Stray { kind: StrayKind::Unfinished, name, id: String::new(), bytes, path, is_device: false });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_box_owns_is_found_and_the_rest_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        for id in ["owned-1", "lost-2"] {
            store.create_volume(id, 1).unwrap();
        }
        let (volumes, snapshots) = (dir.path().join("volumes"), dir.path().join("snapshots"));
        for name in ["snap_owned.img", "snap_lost.img", "notes.txt", ".tmp-copy-1-0"] {
            fs::write(snapshots.join(name), b"x").unwrap();
        }
        let mine = files::temp_path(&volumes, "volume");
        fs::write(&mine, b"under way").unwrap();
        fs::write(volumes.join("Bad.img"), b"foreign").unwrap();
        let owned = |id: &str| BTreeSet::from([id.to_owned()]);
        let found = store.strays(&owned("owned-1"), &owned("snap_owned")).unwrap();
        let names: Vec<_> = found.iter().map(|stray| (stray.kind, stray.name.rsplit('/').next().unwrap())).collect();
        let expected = [
            (StrayKind::Volume, "lost-2"),
            (StrayKind::Snapshot, "snap_lost"),
            (StrayKind::Unfinished, ".tmp-copy-1-0"),
        ];
        assert_eq!(names, expected);
        assert!(found[0].bytes > 0);
        for stray in &found {
            store.remove_stray(stray).unwrap();
            store.remove_stray(stray).unwrap();
        }
        assert!(store.strays(&owned("owned-1"), &owned("snap_owned")).unwrap().is_empty());
        assert!(mine.exists() && volumes.join("Bad.img").exists() && snapshots.join("notes.txt").exists());
        assert_eq!(store.list().unwrap(), ["owned-1"]);
    }

    #[test]
    fn only_paths_of_this_store_name_a_box() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let volumes = fs::canonicalize(dir.path().join("volumes")).unwrap();
        let device = fs::metadata(&volumes).unwrap().dev();
        let shown = format!("{}/a-1.img", volumes.display());
        assert_eq!(store.owner_of(&shown, device), Some("a-1".to_owned()));
        assert_eq!(store.owner_of(&format!("{shown} (deleted)"), device), Some("a-1".to_owned()));
        for (path, device) in [
            (shown.clone(), device + 1),
            (format!("{}/A.img", volumes.display()), device),
            (format!("{}/a-1.iso", volumes.display()), device),
            ("/volumes/a-1.img".to_owned(), device),
            ("/elsewhere/volumes/a-1.img".to_owned(), device),
        ] {
            assert_eq!(store.owner_of(&path, device), None, "{path}");
        }
    }
}
