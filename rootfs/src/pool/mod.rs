//! The file system that the volumes of a data directory lie on, chosen so that clones share blocks.
//!
//! A data directory whose own file system can clone is used as it is. Otherwise there is a pool: an XFS with reflink in
//! the sparse file `pool.xfs` of the data directory, or on a block device of the operator's. Where neither is possible,
//! volumes are sparse copies in the data directory, and [`Backing::Sparse`] has the reason.
//!
//! The pool is mounted without a place in any mount namespace: `fsmount` gives a descriptor, and paths lead through
//! `/proc/<pid>/fd/<n>`. So nothing is added to the host's table of mounts, nothing is copied into the namespaces of
//! boxes and of other services, and the kernel takes everything back when the last user is gone. Users are this process
//! and the attached volumes: with running boxes, file system and loop device outlive a killed process, and the next one
//! finds the device by the file behind it and mounts the same file system again.
//!
//! Invariants: the pool's file is attached at most once (its lock is kept by the loop device); a file under the name of
//! the pool is formatted completely; a device with a foreign signature is touched only if the operator forces it.

mod balance;
mod device;
mod format;
mod settings;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::ioctl_ficlone;

use crate::error::{At, Cause, Error, Result, Step};
use crate::files;
use crate::loops::{self, Attached};
use crate::mount::{self, Mounted};
use balance::Balloon;
pub(crate) use settings::bytes_of;
pub use settings::{Backing, Bytes, PoolSettings};
use settings::{TEMP_HINT, wanted_bytes};

/// Name of the pool's file in the data directory.
const FILE: &str = "pool.xfs";
const PROBE_HINT: &str = "probe";
/// How long the pool of a process that has just ended may take to go away.
const ATTACH_WAIT: Duration = Duration::from_secs(10);
/// `flock` has no time-out of its own, so the wait asks this often.
const ATTACH_POLL: Duration = Duration::from_millis(5);

/// A mounted pool.
#[derive(Debug)]
pub(crate) struct Pool {
    mounted: Mounted,
    /// Only in a file of the data directory.
    balloon: Option<Balloon>,
}

impl Pool {
    /// The directory of the pool's root, for this process and its children.
    pub(crate) fn root(&self) -> &Path {
        self.mounted.root()
    }

    /// Its size, and what is free of it for volumes.
    pub(crate) fn bytes(&self) -> Result<Bytes> {
        bytes_of(self.root()).at(Step::BalancePool, self.root())
    }

    /// Blocks that nothing is behind and no volume may have.
    pub(crate) fn withheld_bytes(&self) -> Result<u64> {
        self.balloon.as_ref().map_or(Ok(0), Balloon::bytes)
    }

    /// Keeps the free space of the pool below that of the file system around it.
    ///
    /// # Errors
    /// `PoolDown` if the file system has shut down.
    pub(crate) fn balance(&self) -> Result<()> {
        // XFS answers each reading of a directory so from then on.
        match fs::read_dir(self.root()).and_then(|mut entries| entries.next().transpose()) {
            Err(error) if error.raw_os_error() == Some(libc::EIO) => {
                return Err(Error::new(Step::BalancePool, self.root().display().to_string(), Cause::PoolDown));
            }
            looked => drop(looked.at(Step::BalancePool, self.root())?),
        }
        self.balloon.as_ref().map_or(Ok(()), Balloon::balance)
    }
}

/// The choice for a data directory, and its pools: the one for new volumes first.
#[derive(Debug)]
pub(crate) struct Chosen {
    pub(crate) backing: Backing,
    pub(crate) pools: Vec<Pool>,
}

/// Chooses for a data directory whose lock is held.
pub(crate) fn open(data_dir: &Path, settings: &PoolSettings) -> Result<Chosen> {
    files::sweep_temps_of(data_dir, TEMP_HINT).at(Step::OpenPool, data_dir)?;
    files::sweep_temps_of(data_dir, PROBE_HINT).at(Step::OpenPool, data_dir)?;
    let file = data_dir.join(FILE);
    // Volumes in it may be boxes' disks, whatever is wanted for new ones.
    let existing = match file.try_exists().at(Step::OpenPool, &file)? {
        true => Some(open_file(data_dir, &file, settings)?),
        false => None,
    };
    if let Some(path) = &settings.device {
        let pools = [Pool { mounted: device::open(path, settings.force)?, balloon: None }]
            .into_iter()
            .chain(existing)
            .collect();
        return Ok(Chosen { backing: Backing::Device(path.clone()), pools });
    }
    if can_clone(data_dir).at(Step::OpenPool, data_dir)? {
        return Ok(Chosen { backing: Backing::Own, pools: existing.into_iter().collect() });
    }
    if settings.off {
        let reason = "it is switched off by `[storage] pool`".to_owned();
        return Ok(Chosen { backing: Backing::Sparse { reason }, pools: existing.into_iter().collect() });
    }
    if let Some(pool) = existing {
        return Ok(Chosen { backing: Backing::File, pools: vec![pool] });
    }
    let made = format::make(data_dir, &file, settings).and_then(|()| open_file(data_dir, &file, settings));
    made.map(|pool| Chosen { backing: Backing::File, pools: vec![pool] }).or_else(|error| {
        // It was made a moment ago and nothing is in it. Kept, it would be an error of the next start.
        let _ = fs::remove_file(&file);
        Ok(Chosen { backing: Backing::Sparse { reason: chain(&error) }, pools: Vec::new() })
    })
}

fn chain(error: &Error) -> String {
    format!("{error}: {}", error.cause())
}

/// Attaches (or finds attached) and mounts the pool's file, and grows it to the size that is wanted now.
fn open_file(data_dir: &Path, file: &Path, settings: &PoolSettings) -> Result<Pool> {
    let wanted = wanted_bytes(data_dir, settings)?;
    let length = fs::metadata(file).at(Step::OpenPool, file)?.len();
    if wanted > length {
        let opened = OpenOptions::new().write(true).open(file).at(Step::OpenPool, file)?;
        opened.set_len(wanted).and_then(|()| opened.sync_all()).at(Step::OpenPool, file)?;
    }
    let deadline = Instant::now() + ATTACH_WAIT;
    let mounted = loop {
        let attached = attach_or_find(file, deadline)?;
        attached.resize_to_file().at(Step::OpenPool, file)?;
        match mount::xfs(&attached.device) {
            Ok(mounted) => break mounted,
            // The file system of a process that has just ended is still being unmounted.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                thread::sleep(ATTACH_POLL);
            }
            Err(error) => return Err(error).at(Step::OpenPool, file),
        }
    };
    mounted.grow_xfs(wanted.max(length)).at(Step::OpenPool, file)?;
    let balloon = Balloon::new(data_dir, mounted.root(), settings.margin);
    let pool = Pool { mounted, balloon: Some(balloon) };
    pool.balance()?;
    Ok(pool)
}

/// The pool's loop device. A device keeps the lock of its file, so there is never a second one.
fn attach_or_find(path: &Path, deadline: Instant) -> Result<Attached> {
    let file = OpenOptions::new().read(true).write(true).open(path).at(Step::OpenPool, path)?;
    let metadata = file.metadata().at(Step::OpenPool, path)?;
    loop {
        if files::try_lock(&file).at(Step::OpenPool, path)? {
            // The file system around it shares no blocks of the pool's file, so direct I/O is safe.
            return loops::attach(&file, path, true);
        }
        if let Some(found) = loops::find(&metadata).at(Step::OpenPool, path)? {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            return Err(Error::new(Step::OpenPool, path.display().to_string(), Cause::PoolHeld));
        }
        thread::sleep(ATTACH_POLL);
    }
}

/// True if the file system of `dir` can share the blocks of a file with another.
fn can_clone(dir: &Path) -> io::Result<bool> {
    let (from, to) = (files::temp_path(dir, PROBE_HINT), files::temp_path(dir, PROBE_HINT));
    let probed = (|| {
        let make = |path: &Path| OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
        let (source, target): (File, File) = (make(&from)?, make(&to)?);
        // Full disks and quotas are no answer to this question: an empty file is cloned.
        Ok(ioctl_ficlone(&target, &source).is_ok())
    })();
    let _ = fs::remove_file(&from);
    let _ = fs::remove_file(&to);
    probed
}
