//! A network namespace for one measurement: the machine's own is left alone. It has no name and is gone with its holder.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::thread;

use nix::sched::{CloneFlags, unshare};

use crate::error::{Cause, Error, Result, While};

/// A network namespace that lives as long as this.
#[derive(Debug)]
pub(super) struct Netns {
    file: File,
}

impl Netns {
    pub(super) fn new() -> Result<Self> {
        // The namespace of a dedicated thread.
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET)
                .map_err(|e| Error::new("make", "a network namespace", Cause::Io(e.into())))?;
            File::open("/proc/thread-self/ns/net").or_fail("open", "the network namespace")
        };
        let ended = |_| Error::new("make", "a network namespace", Cause::Unexpected("the thread panicked".to_owned()));
        let file = thread::spawn(make).join().map_err(ended)??;
        Ok(Self { file })
    }

    /// A path by which another process can open it while this one lives.
    pub(super) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }
}
