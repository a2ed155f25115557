//! Points to which a volume can be taken back: copies of it under `snapshots/undo_<id>.img`.
//!
//! A point is made before each command of a box that asks for it, so nothing of it grows with the disk: it has no digest and
//! waits for no flush. It has the state of its file instead, which the caller signs: inode, length and change time. Every
//! write moves the change time and no system call sets it, so a file that was written or replaced is found without reading
//! it. Bytes that a failing disk changes are not found; the volume that the point was copied from has no check of them either.
//!
//! Invariant: after a power loss a point is whole, or is not there. Where blocks are shared, the log of the file system has the
//! clone before its name; a copy block by block is flushed before it gets its name.

use std::fs::{File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::clone::CloneMethod;
use crate::error::{At, Cause, Error, Result, Step};
use crate::id;
use crate::snapshot::{Content, Copy, open_copy, remove_from, rename_new};
use crate::store::{Place, Store, VOLUME_SUFFIX};

/// What is compared before a point is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PointState {
    /// Inode.
    pub inode: u64,
    /// Bytes of the file system.
    pub length: u64,
    /// Change time: seconds, nanoseconds.
    pub changed: (i64, i64),
}

/// A finished point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// Bytes that it occupies on the host.
    pub allocated_bytes: u64,
    /// The state of its file.
    pub state: PointState,
}

impl Store {
    /// Makes a copy a point.
    pub fn keep_point(&self, copy: &Copy, id: &str) -> Result<Point> {
        id::check_point(id)?;
        let path = path_in(self.first(), id);
        copy.file().set_permissions(Permissions::from_mode(0o400)).at(Step::PublishSnapshot, copy.path())?;
        if copy.method == CloneMethod::SparseCopy {
            copy.file().sync_all().at(Step::PublishSnapshot, copy.path())?;
        }
        rename_new(copy.path(), &path, Step::PublishSnapshot)?;
        let allocated_bytes = copy.file().metadata().at(Step::PublishSnapshot, &path)?.blocks() * 512;
        Ok(Point { allocated_bytes, state: state_of(copy.file(), &path)? })
    }

    /// A copy of a point, to take the place of a volume.
    ///
    /// # Errors
    /// `NotFound` without such a file, `Corrupt` if it was written or replaced since it was made.
    pub fn copy_point(&self, id: &str, wanted: &PointState) -> Result<Copy> {
        id::check_point(id)?;
        let (file, path) = open_copy(&self.places, |place| path_in(place, id))?;
        if state_of(&file, &path)? != *wanted {
            return Err(Error::new(Step::VerifySnapshot, path.display().to_string(), Cause::Corrupt));
        }
        self.copy_content(&Content::of(file))
    }

    /// The ids of all points, sorted.
    pub fn list_points(&self) -> Result<Vec<String>> {
        self.list_copies(|id| id::check_point(id).is_ok())
    }

    /// Removes a point; removing what is not there is fine. Its removal need not be durable: a point without a record is
    /// removed again.
    pub fn remove_point(&self, id: &str) -> Result<()> {
        id::check_point(id)?;
        self.places.iter().try_for_each(|place| remove_from(&path_in(place, id)).map(drop))
    }
}

fn state_of(file: &File, path: &Path) -> Result<PointState> {
    let metadata = file.metadata().at(Step::VerifySnapshot, path)?;
    let changed = (metadata.ctime(), metadata.ctime_nsec());
    Ok(PointState { inode: metadata.ino(), length: metadata.len(), changed })
}

fn path_in(place: &Place, id: &str) -> PathBuf {
    place.snapshots.join(format!("{id}{VOLUME_SUFFIX}"))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::error::ErrorKind;

    fn point(store: &Store, id: &str) -> Point {
        let volume = store.volume("a").unwrap().unwrap();
        store.keep_point(&store.copy(&volume.resting_source().unwrap()).unwrap(), id).unwrap()
    }

    #[test]
    fn a_point_comes_back_as_it_was_and_a_changed_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let (volume, _) = store.create_volume("a", 1).unwrap();
        let write = |path: &Path, text: &[u8]| {
            OpenOptions::new().write(true).open(path).unwrap().write_all_at(text, 1 << 29).unwrap();
        };
        write(volume.path(), b"one");
        let made = point(&store, "undo_1");
        write(volume.path(), b"two");
        let copy = store.copy_point("undo_1", &made.state).unwrap();
        store.replace_volume(store.prepare_replacement("a", copy, 1).unwrap()).unwrap();
        let mut found = [0; 3];
        File::open(volume.path()).unwrap().read_exact_at(&mut found, 1 << 29).unwrap();
        assert_eq!(&found, b"one");
        // A point is no snapshot, and the other way round.
        assert_eq!((store.list_points().unwrap(), store.list_snapshots().unwrap()), (vec!["undo_1".into()], vec![]));
        let path = dir.path().join("snapshots/undo_1.img");
        write(&path, b"bad");
        assert_eq!(store.copy_point("undo_1", &made.state).unwrap_err().kind(), ErrorKind::Corrupt);
        // The same bytes in another file are not the point either.
        let made = point(&store, "undo_2");
        let path = dir.path().join("snapshots/undo_2.img");
        fs::rename(&path, dir.path().join("moved")).unwrap();
        fs::copy(dir.path().join("moved"), &path).unwrap();
        assert_eq!(store.copy_point("undo_2", &made.state).unwrap_err().kind(), ErrorKind::Corrupt);
        store.remove_point("undo_2").unwrap();
        store.remove_point("undo_2").unwrap();
        assert_eq!(store.copy_point("undo_2", &made.state).unwrap_err().kind(), ErrorKind::NotFound);
        for bad in ["snap_1", "undo_../x", "1", "undo_"] {
            assert_eq!(store.remove_point(bad).unwrap_err().kind(), ErrorKind::InvalidInput, "{bad}");
        }
    }
}
