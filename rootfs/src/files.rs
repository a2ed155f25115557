//! Small file operations that must survive a crash: what is written appears whole or not at all.
//!
//! Names that begin with [`TEMP_PREFIX`] are unfinished work. They are swept when the directory's single owner starts.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Prefix of the names of unfinished files and directories. No id can begin with a dot.
pub(crate) const TEMP_PREFIX: &str = ".tmp-";

/// The hint of files that [`write_atomic`] writes.
const FILE_HINT: &str = "file";

/// A name in `dir` that is unique in this process. The directory's lock keeps other processes out.
pub(crate) fn temp_path(dir: &Path, hint: &str) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    dir.join(format!("{TEMP_PREFIX}{hint}-{}-{number}", std::process::id()))
}

/// Makes `dir` and its parents; new ones get `mode`, existing ones keep theirs.
pub(crate) fn make_dirs(dir: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(dir)
}

/// Makes what was created, renamed or removed in `dir` durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Writes `content` under `name` in `dir`: temporary file, fsync, rename, fsync of the directory.
pub(crate) fn write_atomic(dir: &Path, name: &str, content: &[u8], mode: u32) -> io::Result<()> {
    let temp = temp_path(dir, FILE_HINT);
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temp)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temp, dir.join(name))?;
        sync_dir(dir)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temp);
    }
    written
}

/// Takes the exclusive lock on the open file; `false` if it is held elsewhere.
pub(crate) fn try_lock(file: &File) -> io::Result<bool> {
    match rustix::fs::flock(file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Opens (or makes) the lock file `path`. `O_CLOEXEC` (the standard library's default) keeps children from holding it.
pub(crate) fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Files in `dir` that [`write_atomic`] has begun and not finished.
pub(crate) fn unfinished_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let prefix = format!("{TEMP_PREFIX}{FILE_HINT}-");
    let mut unfinished = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(prefix.as_bytes()) && entry.file_type()?.is_file() {
            unfinished.push(entry.path());
        }
    }
    Ok(unfinished)
}

/// Removes unfinished files and directories in `dir`, by their prefix. Only the owner of the lock may call it.
pub(crate) fn sweep_temps(dir: &Path) -> io::Result<usize> {
    sweep_temps_of(dir, "")
}

/// As [`sweep_temps`], of one kind only: the hint that was given to [`temp_path`].
pub(crate) fn sweep_temps_of(dir: &Path, hint: &str) -> io::Result<usize> {
    let prefix = format!("{TEMP_PREFIX}{hint}");
    let mut swept = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if !entry.file_name().as_encoded_bytes().starts_with(prefix.as_bytes()) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
        swept += 1;
    }
    Ok(swept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_file_replaces_the_old_one_and_leaves_no_temp() {
        let dir = tempfile::tempdir().unwrap();
        write_atomic(dir.path(), "fact", b"one", 0o600).unwrap();
        write_atomic(dir.path(), "fact", b"two", 0o600).unwrap();
        assert_eq!(fs::read(dir.path().join("fact")).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn sweep_takes_unfinished_names_only() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(temp_path(dir.path(), "x"), b"").unwrap();
        fs::create_dir_all(temp_path(dir.path(), "y").join("deep")).unwrap();
        fs::write(dir.path().join("a.img"), b"").unwrap();
        assert_eq!(sweep_temps(dir.path()).unwrap(), 2);
        assert!(dir.path().join("a.img").exists());
    }

    #[test]
    fn lock_is_exclusive_between_open_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = open_lock(&path).unwrap();
        assert!(try_lock(&first).unwrap());
        assert!(!try_lock(&open_lock(&path).unwrap()).unwrap());
        drop(first);
        assert!(try_lock(&open_lock(&path).unwrap()).unwrap());
    }
}
