//! All boxes whose files are kept up to date, and the group of fanotify(7) that tells of their readers.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags};

use super::files::{BoxFiles, Files, first_text};
use super::registry::{Membership, READING, Shared, mark};
use super::{Kind, Readings, processors, watch};
use crate::error::Error;
use crate::launch::ProcFile;
use crate::processors::host_processors;

/// Numbers of the files in a box's init, after its control socket.
pub(crate) const FDS: [i32; 3] = [4, 5, 6];
const CPUINFO: &str = "/proc/cpuinfo";

/// The processors and the memory of a box.
#[derive(Debug, Clone, Copy)]
pub struct Size<'a> {
    /// CPU quota in cores.
    pub cores: f64,
    /// The CPUs that boxes may use; `None` for all.
    pub cpuset: Option<&'a str>,
    /// Memory limit.
    pub memory_bytes: u64,
}

/// Keeps the files of all boxes of a process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Keeper {
    shared: Arc<Shared>,
}

/// The files of a running box.
#[derive(Debug)]
pub(crate) struct Kept {
    /// Ends before the files are closed: their inodes could be others' then.
    membership: Option<Membership>,
    files: Arc<BoxFiles>,
}

impl Kept {
    /// Takes a reading of the processor time that was made for another reason: the load averages need one now and then.
    pub(crate) fn note_cpu(&self, used: Duration) {
        self.files.note_cpu(used);
    }

    /// Writes all files, if no group of fanotify does it when they are read.
    pub(crate) fn refresh_unwatched(&self) {
        if !self.membership.as_ref().is_some_and(Membership::is_watched) {
            Kind::ALL.into_iter().for_each(|kind| self.files.refresh(kind));
        }
    }
}

/// A group that holds up readers until it answers.
fn group() -> Result<Fanotify, Error> {
    let flags = InitFlags::FAN_CLASS_CONTENT
        | InitFlags::FAN_UNLIMITED_MARKS
        | InitFlags::FAN_CLOEXEC
        | InitFlags::FAN_NONBLOCK;
    let event = EventFFlags::O_RDONLY | EventFFlags::O_CLOEXEC | EventFFlags::O_LARGEFILE;
    Fanotify::init(flags, event).map_err(|e| Error::io("start watching files of /proc", "fanotify", e))
}

/// Whether this kernel, and the rights of this process, have permission events of fanotify(7).
///
/// # Errors
/// The reason why not.
pub fn can_watch() -> Result<(), Error> {
    let failed = |e: std::io::Error| Error::io("try to watch a file", "fanotify", e);
    let file = rustix::fs::memfd_create("probe", rustix::fs::MemfdFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
    let marked = mark(&group()?, MarkFlags::FAN_MARK_ADD, READING, file.as_fd());
    marked.map_err(|e| failed(e.into()))
}

impl Keeper {
    /// Starts to answer for files, in a thread of its own.
    ///
    /// # Errors
    /// The kernel has no permission events, or this process may not ask for them.
    pub fn start() -> Result<Self, Error> {
        can_watch()?;
        let group = Arc::new(group()?);
        let shared = Arc::new(Shared { group: Arc::downgrade(&group), ..Shared::default() });
        let answering = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("proc-files".to_owned())
            .spawn(move || watch::answer(group, &answering))
            .map_err(|e| Error::io("start the thread of files of /proc", "", e))?;
        Ok(Self { shared })
    }

    /// Without fanotify: files are written when a command is started and when the box wakes.
    #[must_use]
    pub fn without_watch() -> Self {
        Self { shared: Arc::default() }
    }

    /// How often a reader was held up, and how often a file was written for one.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        (self.shared.events.load(Ordering::Relaxed), self.shared.refreshes.load(Ordering::Relaxed))
    }

    /// The files of a box that is to be started.
    ///
    /// # Errors
    /// The host's processors cannot be read.
    pub fn files(&self, size: Size<'_>) -> Result<Vec<ProcFile>, Error> {
        let cpus = host_processors(size.cpuset, size.cores)?;
        let kept = FDS.into_iter().zip(Kind::ALL).map(|(number, kind)| ProcFile {
            name: kind.name().to_owned(),
            text: first_text(kind, cpus.len(), size.memory_bytes),
            kept_as: Some(number),
        });
        let mut files: Vec<ProcFile> = kept.collect();
        files.push(ProcFile { name: "cpuinfo".to_owned(), text: self.cpuinfo(cpus)?, kept_as: None });
        Ok(files)
    }

    /// The description of these processors, read once in the life of the process.
    fn cpuinfo(&self, cpus: Vec<u32>) -> Result<String, Error> {
        let mut known = self.shared.cpuinfo.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(text) = known.get(&cpus) {
            return Ok(text.clone());
        }
        let host = std::fs::read_to_string(CPUINFO).map_err(|e| Error::io("read processors", CPUINFO, e))?;
        let text = processors::cpuinfo(&host, &cpus);
        known.insert(cpus, text.clone());
        Ok(text)
    }

    /// Keeps the files of a running box up to date from now on, until what is returned is dropped. `files` are the
    /// descriptors [`FDS`] of its init. Beside it, the reason if they cannot be watched. `None` if the box has no such
    /// files.
    pub(crate) fn keep(
        &self,
        files: [OwnedFd; 3],
        readings: Box<dyn Readings>,
        pid: i32,
        start_time_ticks: u64,
    ) -> Option<(Kept, Result<(), Error>)> {
        let files = Files::of(files)?;
        let files = Arc::new(BoxFiles::new(files, readings, pid, start_time_ticks));
        let watched =
            self.shared.group.upgrade().map(|group| Membership::new(&self.shared, &group, &files)).transpose();
        match watched {
            Ok(membership) => Some((Kept { membership, files }, Ok(()))),
            Err(e) => {
                let error = Error::io("watch the files of the box's /proc", "fanotify", e);
                Some((Kept { membership: None, files }, Err(error)))
            }
        }
    }
}
