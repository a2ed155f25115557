//! Entries become files.
//!
//! Owns: whiteouts and their translation to overlayfs, replacement of entries within one archive, owners, modes, times and
//! attributes. What a layer has no use for in a box is left out with a warning: device nodes (a box has its own `/dev`,
//! its root is mounted `nodev`, and it has no CAP_MKNOD; Docker's images carry some from debootstrap), and extended
//! attributes other than `user.*` and `security.capability`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat, fchmod, fchown,
    fsetxattr, fstatvfs, futimens, linkat, mkdirat, mknodat, openat, symlinkat, utimensat,
};
use rustix::io::Errno;

use super::fault::{Fault, Reason, refuse, shown};
use super::frames::{Entry, Frames, Kind};
use super::limits::Limits;
use super::place::{Place, There, look, parts};
use super::split::SplitLog;
use super::stream::Pieces;

/// Names of whiteouts (OCI image specification, "Whiteouts").
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other names of AUFS: bookkeeping of its own.
const AUFS: &[u8] = b".wh..wh.";
/// The attribute by which overlayfs hides what lower layers have in a directory.
const OVERLAY_OPAQUE: &std::ffi::CStr = c"trusted.overlay.opaque";
/// Longest target of a symbolic link (PATH_MAX of Linux, its NUL included).
const TARGET_BYTES_MAX: usize = 4095;
/// Ids that a box has.
const BOX_IDS: u32 = 65_536;
/// Warnings that are kept.
const WARNINGS_MAX: usize = 64;
/// The paths of directories are held in memory.
const DIR_PATHS_BYTES_MAX: usize = 32 << 20;
const BUFFER_BYTES: usize = 256 * 1024;
/// Free space is looked at each time this much was written.
const SPACE_STEP_BYTES: u64 = 64 << 20;

/// Facts about an unpacked layer.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Unpacked {
    pub(crate) entries: u64,
    /// Bytes of all files.
    pub(crate) bytes: u64,
    /// The layer hides everything below it.
    pub(crate) opaque_root: bool,
    /// Directories that are there only because something lies in them.
    pub(crate) implied: Vec<String>,
    pub(crate) warnings: Vec<String>,
    /// The log is complete: the archive can be made again.
    pub(crate) logged: bool,
}

pub(super) fn apply(pieces: Pieces, root: &Path, log: Option<File>, limits: Limits) -> Result<Unpacked, Fault> {
    let mut layer = Layer::new(root, limits, log.is_some())?;
    let mut frames = Frames::new(pieces, limits, log.map(SplitLog::new));
    let done = layer.entries(&mut frames);
    let (mut pieces, log) = frames.into_parts();
    // A failure of the other thread is the cause of one here.
    done.map_err(|fault| match pieces.take_fault() {
        Some(cause) => Fault { entry: fault.entry, ..cause },
        None => fault,
    })?;
    drop(pieces);
    match log {
        Some(log) => log.finish()?,
        None => layer.facts.logged = false,
    }
    layer.finish()
}

pub(super) struct Layer {
    place: Place,
    limits: Limits,
    facts: Unpacked,
    /// Times of directories: set last, because each entry in a directory changes them.
    dir_times: BTreeMap<Vec<u8>, (i64, u32)>,
    dir_bytes: usize,
    /// Warnings beyond the limit.
    dropped: u64,
    /// Bytes written since free space was last looked at.
    unchecked: u64,
    buffer: Vec<u8>,
}

impl Layer {
    pub(super) fn new(root: &Path, limits: Limits, logged: bool) -> Result<Self, Fault> {
        Ok(Self {
            place: Place::open(root)?,
            limits,
            facts: Unpacked { logged, ..Unpacked::default() },
            dir_times: BTreeMap::new(),
            dir_bytes: 0,
            dropped: 0,
            unchecked: SPACE_STEP_BYTES,
            buffer: vec![0; BUFFER_BYTES],
        })
    }

    fn entries(&mut self, frames: &mut Frames<Pieces>) -> Result<(), Fault> {
        while let Some(entry) = frames.next()? {
            self.take(&entry, frames)?;
        }
        Ok(())
    }

    /// Makes what an entry says.
    pub(super) fn take(&mut self, entry: &Entry, frames: &mut Frames<Pieces>) -> Result<(), Fault> {
        self.facts.entries += 1;
        if self.facts.entries > self.limits.entries {
            refuse!("the archive has more than {} entries", self.limits.entries);
        }
        self.entry(entry, frames).map_err(|fault| fault.in_entry(&entry.path))
    }

    fn entry(&mut self, entry: &Entry, frames: &mut Frames<Pieces>) -> Result<(), Fault> {
        let path = parts(&entry.path, &self.limits)?;
        let Some((name, above)) = path.split_last() else {
            if entry.kind != Kind::Dir {
                refuse!("the root of a layer must be a directory");
            }
            chownat(
                self.place.root(),
                ".",
                Some(Uid::from_raw(entry.uid)),
                Some(Gid::from_raw(entry.gid)),
                AtFlags::empty(),
            )?;
            fchmod(self.place.root(), Mode::from_raw_mode(entry.mode))?;
            self.dir_times.insert(Vec::new(), entry.mtime);
            self.place.implied.remove(b"".as_slice());
            return Ok(());
        };
        if above.iter().any(|part| part.starts_with(WHITEOUT)) && !above.iter().any(|part| part.starts_with(AUFS)) {
            refuse!("it lies in a whiteout");
        }
        if above.iter().any(|part| part.starts_with(AUFS)) || (name.starts_with(AUFS) && *name != OPAQUE) {
            return Ok(());
        }
        if *name == OPAQUE {
            return self.opaque(above);
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(above, hidden);
        }
        if entry.kind == Kind::Device {
            self.warn("a device node is left out", &entry.path);
            return Ok(());
        }
        if entry.uid >= BOX_IDS || entry.gid >= BOX_IDS {
            self.warn("its owner or group does not exist in a box, where ids end at 65535", &entry.path);
        }
        let dir = self.place.dir(above, true)?;
        let joined = path.join(&b'/');
        match entry.kind {
            Kind::Dir => self.dir(entry, &dir, name, &joined, frames),
            Kind::File => self.file(entry, &dir, name, &joined, frames),
            Kind::Hardlink => self.hardlink(entry, &dir, name, &path, frames),
            Kind::Symlink => self.symlink(entry, &dir, name, frames),
            Kind::Fifo => {
                self.clear(&dir, name, frames)?;
                mknodat(&*dir, *name, FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
                self.attributes_at(entry, dir.as_fd(), name)
            }
            Kind::Device => Ok(()),
        }
    }

    /// Hides what lower layers have in a directory.
    fn opaque(&mut self, above: &[&[u8]]) -> Result<(), Fault> {
        let Some((name, parent)) = above.split_last() else {
            // overlayfs takes no notice of the attribute on the root of a layer.
            self.facts.opaque_root = true;
            return Ok(());
        };
        self.place.dir(above, true)?;
        let parent = self.place.dir(parent, true)?;
        set_opaque(parent.as_fd(), name)
    }

    /// Hides what lower layers have at a path. What this layer has there stays.
    fn whiteout(&mut self, above: &[&[u8]], hidden: &[u8]) -> Result<(), Fault> {
        if matches!(hidden, b"" | b"." | b"..") {
            refuse!("it is a whiteout of nothing");
        }
        let dir = self.place.dir(above, true)?;
        match look(dir.as_fd(), hidden)? {
            There::Nothing => Ok(mknodat(&*dir, hidden, FileType::CharacterDevice, Mode::from_raw_mode(0o600), 0)?),
            There::Dir => set_opaque(dir.as_fd(), hidden),
            There::Whiteout | There::Other(_) => Ok(()),
        }
    }

    fn dir(
        &mut self,
        entry: &Entry,
        dir: &Rc<OwnedFd>,
        name: &[u8],
        path: &[u8],
        frames: &mut Frames<Pieces>,
    ) -> Result<(), Fault> {
        match look(dir.as_fd(), name)? {
            There::Dir => {
                self.place.implied.remove(path);
            }
            there => {
                self.clear(dir, name, frames)?;
                mkdirat(&**dir, name, Mode::from_raw_mode(0o700))?;
                if there == There::Whiteout {
                    set_opaque(dir.as_fd(), name)?;
                }
            }
        }
        if self.dir_times.insert(path.to_vec(), entry.mtime).is_none() {
            self.dir_bytes += path.len();
            if self.dir_bytes > DIR_PATHS_BYTES_MAX {
                refuse!("the paths of the layer's directories have more than {DIR_PATHS_BYTES_MAX} bytes");
            }
        }
        if entry.xattrs.is_empty() {
            let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
            chownat(&**dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            // Not a link: it is the directory that was looked at or made above.
            return Ok(chmodat(&**dir, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())?);
        }
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&**dir, name, flags, Mode::empty())?;
        self.attributes(entry, fd.as_fd())
    }

    fn file(
        &mut self,
        entry: &Entry,
        dir: &Rc<OwnedFd>,
        name: &[u8],
        path: &[u8],
        frames: &mut Frames<Pieces>,
    ) -> Result<(), Fault> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let create = || openat(&**dir, name, flags, Mode::from_raw_mode(0o600));
        let fd = match create() {
            Err(Errno::EXIST) => {
                self.clear(dir, name, frames)?;
                create()?
            }
            other => other?,
        };
        self.count(entry.size)?;
        let mut file = File::from(fd);
        match &entry.segments {
            None => {
                frames.content_is_file(path)?;
                self.copy(frames, &mut file, entry.size)?;
            }
            Some(segments) => {
                for (offset, length) in segments {
                    file.seek(SeekFrom::Start(*offset))?;
                    self.copy(frames, &mut file, *length)?;
                }
                file.set_len(entry.size)?;
            }
        }
        self.attributes(entry, file.as_fd())?;
        Ok(futimens(&file, &times(entry.mtime))?)
    }

    fn copy(&mut self, frames: &mut Frames<Pieces>, file: &mut File, size: u64) -> Result<(), Fault> {
        let mut left = size;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            let got = frames.read(&mut self.buffer[..most])?;
            if got == 0 {
                refuse!("the archive has less of it than it says");
            }
            file.write_all(&self.buffer[..got])?;
            left -= got as u64;
            self.unchecked += got as u64;
            if self.unchecked >= SPACE_STEP_BYTES {
                self.unchecked = 0;
                self.check_space()?;
            }
        }
        Ok(())
    }

    /// An archive must not fill the disk to the last byte: the records of the daemon may lie there.
    fn check_space(&self) -> Result<(), Fault> {
        let space = fstatvfs(self.place.root())?;
        if space.f_bavail.saturating_mul(space.f_frsize) < self.limits.free_bytes {
            return Err(std::io::Error::from(ErrorKind::StorageFull).into());
        }
        Ok(())
    }

    fn count(&mut self, size: u64) -> Result<(), Fault> {
        self.facts.bytes = self.facts.bytes.saturating_add(size);
        if self.facts.bytes > self.limits.bytes {
            refuse!("the files of the layer have more than {} bytes", self.limits.bytes);
        }
        Ok(())
    }

    fn hardlink(
        &mut self,
        entry: &Entry,
        dir: &Rc<OwnedFd>,
        name: &[u8],
        path: &[&[u8]],
        frames: &mut Frames<Pieces>,
    ) -> Result<(), Fault> {
        let shown = shown(&entry.link);
        let target = parts(&entry.link, &self.limits).map_err(|fault| match fault.reason {
            Reason::Refused(why) => Fault::refused(format!("it is a hard link to '{shown}': {why}")),
            Reason::Io(_) => fault,
        })?;
        let Some((target_name, target_above)) = target.split_last() else { refuse!("it is a hard link to the root") };
        if target == path {
            refuse!("it is a hard link to itself");
        }
        let missing = || Fault::refused(format!("it is a hard link to '{shown}', which is not in this layer"));
        let target_dir = match self.place.dir(target_above, false) {
            Err(Fault { reason: Reason::Io(error), .. }) if error.kind() == ErrorKind::NotFound => {
                return Err(missing());
            }
            other => other?,
        };
        match look(target_dir.as_fd(), target_name)? {
            There::Nothing | There::Whiteout => return Err(missing()),
            There::Dir => refuse!("it is a hard link to the directory '{shown}'"),
            There::Other(_) => {}
        }
        self.clear(dir, name, frames)?;
        // Not followed: a link to a symbolic link is one to the link itself.
        match linkat(&*target_dir, *target_name, &**dir, name, AtFlags::empty()) {
            // What was cleared away was the target, or the directory that it was in.
            Err(Errno::NOENT) => Err(missing()),
            Err(Errno::MLINK) => refuse!("'{shown}' has more hard links than the file system allows"),
            other => Ok(other?),
        }
    }

    fn symlink(
        &mut self,
        entry: &Entry,
        dir: &Rc<OwnedFd>,
        name: &[u8],
        frames: &mut Frames<Pieces>,
    ) -> Result<(), Fault> {
        if entry.link.is_empty() || entry.link.len() > TARGET_BYTES_MAX || entry.link.contains(&0) {
            refuse!(
                "it is a symbolic link whose target has {} bytes; 1 to {TARGET_BYTES_MAX} are allowed",
                entry.link.len()
            );
        }
        self.clear(dir, name, frames)?;
        symlinkat(entry.link.as_slice(), &**dir, name)?;
        self.attributes_at(entry, dir.as_fd(), name)
    }

    /// Makes room for an entry that is not a directory.
    fn clear(&mut self, dir: &Rc<OwnedFd>, name: &[u8], frames: &mut Frames<Pieces>) -> Result<(), Fault> {
        match look(dir.as_fd(), name)? {
            There::Nothing => return Ok(()),
            There::Whiteout => {}
            There::Dir | There::Other(_) => frames.drop_log(),
        }
        Ok(self.place.remove(dir.as_fd(), name)?)
    }

    /// Owner, attributes, mode: in this order, because a change of owner clears capabilities and setuid bits.
    fn attributes(&mut self, entry: &Entry, fd: BorrowedFd<'_>) -> Result<(), Fault> {
        fchown(fd, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))?;
        for (name, value) in &entry.xattrs {
            if !is_kept(name) {
                self.warn(&format!("the attribute {} is left out", name.escape_ascii()), &entry.path);
                continue;
            }
            match fsetxattr(fd, name.as_slice(), value, XattrFlags::empty()) {
                Err(Errno::OPNOTSUPP) => {
                    let what = format!("the file system does not take the attribute {}", name.escape_ascii());
                    self.warn(&what, &entry.path);
                }
                Err(errno @ (Errno::INVAL | Errno::RANGE | Errno::TOOBIG | Errno::PERM)) => {
                    refuse!("the kernel refuses its attribute {}: {errno}", name.escape_ascii());
                }
                other => other?,
            }
        }
        Ok(fchmod(fd, Mode::from_raw_mode(entry.mode))?)
    }

    /// The same for what can't be opened: links and pipes.
    fn attributes_at(&mut self, entry: &Entry, dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Fault> {
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        if entry.kind == Kind::Fifo {
            chmodat(dir, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())?;
        }
        if !entry.xattrs.is_empty() {
            self.warn("its extended attributes are left out", &entry.path);
        }
        Ok(utimensat(dir, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn warn(&mut self, what: &str, path: &[u8]) {
        if self.facts.warnings.len() < WARNINGS_MAX {
            self.facts.warnings.push(format!("{}: {what}", shown(path)));
        } else {
            self.dropped += 1;
        }
    }

    /// Sets the times of directories, after the last entry.
    pub(super) fn finish(mut self) -> Result<Unpacked, Fault> {
        // The deepest first: setting a time changes no other one.
        for (path, time) in std::mem::take(&mut self.dir_times).iter().rev() {
            let path = if path.is_empty() { b".".as_slice() } else { path };
            let parts = parts(path, &self.limits)?;
            let (dir, name): (_, &[u8]) = match parts.split_last() {
                None => (self.place.dir(&[], false)?, b"."),
                Some((name, above)) => match self.place.dir(above, false) {
                    Ok(dir) => (dir, *name),
                    // Replaced by a later entry.
                    Err(Fault { reason: Reason::Refused(_), .. }) => continue,
                    Err(Fault { reason: Reason::Io(error), .. }) if error.kind() == ErrorKind::NotFound => continue,
                    Err(fault) => return Err(fault),
                },
            };
            if look(dir.as_fd(), name)? == There::Dir {
                utimensat(&*dir, name, &times(*time), AtFlags::SYMLINK_NOFOLLOW)?;
            }
        }
        if self.dropped > 0 {
            self.facts.warnings.push(format!("{} more warnings", self.dropped));
        }
        self.facts.implied = std::mem::take(&mut self.place.implied)
            .into_iter()
            .filter_map(|path| String::from_utf8(path).ok())
            .collect();
        Ok(self.facts)
    }
}

fn set_opaque(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Fault> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = openat(parent, name, flags, Mode::empty())?;
    Ok(fsetxattr(&fd, OVERLAY_OPAQUE, b"y", XattrFlags::empty())?)
}

/// Attributes that mean something in a box, and nothing to the host. overlayfs' own would change what a box sees.
pub(crate) fn is_kept(name: &[u8]) -> bool {
    name == b"security.capability" || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

fn times((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}
