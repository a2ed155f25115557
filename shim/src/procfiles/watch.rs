//! The thread that answers the readers of files of `/proc`.
//!
//! What it does for a box is bounded: of one file, [`REFRESHES_MAX`] openings in [`WINDOW`] write it, and further
//! openings and readings cause no event until the window closes (the ignore mask of the mark). The thread has a timer
//! only while a window is open; without readers it sleeps.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::fanotify::{Fanotify, FanotifyEvent, FanotifyResponse, MarkFlags, MaskFlags, Response};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::registry::{READING, Shared, mark};
use super::{Key, key};

/// Longest time in which a file that is being read may say what it said before.
const WINDOW: Duration = Duration::from_millis(100);
/// How often the file is written in a window: more than once, so that a program that compares two readings 100 ms apart
/// sees a difference.
const REFRESHES_MAX: u32 = 4;

/// Writing to the file must not end the ignoring.
const IGNORE: MarkFlags =
    MarkFlags::FAN_MARK_ADD.union(MarkFlags::FAN_MARK_IGNORED_MASK).union(MarkFlags::FAN_MARK_IGNORED_SURV_MODIFY);
const HEED: MarkFlags = MarkFlags::FAN_MARK_REMOVE.union(MarkFlags::FAN_MARK_IGNORED_MASK);

/// Says that files are not kept up to date any more.
struct Ended;

impl Drop for Ended {
    fn drop(&mut self) {
        tracing::error!("files of /proc in boxes are written at the start of a command only: their thread has ended");
    }
}

/// Answers until the group fails. The group is closed then, and the kernel lets all readers go on.
pub(super) fn answer(group: Arc<Fanotify>, shared: &Shared) {
    let _ended = Ended;
    let mut thread = Thread { group, shared, windows: HashMap::new(), closing: VecDeque::new() };
    while thread.step() {}
}

struct Thread<'a> {
    group: Arc<Fanotify>,
    shared: &'a Shared,
    /// How often each file was written in its window.
    windows: HashMap<Key, u32>,
    /// When the windows close, the next one first.
    closing: VecDeque<(Instant, Key)>,
}

impl Thread<'_> {
    /// Waits for the next thing to do, and does it. False if there will be none.
    fn step(&mut self) -> bool {
        let left = self.closing.front().map(|(at, _)| at.saturating_duration_since(Instant::now()));
        let left = left.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) });
        match poll(&mut [PollFd::new(&*self.group, PollFlags::IN)], left.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
        self.close_windows(Instant::now());
        match self.group.read_events() {
            Ok(events) => events.iter().for_each(|event| self.heed(event)),
            // The kernel refuses a reader whose event it could not hand over: no descriptor was left, for example.
            Err(Errno::EAGAIN | Errno::EINTR | Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOENT) => {}
            Err(_) => return false,
        }
        true
    }

    fn heed(&mut self, event: &FanotifyEvent) {
        let Some(fd) = event.fd() else { return };
        self.shared.events.fetch_add(1, Ordering::Relaxed);
        if let Ok(key) = key(fd) {
            self.refresh(key, event.mask());
        }
        // It fails if the reader was killed meanwhile.
        let _ = self.group.write_response(FanotifyResponse::new(fd, Response::FAN_ALLOW));
    }

    fn refresh(&mut self, key: Key, mask: MaskFlags) {
        let Some((files, kind)) = self.shared.find(key) else { return };
        let written = match self.windows.get_mut(&key) {
            None => {
                self.closing.push_back((Instant::now() + WINDOW, key));
                self.windows.insert(key, 1);
                1
            }
            Some(written) if *written < REFRESHES_MAX && mask.contains(MaskFlags::FAN_OPEN_PERM) => {
                *written += 1;
                *written
            }
            // It was waiting when the window became full, or is reading what was written at its opening.
            Some(_) => return,
        };
        files.refresh(kind);
        self.shared.refreshes.fetch_add(1, Ordering::Relaxed);
        // If the kernel refuses to ignore a file, its readers cost more, and are told the same.
        if written == 1 {
            let _ = mark(&self.group, IGNORE, MaskFlags::FAN_ACCESS_PERM, files.file(kind));
        }
        if written == REFRESHES_MAX {
            let _ = mark(&self.group, IGNORE, READING, files.file(kind));
        }
    }

    fn close_windows(&mut self, now: Instant) {
        while let Some((_, key)) = self.closing.front().copied().filter(|(at, _)| *at <= now) {
            self.closing.pop_front();
            self.windows.remove(&key);
            if let Some((files, kind)) = self.shared.find(key) {
                let _ = mark(&self.group, HEED, READING, files.file(kind));
            }
        }
    }
}
