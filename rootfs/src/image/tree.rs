//! A directory tree that is changed from outside without being trusted.
//!
//! Packages decide what the tree contains, symbolic links included. Every path is therefore resolved by the kernel with
//! the tree as its root (`RESOLVE_IN_ROOT`): nothing in the tree can lead a write to the host's own files. The last
//! component is never followed.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, chmodat, fchmod, fchown, fremovexattr, mkdirat,
    openat, openat2, renameat, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;

/// Most attempts of a restricted lookup: a concurrent rename anywhere makes the kernel give up (EAGAIN).
const RESOLVE_ATTEMPTS_MAX: u32 = 32;
/// Deepest directory that is walked, so that recursion has a bound.
const DEPTH_MAX: u32 = 128;
/// Largest file that is read as a whole (the tree's passwd and package database).
const READ_BYTES_MAX: u64 = 64 << 20;

/// The root of the tree.
#[derive(Debug)]
pub(crate) struct Tree {
    root: OwnedFd,
}

/// Who owns a file, and its permissions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mode: u32,
}

impl Owner {
    /// Owned by root.
    pub(crate) fn root(mode: u32) -> Owner {
        Owner { uid: 0, gid: 0, mode }
    }
}

/// The result of a walk.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Walked {
    /// Files that lost setuid, setgid or capabilities.
    pub(super) unprivileged: u64,
    /// Device nodes and other special files removed.
    pub(super) special_removed: u64,
    /// Bytes occupied by the remaining files.
    pub(super) size_bytes: u64,
}

impl Tree {
    pub(crate) fn open(path: &Path) -> io::Result<Tree> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY | OFlags::NOFOLLOW;
        Ok(Tree { root: openat(rustix::fs::CWD, path, flags, Mode::empty())? })
    }

    /// Makes the directory `path`, or changes the owner of the one that is there. Its parent must exist.
    pub(crate) fn make_dir(&self, path: &str, owner: Owner) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        match mkdirat(&parent, name, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        give(openat(&parent, name, flags, Mode::empty())?.as_fd(), owner)
    }

    /// Changes the owner of the root itself.
    pub(crate) fn give_root(&self, owner: Owner) -> io::Result<()> {
        give(self.root.as_fd(), owner)
    }

    /// Replaces (or makes) the regular file `path`; a link or device of that name is replaced, never followed.
    pub(crate) fn write(&self, path: &str, content: &[u8], owner: Owner) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        let temp = format!(".icebox-{}", std::process::id());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(openat(&parent, &temp, flags, Mode::from_raw_mode(0o600))?);
        let written = file
            .write_all(content)
            .and_then(|()| give(file.as_fd(), owner))
            .and_then(|()| renameat(&parent, &temp, &parent, name).map_err(io::Error::from));
        if written.is_err() {
            let _ = unlinkat(&parent, &temp, AtFlags::empty());
        }
        written
    }

    /// The content of the regular file `path`.
    pub(super) fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        let (parent, name) = self.parent(path)?;
        // A pipe would block the open, and a device do worse.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = File::from(openat(&parent, name, flags, Mode::empty())?);
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let mut content = Vec::new();
        file.take(READ_BYTES_MAX).read_to_end(&mut content)?;
        Ok(content)
    }

    /// Makes the symbolic link `path`; an old link of that name is replaced.
    pub(crate) fn link(&self, target: &str, path: &str) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        match symlinkat(target, &parent, name) {
            Err(Errno::EXIST) => {
                unlinkat(&parent, name, AtFlags::empty())?;
                Ok(symlinkat(target, &parent, name)?)
            }
            other => Ok(other?),
        }
    }

    /// Removes the file `path`, if it is there.
    pub(super) fn remove(&self, path: &str) -> io::Result<()> {
        let (parent, name) = match self.parent(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        match unlinkat(&parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Removes everything in the directory `path`, and keeps it; a missing directory is fine.
    pub(crate) fn empty_dir(&self, path: &str) -> io::Result<()> {
        match self.open_dir(path) {
            Ok(dir) => remove_children(dir.as_fd(), 0),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Takes every privilege out of the tree: setuid and setgid bits and capabilities of files, and every device node.
    pub(super) fn drop_privileges(&self) -> io::Result<Walked> {
        let mut walked = Walked::default();
        walk(self.root.as_fd(), 0, &mut walked)?;
        Ok(walked)
    }

    fn open_dir(&self, path: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let path = if path.is_empty() { "." } else { path };
        for _ in 0..RESOLVE_ATTEMPTS_MAX {
            match openat2(&self.root, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN) => {}
                other => return Ok(other?),
            }
        }
        Err(Errno::AGAIN.into())
    }

    /// The directory that `path` is in, and its last component.
    fn parent<'a>(&self, path: &'a str) -> io::Result<(OwnedFd, &'a str)> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        if matches!(name, "" | "." | "..") {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a path in the tree must end in a name"));
        }
        Ok((self.open_dir(parent)?, name))
    }
}

fn give(file: BorrowedFd<'_>, owner: Owner) -> io::Result<()> {
    // Owner first: the kernel clears privilege bits on a change of owner, and the mode is to be exactly ours.
    fchown(file, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))?;
    Ok(fchmod(file, Mode::from_raw_mode(owner.mode))?)
}

/// Names in a directory, without `.` and `..`.
fn names(dir: BorrowedFd<'_>) -> io::Result<Vec<std::ffi::CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

fn open_child_dir(dir: BorrowedFd<'_>, name: &std::ffi::CStr, depth: u32) -> io::Result<OwnedFd> {
    if depth >= DEPTH_MAX {
        let name = OsStr::from_bytes(name.to_bytes()).display().to_string();
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name} is nested too deeply")));
    }
    Ok(openat(dir, name, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
}

pub(crate) fn remove_children(dir: BorrowedFd<'_>, depth: u32) -> io::Result<()> {
    for name in names(dir)? {
        match unlinkat(dir, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::ISDIR) => {}
            Err(errno) => return Err(errno.into()),
        }
        remove_children(open_child_dir(dir, &name, depth)?.as_fd(), depth + 1)?;
        unlinkat(dir, &name, AtFlags::REMOVEDIR)?;
    }
    Ok(())
}

fn walk(dir: BorrowedFd<'_>, depth: u32, walked: &mut Walked) -> io::Result<()> {
    for name in names(dir)? {
        let stat = statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => walk(open_child_dir(dir, &name, depth)?.as_fd(), depth + 1, walked)?,
            FileType::RegularFile => {
                let bits = stat.st_mode & 0o7777;
                if bits & 0o6000 != 0 {
                    chmodat(dir, &name, Mode::from_raw_mode(bits & !0o6000), AtFlags::empty())?;
                    walked.unprivileged += 1;
                }
                if drop_capabilities(dir, &name)? {
                    walked.unprivileged += 1;
                }
            }
            FileType::Symlink => {}
            _ => {
                unlinkat(dir, &name, AtFlags::empty())?;
                walked.special_removed += 1;
                continue;
            }
        }
        walked.size_bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
    }
    Ok(())
}

fn drop_capabilities(dir: BorrowedFd<'_>, name: &std::ffi::CStr) -> io::Result<bool> {
    let file =
        openat(dir, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
    match fremovexattr(&file, c"security.capability") {
        Ok(()) => Ok(true),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn me(mode: u32) -> Owner {
        Owner { uid: rustix::process::getuid().as_raw(), gid: rustix::process::getgid().as_raw(), mode }
    }

    #[test]
    fn links_in_the_tree_cannot_lead_out_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        fs::create_dir(&root).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("passwd"), b"host").unwrap();
        symlink(&outside, root.join("etc")).unwrap();
        symlink("../outside", root.join("var")).unwrap();
        let tree = Tree::open(&root).unwrap();
        for path in ["etc/passwd", "var/passwd", "../outside/passwd", "/etc/passwd"] {
            assert!(tree.write(path, b"box", me(0o644)).is_err(), "{path}");
            assert!(tree.read(path).is_err(), "{path}");
            tree.remove(path).unwrap();
        }
        tree.empty_dir("var").unwrap();
        assert_eq!(fs::read(outside.join("passwd")).unwrap(), b"host");
    }

    #[test]
    fn a_link_with_the_name_of_a_file_is_replaced_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        fs::write(dir.path().join("secret"), b"host").unwrap();
        symlink("../secret", root.join("hosts")).unwrap();
        let tree = Tree::open(&root).unwrap();
        assert!(tree.read("hosts").is_err());
        tree.write("hosts", b"ours", me(0o640)).unwrap();
        assert_eq!(fs::read(dir.path().join("secret")).unwrap(), b"host");
        assert_eq!(tree.read("hosts").unwrap(), b"ours");
        assert_eq!(fs::symlink_metadata(root.join("hosts")).unwrap().permissions().mode() & 0o7777, 0o640);
        tree.link("elsewhere", "hosts").unwrap();
        assert_eq!(fs::read_link(root.join("hosts")).unwrap(), Path::new("elsewhere"));
    }

    #[test]
    fn privileges_are_taken_out_of_the_tree() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("bin")).unwrap();
        let su = dir.path().join("bin/su");
        fs::write(&su, b"x").unwrap();
        fs::set_permissions(&su, fs::Permissions::from_mode(0o6755)).unwrap();
        let shared = dir.path().join("bin/shared");
        fs::create_dir(&shared).unwrap();
        fs::set_permissions(&shared, fs::Permissions::from_mode(0o2775)).unwrap();
        nix::unistd::mkfifo(&dir.path().join("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        let walked = Tree::open(dir.path()).unwrap().drop_privileges().unwrap();
        assert_eq!((walked.unprivileged, walked.special_removed), (1, 1));
        assert_eq!(fs::metadata(&su).unwrap().permissions().mode() & 0o7777, 0o755);
        assert_eq!(fs::metadata(&shared).unwrap().permissions().mode() & 0o7777, 0o2775);
        assert!(!dir.path().join("pipe").exists());
    }

    #[test]
    fn an_emptied_directory_stays() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("cache/a/b")).unwrap();
        fs::write(dir.path().join("cache/a/b/c"), b"").unwrap();
        let tree = Tree::open(dir.path()).unwrap();
        tree.empty_dir("cache").unwrap();
        tree.empty_dir("nothing").unwrap();
        assert_eq!(fs::read_dir(dir.path().join("cache")).unwrap().count(), 0);
    }
}
