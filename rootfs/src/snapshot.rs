//! Copies of volumes: snapshots under `snapshots/<id>.img`, and new volumes that start as a copy.
//!
//! Invariants: what has a final name is complete and on disk, and is never written again; a copy shares no block that a
//! write to the source could change. A snapshot is used only after its content was compared with its digest (`verified`).
//!
//! Leaves out: the point in time (`source`), the record of a snapshot with its name and its signature (`api`).

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::block::Claim;
use crate::clone::{CloneMethod, clone_into};
use crate::error::{At, Cause, Error, Result, Step};
use crate::files;
use crate::fit::fit;
use crate::id;
use crate::source::Source;
use crate::store::{Place, Store, VOLUME_SUFFIX};
use crate::template::Kind;
use crate::verified::{look, state_of};
use crate::volume::Volume;

/// An unfinished copy. It is removed when this is dropped.
#[derive(Debug)]
pub struct Copy {
    file: File,
    path: PathBuf,
    /// How it was made.
    pub method: CloneMethod,
}

/// The content of a finished snapshot or of a copy. It stays readable when its name is removed.
#[derive(Debug, Clone)]
pub struct Content {
    file: Arc<File>,
}

/// A finished snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Bytes that it occupies on the host.
    pub allocated_bytes: u64,
    /// Bytes of its file system.
    pub length: u64,
    /// Digest of its content.
    pub digest: String,
}

/// A copy that is ready to take the place of a volume.
#[derive(Debug)]
pub struct Replacement {
    new: New,
    volume: Volume,
}

/// What takes the place of a volume.
#[derive(Debug)]
enum New {
    File(Copy),
    /// Another device of the operator's.
    Device(Claim),
}

impl Drop for Copy {
    fn drop(&mut self) {
        // After a rename there is no such name any more.
        let _ = fs::remove_file(&self.path);
    }
}

impl Copy {
    /// The content, for boxes that start as this copy.
    pub fn content(&self) -> Result<Content> {
        Ok(Content::of(self.file.try_clone().at(Step::CopyVolume, &self.path)?))
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Content {
    pub(crate) fn of(file: File) -> Self {
        Content { file: Arc::new(file) }
    }
}

impl Store {
    /// Flushes a volume and copies it. The processes of its box stand still.
    pub fn copy(&self, source: &Source) -> Result<Copy> {
        // From here on the file is removed if anything fails.
        let mut copy = self.unfinished_copy()?;
        copy.method = source.copy_into(&copy.file)?;
        Ok(copy)
    }

    /// An empty file that is to become a copy.
    pub(crate) fn unfinished_copy(&self) -> Result<Copy> {
        let (file, path) = unfinished(&self.first().snapshots, "copy")?;
        Ok(Copy { file, path, method: CloneMethod::SparseCopy })
    }

    /// Makes a copy a snapshot. On return it is on disk.
    pub fn keep_copy(&self, copy: &Copy, id: &str) -> Result<Kept> {
        id::check_snapshot(id)?;
        let dir = &self.first().snapshots;
        let path = path_in(self.first(), id);
        copy.file.set_permissions(Permissions::from_mode(0o400)).at(Step::PublishSnapshot, &copy.path)?;
        copy.file.sync_all().at(Step::PublishSnapshot, &copy.path)?;
        rename_new(&copy.path, &path, Step::PublishSnapshot)?;
        files::sync_dir(dir).at(Step::PublishSnapshot, dir)?;
        let seen = look(&copy.file, &path)?;
        let allocated_bytes = copy.file.metadata().at(Step::PublishSnapshot, &path)?.blocks() * 512;
        let kept = Kept { allocated_bytes, length: seen.length, digest: seen.digest.clone() };
        self.verified.lock().insert(id.to_owned(), seen);
        Ok(kept)
    }

    /// The content of a snapshot, compared with its digest.
    ///
    /// # Errors
    /// `NotFound` without such a file, `Corrupt` if it is another content.
    pub fn snapshot(&self, id: &str, wanted: &str) -> Result<Content> {
        id::check_snapshot(id)?;
        let (file, path) = open_copy(&self.places, |place| path_in(place, id))?;
        let state = state_of(&file, &path, wanted)?;
        let known = self.verified.lock().get(id).cloned();
        if known.as_ref() != Some(&state) {
            let seen = look(&file, &path)?;
            if seen.digest != wanted {
                return Err(Error::new(Step::VerifySnapshot, path.display().to_string(), Cause::Corrupt));
            }
            self.verified.lock().insert(id.to_owned(), seen);
        }
        Ok(Content::of(file))
    }

    /// The ids of all snapshot files, sorted.
    pub fn list_snapshots(&self) -> Result<Vec<String>> {
        self.list_copies(|id| id::check_snapshot(id).is_ok())
    }

    /// The ids of the copies that are chosen, sorted.
    pub(crate) fn list_copies(&self, is_wanted: impl Fn(&str) -> bool) -> Result<Vec<String>> {
        let mut ids = Vec::new();
        for Place { snapshots, .. } in &self.places {
            for entry in fs::read_dir(snapshots).at(Step::FindSnapshot, snapshots)? {
                let name = entry.at(Step::FindSnapshot, snapshots)?.file_name();
                let id = name.to_str().and_then(|name| name.strip_suffix(VOLUME_SUFFIX));
                ids.extend(id.filter(|id| is_wanted(id)).map(str::to_owned));
            }
        }
        ids.sort_unstable();
        Ok(ids)
    }

    /// Removes a snapshot file and makes that durable; removing what is not there is fine. Boxes that started from it
    /// keep their disks.
    pub fn remove_snapshot(&self, id: &str) -> Result<()> {
        id::check_snapshot(id)?;
        self.verified.lock().remove(id);
        for place in &self.places {
            if remove_from(&path_in(place, id))? {
                files::sync_dir(&place.snapshots).at(Step::RemoveSnapshot, &place.snapshots)?;
            }
        }
        Ok(())
    }

    /// Makes the volume `id` as a clone of a content, with a file system of that size. An existing volume is never
    /// touched.
    ///
    /// # Errors
    /// `TooSmall` if the files do not fit.
    pub fn create_volume_from(&self, id: &str, content: &Content, size_gib: u32) -> Result<(Volume, CloneMethod)> {
        id::check(id)?;
        self.check_elsewhere(Kind::Disk, id)?;
        if let Some(devices) = self.devices_for(Kind::Disk) {
            // Its size is changed in a file: a content may be larger than the device.
            let copy = self.copy_content(content)?;
            fit(&copy.file, &copy.path, u64::from(size_gib) << 30)?;
            return self.create_on_device(devices, id, &copy.file, size_gib);
        }
        let path = self.first().path_of(Kind::Disk, id);
        let copy = copied(content, &self.first().volumes, "volume")?;
        fit(&copy.file, &copy.path, u64::from(size_gib) << 30)?;
        rename_new(&copy.path, &path, Step::CloneVolume)?;
        Ok((Volume::new(path), copy.method))
    }

    /// Readies a copy to take the place of the volume `id`, with a file system of that size. On return it is on disk.
    ///
    /// # Errors
    /// `NotFound` without such a volume, `TooSmall` if the files do not fit.
    pub fn prepare_replacement(&self, id: &str, copy: Copy, size_gib: u32) -> Result<Replacement> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, "there is no such volume");
        let volume = self.volume(id)?.ok_or_else(missing).at(Step::ReplaceVolume, Path::new(id))?;
        fit(&copy.file, &copy.path, u64::from(size_gib) << 30)?;
        if let Some(devices) = &volume.devices {
            let claim = devices.take(id, size_gib)?;
            claim.fill(&copy.file, size_gib)?;
            return Ok(Replacement { new: New::Device(claim), volume });
        }
        copy.file.sync_all().at(Step::ReplaceVolume, &copy.path)?;
        Ok(Replacement { new: New::File(copy), volume })
    }

    /// Puts a copy in the place of a volume that is not attached, in one step; waits for an attachment that is just
    /// ending. On return that is on disk: a crash leaves the old content or the new one.
    pub fn replace_volume(&self, replacement: Replacement) -> Result<()> {
        let Replacement { new, volume } = replacement;
        // Held until the old file has lost its name.
        let _old = volume.resting_source()?;
        let copy = match new {
            New::File(copy) => copy,
            New::Device(claim) => return claim.keep().map(drop),
        };
        let path = volume.path();
        match fs::rename(&copy.path, path) {
            // The old volume lies in another place than new ones do: another file system.
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                let dir = path.parent().unwrap_or(Path::new("/"));
                let (file, temp) = unfinished(dir, "volume")?;
                let moved = Copy { file, path: temp, method: CloneMethod::SparseCopy };
                clone_into(&copy.file, &moved.file).at(Step::ReplaceVolume, path)?;
                moved.file.sync_all().at(Step::ReplaceVolume, path)?;
                fs::rename(&moved.path, path).at(Step::ReplaceVolume, path)?;
            }
            renamed => renamed.at(Step::ReplaceVolume, path)?,
        }
        // The name that the copy had must not stay beside the new one after a power cut: both directories are flushed.
        let dirs = [path.parent().unwrap_or(Path::new("/")), &self.first().snapshots];
        dirs.iter().try_for_each(|dir| files::sync_dir(dir).at(Step::ReplaceVolume, dir))
    }

    /// A copy of a content, to take the place of a volume.
    pub(crate) fn copy_content(&self, content: &Content) -> Result<Copy> {
        copied(content, &self.first().snapshots, "copy")
    }
}

fn copied(content: &Content, dir: &Path, hint: &str) -> Result<Copy> {
    let (file, path) = unfinished(dir, hint)?;
    let mut copy = Copy { file, path, method: CloneMethod::SparseCopy };
    copy.method = clone_into(&content.file, &copy.file).at(Step::CloneVolume, &copy.path)?;
    Ok(copy)
}

/// Opens a finished copy in the first place that has it.
pub(crate) fn open_copy(places: &[Place], path_in: impl Fn(&Place) -> PathBuf) -> Result<(File, PathBuf)> {
    // Without any, opening the first says so.
    let found = places.iter().map(&path_in).find(|path| path.symlink_metadata().is_ok());
    let path = found.unwrap_or_else(|| path_in(&places[0]));
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(&path).at(Step::FindSnapshot, &path)?;
    Ok((file, path))
}

/// Removes a finished copy; `false` if there is none.
pub(crate) fn remove_from(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        removed => removed.at(Step::RemoveSnapshot, path).map(|()| true),
    }
}

fn unfinished(dir: &Path, hint: &str) -> Result<(File, PathBuf)> {
    let path = files::temp_path(dir, hint);
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
    Ok((file.at(Step::CopyVolume, &path)?, path))
}

fn path_in(place: &Place, id: &str) -> PathBuf {
    place.snapshots.join(format!("{id}{VOLUME_SUFFIX}"))
}

/// Renames; never over something.
pub(crate) fn rename_new(from: &Path, to: &Path, step: Step) -> Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(rustix::io::Errno::EXIST) => Err(Error::new(step, to.display().to_string(), Cause::Exists)),
        other => other.at(step, to),
    }
}
