//! A run's cgroup, as the host hands it over: directory and files that are open already.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

/// Longest file of a cgroup that is read here.
const FILE_BYTES_MAX: u64 = 64 * 1024;
/// Most of them are shorter than this.
const FILE_BYTES_USUAL: usize = 512;

/// The cgroup of one run.
#[derive(Debug)]
pub(crate) struct Leaf {
    /// The cgroup v2 directory.
    pub(crate) unified: OwnedFd,
    /// `tasks` files of v1 hierarchies.
    pub(crate) tasks: Vec<OwnedFd>,
    /// Where pids is a v1 controller: the cgroup of all runs of the box in its hierarchy.
    pids: Option<OwnedFd>,
}

impl Leaf {
    /// The descriptors of a request: the v2 directory; then `tasks` files, and perhaps the v1 directory that limits the
    /// processes of all runs.
    pub(crate) fn from_request(fds: Vec<OwnedFd>) -> Option<Self> {
        let mut fds = fds.into_iter();
        let unified = fds.next()?;
        let is_directory = |fd: &OwnedFd| {
            rustix::fs::fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
        };
        let (directories, tasks): (Vec<_>, Vec<_>) = fds.partition(is_directory);
        Some(Self { unified, tasks, pids: directories.into_iter().next() })
    }

    /// True if one more process may run here. On v2 the kernel checks at the fork. On v1 a process joins after the
    /// fork, and joining is never refused: without this check each start would take one of the processes kept for the
    /// init.
    pub(crate) fn has_room(&self) -> bool {
        let Some(pids) = &self.pids else { return true };
        let number = |name| read(pids, name).and_then(|text| text.trim().parse::<u64>().ok());
        match (number("pids.current"), number("pids.max")) {
            (Some(current), Some(most)) => current < most,
            // `max`, or not readable: the box's own limit holds.
            _ => true,
        }
    }

    /// Kills every process in it, also those being forked. `NOENT` before Linux 5.14.
    pub(crate) fn kill(&self) -> Result<(), Errno> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(&self.unified, "cgroup.kill", flags, Mode::empty())?;
        rustix::io::write(&file, b"1").map(drop)
    }

    /// The processes in it.
    pub(crate) fn pids(&self) -> Vec<i32> {
        let text = read(&self.unified, "cgroup.procs").unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }
}

fn read(directory: impl AsFd, name: &str) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::openat(directory, name, flags, Mode::empty()).ok()?;
    let mut bytes = Vec::with_capacity(FILE_BYTES_USUAL);
    File::from(file).take(FILE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}
