//! The data directory's part that belongs to volumes: `lock`, and `templates/` and `volumes/<id>.img` in it or in its pool.
//! (Beside them `snapshots/<id>.img`: `snapshot`, and `data/<id>.img`: `data`.)
//!
//! Invariants: one process at a time owns a data directory (an `flock` on `lock`, which the kernel releases when the
//! owner ends); a file under a volume's name is a complete clone. A new volume survives a crash of this
//! process at once, a power loss only after [`Volume::sync`](crate::Volume::sync): the caller decides when to pay for
//! that and keeps the marker.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::block::{DeviceReport, Devices};
use crate::clone::{CloneMethod, clone_into};
use crate::error::{At, Cause, Error, Result, Step};
use crate::files;
use crate::id;
use crate::pool::{self, Backing, Chosen, Pool, PoolSettings};
use crate::template::{self, Kind};
use crate::verified::Verified;
use crate::volume::Volume;

/// Largest volume.
pub const VOLUME_SIZE_GIB_MAX: u32 = 1024;
/// Store directories hold the disks of tenants: only root may read them.
const DIRECTORY_MODE: u32 = 0o700;
pub(crate) const VOLUME_SUFFIX: &str = ".img";
/// A lock file holds a process id; more is not read.
const LOCK_BYTES_MAX: u64 = 16;
/// Every pid is written as wide as the longest, so that one replaces another.
const PID_WIDTH: usize = 10;

/// The volumes and templates of one data directory.
#[derive(Debug)]
pub struct Store {
    data_dir: PathBuf,
    backing: Backing,
    margin: u64,
    /// Where volumes lie: new ones in the first place. There are others after a change of what backs the volumes.
    pub(crate) places: Vec<Place>,
    /// The pools are kept open as long as the store.
    pools: Vec<Pool>,
    /// The block devices of the operator's that are disks, or can be.
    devices: Option<Arc<Devices>>,
    /// Templates made or verified by this process, by kind and size in GiB.
    prepared: Mutex<HashMap<(Kind, u32), PathBuf>>,
    pub(crate) verified: Verified,
    /// Held open for its `flock`.
    _lock: File,
}

/// A directory with volumes, the templates that they are cloned from, and snapshots.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) volumes: PathBuf,
    pub(crate) snapshots: PathBuf,
    data: PathBuf,
    templates: PathBuf,
}

impl Place {
    fn of(root: &Path) -> Self {
        let names = ["volumes", "snapshots", "data", "templates"];
        let [volumes, snapshots, data, templates] = names.map(|name| root.join(name));
        Place { volumes, snapshots, data, templates }
    }

    /// Makes what is missing and removes what is unfinished.
    fn open(root: &Path) -> Result<Self> {
        let place = Place::of(root);
        for dir in [&place.volumes, &place.snapshots, &place.data, &place.templates] {
            files::make_dirs(dir, DIRECTORY_MODE).at(Step::OpenStore, dir)?;
            files::sweep_temps(dir).at(Step::OpenStore, dir)?;
        }
        Ok(place)
    }

    pub(crate) fn templates(&self) -> &Path {
        &self.templates
    }

    pub(crate) fn path_of(&self, kind: Kind, id: &str) -> PathBuf {
        self.directory(kind).join(format!("{id}{VOLUME_SUFFIX}"))
    }

    /// The directory of the volumes of a kind.
    pub(crate) fn directory(&self, kind: Kind) -> &Path {
        match kind {
            Kind::Disk => &self.volumes,
            Kind::Data => &self.data,
        }
    }
}

impl Store {
    /// Opens (or makes) a data directory for this process alone and sweeps what a killed predecessor left unfinished.
    /// Makes no pool.
    pub fn open(data_dir: &Path) -> Result<Store> {
        Self::open_with(data_dir, &PoolSettings { off: true, ..PoolSettings::default() })
    }

    /// As [`Store::open`], with a pool where the settings and the machine allow one.
    pub fn open_with(data_dir: &Path, settings: &PoolSettings) -> Result<Store> {
        files::make_dirs(data_dir, DIRECTORY_MODE).at(Step::OpenStore, data_dir)?;
        let lock = take_lock(data_dir)?;
        let Chosen { backing, pools } = pool::open(data_dir, settings)?;
        let mut roots: Vec<&Path> = pools.iter().map(Pool::root).collect();
        match backing {
            Backing::Own | Backing::Sparse { .. } => roots.insert(0, data_dir),
            // From before there was a pool.
            _ if Place::of(data_dir).volumes.is_dir() => roots.push(data_dir),
            _ => {}
        }
        let places = roots.into_iter().map(Place::open).collect::<Result<_>>()?;
        let devices = settings.block.as_ref().map(|block| Devices::open(data_dir, block)).transpose()?;
        let (data_dir, margin) = (data_dir.to_owned(), settings.margin);
        let (prepared, verified) = Default::default();
        Ok(Store { data_dir, backing, margin, places, pools, devices, prepared, verified, _lock: lock })
    }

    /// What the volumes lie on.
    pub fn backing(&self) -> &Backing {
        &self.backing
    }

    /// The directory that new volumes lie below. Files in it can share blocks with them, if [`Store::backing`] can.
    pub fn root(&self) -> &Path {
        self.pool().map_or(&self.data_dir, Pool::root)
    }

    /// The block devices for disks, if there are any.
    pub fn devices(&self) -> Option<DeviceReport> {
        self.devices.as_deref().map(Devices::report)
    }

    /// True if the disks of new boxes are block devices.
    pub fn gives_devices(&self) -> bool {
        self.devices_for(Kind::Disk).is_some()
    }

    /// Refuses the disk of a new box if it is known already that there is no device for it.
    ///
    /// # Errors
    /// `NoDevice`.
    pub fn check_device(&self, size_gib: u32) -> Result<()> {
        self.devices_for(Kind::Disk).map_or(Ok(()), |devices| devices.check_free(size_gib))
    }

    /// The devices that new volumes of this kind lie on. Volumes of files stay files.
    pub(crate) fn devices_for(&self, kind: Kind) -> Option<&Arc<Devices>> {
        self.devices.as_ref().filter(|devices| kind == Kind::Disk && devices.for_new())
    }

    /// The device that is the disk of this box.
    fn device_of(&self, kind: Kind, id: &str) -> Option<Volume> {
        let devices = self.devices.as_ref().filter(|_| kind == Kind::Disk)?;
        Some(Volume::on_device(devices.find(id)?, Arc::clone(devices)))
    }

    /// Ids and paths of all disks that are devices.
    pub(crate) fn device_disks(&self) -> Vec<(String, PathBuf)> {
        let devices = self.devices.iter();
        devices
            .flat_map(|devices| devices.ids().into_iter().filter_map(|id| Some((id.clone(), devices.find(&id)?))))
            .collect()
    }

    /// Makes a device the disk of a new box.
    pub(crate) fn create_on_device(
        &self,
        devices: &Arc<Devices>,
        id: &str,
        image: &File,
        size_gib: u32,
    ) -> Result<(Volume, CloneMethod)> {
        let claim = devices.take(id, size_gib)?;
        claim.fill(image, size_gib)?;
        Ok((Volume::on_device(claim.keep()?, Arc::clone(devices)), CloneMethod::SparseCopy))
    }

    pub(crate) fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The pool of new volumes.
    pub(crate) fn pool(&self) -> Option<&Pool> {
        matches!(self.backing, Backing::File | Backing::Device(_)).then(|| self.pools.first()).flatten()
    }

    /// The bytes that new volumes and their growth can have, counted as free bytes of the disk around the data
    /// directory: the least of what this disk and the pool have. Adjusts the pool to the disk first.
    pub fn free_bytes(&self) -> Result<u64> {
        self.balance()?;
        self.free_bytes_unadjusted()
    }

    /// The same without the adjustment: some statfs(2) and no more. The pool may have less than after one.
    pub fn free_bytes_unadjusted(&self) -> Result<u64> {
        let outer = pool::bytes_of(&self.data_dir).at(Step::MeasureVolume, &self.data_dir)?;
        let Some(pool) = self.pool() else { return Ok(outer.free) };
        // The margin is what a pool in a file leaves to the disk.
        let left = if self.backing == Backing::File { self.margin } else { 0 };
        Ok(outer.free.min(pool.bytes()?.free.saturating_add(left)))
    }

    /// Adjusts the pool to the free space of the disk around it. What volumes write needs no adjustment; call it from
    /// time to time for what others write to that disk.
    pub fn balance(&self) -> Result<()> {
        self.pools.iter().try_for_each(Pool::balance)
    }

    /// The path of the template of that size; made and verified at first use, remembered afterwards.
    pub fn prepare_template(&self, size_gib: u32) -> Result<PathBuf> {
        self.template(Kind::Disk, size_gib)
    }

    fn template(&self, kind: Kind, size_gib: u32) -> Result<PathBuf> {
        if size_gib == 0 || size_gib > VOLUME_SIZE_GIB_MAX {
            let why = Cause::Invalid("a volume has 1 to 1024 GiB");
            return Err(Error::new(Step::CheckSize, format!("{size_gib} GiB"), why));
        }
        let mut prepared = self.prepared.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(path) = prepared.get(&(kind, size_gib)) {
            return Ok(path.clone());
        }
        let path = template::prepare(&self.first().templates, kind, size_gib)?;
        prepared.insert((kind, size_gib), path.clone());
        Ok(path)
    }

    /// Makes the volume `id` as a clone of the template of that size. An existing volume is never touched.
    pub fn create_volume(&self, id: &str, size_gib: u32) -> Result<(Volume, CloneMethod)> {
        self.create(Kind::Disk, id, size_gib)
    }

    pub(crate) fn create(&self, kind: Kind, id: &str, size_gib: u32) -> Result<(Volume, CloneMethod)> {
        id::check(id)?;
        self.check_elsewhere(kind, id)?;
        let path = self.first().path_of(kind, id);
        let template_path = self.template(kind, size_gib)?;
        let template = File::open(&template_path).at(Step::CloneVolume, &template_path)?;
        if let Some(devices) = self.devices_for(kind) {
            return self.create_on_device(devices, id, &template, size_gib);
        }
        let temp = files::temp_path(self.first().directory(kind), "volume");
        let cloned = clone_as(&template, &temp, &path);
        if cloned.is_err() {
            let _ = fs::remove_file(&temp);
        }
        Ok((Volume::new(path), cloned?))
    }

    /// The volume `id`, if there is one.
    pub fn volume(&self, id: &str) -> Result<Option<Volume>> {
        self.find(Kind::Disk, id)
    }

    pub(crate) fn find(&self, kind: Kind, id: &str) -> Result<Option<Volume>> {
        id::check(id)?;
        if let Some(volume) = self.device_of(kind, id) {
            return Ok(Some(volume));
        }
        for place in &self.places {
            let path = place.path_of(kind, id);
            match fs::symlink_metadata(&path) {
                Ok(metadata) if metadata.is_file() => return Ok(Some(Volume::new(path))),
                Ok(_) => {
                    let why = Cause::Invalid("it is not a regular file");
                    return Err(Error::new(Step::FindVolume, path.display().to_string(), why));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).at(Step::FindVolume, &path),
            }
        }
        Ok(None)
    }

    /// The ids of all volumes, sorted.
    pub fn list(&self) -> Result<Vec<String>> {
        self.ids(Kind::Disk)
    }

    pub(crate) fn ids(&self, kind: Kind) -> Result<Vec<String>> {
        let mut ids = Vec::new();
        for directory in self.places.iter().map(|place| place.directory(kind)) {
            for entry in fs::read_dir(directory).at(Step::FindVolume, directory)? {
                let name = entry.at(Step::FindVolume, directory)?.file_name();
                let Some(id) = name.to_str().and_then(|name| name.strip_suffix(VOLUME_SUFFIX)) else {
                    continue;
                };
                if id::check(id).is_ok() {
                    ids.push(id.to_owned());
                }
            }
        }
        if kind == Kind::Disk {
            ids.extend(self.devices.iter().flat_map(|devices| devices.ids()));
        }
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    /// Removes the volume `id`; removing what is not there is fine. The bytes of a volume that is still mounted are
    /// freed when it is unmounted.
    pub fn remove_volume(&self, id: &str) -> Result<()> {
        self.remove(Kind::Disk, id)
    }

    pub(crate) fn remove(&self, kind: Kind, id: &str) -> Result<()> {
        id::check(id)?;
        if let Some(devices) = self.devices.as_ref().filter(|_| kind == Kind::Disk) {
            devices.remove(id)?;
        }
        for place in &self.places {
            let path = place.path_of(kind, id);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).at(Step::RemoveVolume, &path)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Makes removals survive a power loss. The caller calls it before it deletes the last record of a removed volume;
    /// otherwise the volume could reappear without an owner.
    pub fn sync_removals(&self) -> Result<()> {
        self.places.iter().try_for_each(|place| files::sync_dir(&place.volumes).at(Step::RemoveVolume, &place.volumes))
    }

    /// The place of new volumes.
    pub(crate) fn first(&self) -> &Place {
        &self.places[0]
    }

    /// Refuses the id of a volume that lies in another place than new ones do.
    pub(crate) fn check_elsewhere(&self, kind: Kind, id: &str) -> Result<()> {
        if self.device_of(kind, id).is_some() {
            return Err(Error::new(Step::CloneVolume, id, Cause::Exists));
        }
        // A new device must not hide the image of another box.
        let from = usize::from(self.devices_for(kind).is_none());
        for place in &self.places[from..] {
            let path = place.path_of(kind, id);
            if path.try_exists().at(Step::CloneVolume, &path)? {
                return Err(Error::new(Step::CloneVolume, path.display().to_string(), Cause::Exists));
            }
        }
        Ok(())
    }
}

/// Clones under a temporary name; the final name appears only with the complete content, and never replaces a volume.
fn clone_as(template: &File, temp: &Path, path: &Path) -> Result<CloneMethod> {
    let target = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(temp)
        .at(Step::CloneVolume, temp)?;
    let method = clone_into(template, &target).at(Step::CloneVolume, temp)?;
    match renameat_with(CWD, temp, CWD, path, RenameFlags::NOREPLACE) {
        Err(rustix::io::Errno::EXIST) => Err(Error::new(Step::CloneVolume, path.display().to_string(), Cause::Exists)),
        other => other.at(Step::CloneVolume, path).map(|()| method),
    }
}

fn take_lock(data_dir: &Path) -> Result<File> {
    let path = data_dir.join("lock");
    let mut file = files::open_lock(&path).at(Step::OpenStore, &path)?;
    if !files::try_lock(&file).at(Step::OpenStore, &path)? {
        let mut text = String::new();
        let _ = (&file).take(LOCK_BYTES_MAX).read_to_string(&mut text);
        let cause = Cause::StoreLocked { pid: text.trim().parse().ok() };
        return Err(Error::new(Step::OpenStore, data_dir.display().to_string(), cause));
    }
    // The pid is only informative; the flock is the lock. It overwrites the old pid, which needs no free space, and a
    // full disk must not prevent the start.
    let _ = file.rewind().and_then(|()| writeln!(file, "{:<width$}", std::process::id(), width = PID_WIDTH));
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn a_second_owner_is_refused_and_told_who_the_first_is() {
        let dir = tempfile::tempdir().unwrap();
        let first = Store::open(dir.path()).unwrap();
        let error = Store::open(dir.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Locked);
        assert!(matches!(error.cause(), Cause::StoreLocked { pid: Some(pid) } if *pid == std::process::id()));
        drop(first);
        Store::open(dir.path()).unwrap();
    }

    #[test]
    fn volumes_are_listed_found_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert!(store.volume("b").unwrap().is_none());
        store.create_volume("b", 1).unwrap();
        store.create_volume("a", 1).unwrap();
        assert_eq!(store.list().unwrap(), ["a", "b"]);
        assert_eq!(store.create_volume("a", 1).unwrap_err().kind(), ErrorKind::AlreadyExists);
        store.remove_volume("a").unwrap();
        store.remove_volume("a").unwrap();
        assert_eq!(store.list().unwrap(), ["b"]);
        assert!(store.volume("b").unwrap().is_some());
        store.volume("b").unwrap().unwrap().sync().unwrap();
    }

    #[test]
    fn hostile_ids_are_refused_everywhere() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        for id in ["../lock", "a/b", "", "..", ".tmp-x"] {
            assert_eq!(store.create_volume(id, 1).unwrap_err().kind(), ErrorKind::InvalidInput);
            assert_eq!(store.volume(id).unwrap_err().kind(), ErrorKind::InvalidInput);
            assert_eq!(store.remove_volume(id).unwrap_err().kind(), ErrorKind::InvalidInput);
        }
        assert!(dir.path().join("lock").exists());
    }

    #[test]
    fn sizes_have_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        for size in [0, VOLUME_SIZE_GIB_MAX + 1] {
            assert_eq!(store.create_volume("a", size).unwrap_err().kind(), ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn opening_sweeps_unfinished_volumes_and_listing_ignores_strangers() {
        let dir = tempfile::tempdir().unwrap();
        drop(Store::open(dir.path()).unwrap());
        let volumes = dir.path().join("volumes");
        fs::write(files::temp_path(&volumes, "volume"), b"half").unwrap();
        fs::write(volumes.join("notes.txt"), b"").unwrap();
        fs::write(volumes.join("Bad.img"), b"").unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert!(store.list().unwrap().is_empty());
        assert_eq!(fs::read_dir(&volumes).unwrap().count(), 2);
    }

    #[test]
    fn a_new_volume_occupies_little() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let (volume, _) = store.create_volume("a", 10).unwrap();
        assert_eq!(fs::metadata(volume.path()).unwrap().len(), 10 << 30);
        volume.sync().unwrap();
        assert!(volume.allocated_bytes().unwrap() < 512 << 10, "{}", volume.allocated_bytes().unwrap());
    }
}
