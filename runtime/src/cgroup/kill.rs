//! Signalling and killing every process of a cgroup, and waiting for their end.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::Signal;

use super::Cgroup;
use super::error::{Error, ErrorKind, Result};
use super::procs::{hold, procs_below};
use super::wait::{ignore_removed, until, wait_exits, wait_for};
use crate::sys::process::pidfd_signal;

/// How often a cgroup is read again for processes forked while we were signalling the ones found before.
const SIGNAL_PASSES_MAX: usize = 16;
/// The last real-time signal.
const SIGNAL_MAX: i32 = 64;

impl Cgroup {
    /// Sends a signal to every process here and below. No process of another cgroup can be hit, not even when a pid
    /// is reused meanwhile. In a frozen cgroup all but KILL wait for the thaw.
    ///
    /// # Errors
    /// `Invalid` for a signal that does not exist, `Busy` when new processes kept coming faster than we signalled.
    pub fn signal_all(&self, signal: i32) -> Result<()> {
        let dir = self.main()?;
        if !(0..=SIGNAL_MAX).contains(&signal) {
            return Err(Error::invalid("signal", dir.path(), format!("signal {signal}")));
        }
        let mut done: Vec<i32> = Vec::new();
        for _ in 0..SIGNAL_PASSES_MAX {
            let mut found = procs_below(dir)?;
            found.retain(|pid| !done.contains(pid));
            if found.is_empty() {
                return Ok(());
            }
            let held = hold(&found);
            // A pid still listed after its pidfd was opened is the same process.
            let still = procs_below(dir)?;
            for (pid, fd) in held.iter().filter(|(pid, _)| still.contains(pid)) {
                match pidfd_signal(fd.as_fd(), signal).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO)) {
                    Ok(()) | Err(Errno::SRCH) => {}
                    Err(e) => {
                        return Err(Error::errno("signal", dir.path(), e).detail(format!("pid {pid}")));
                    }
                }
            }
            done.extend(found);
        }
        Err(Error::new("signal", dir.path(), ErrorKind::Busy).detail("it keeps forking"))
    }

    /// Kills all processes here and below, also those being forked, also when frozen. Does not wait. A removed cgroup
    /// has no processes.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn kill(&self) -> Result<()> {
        let killed = match self.unified.as_ref().map(|dir| dir.write("cgroup.kill", "1")) {
            // Linux before 5.14 has no such file.
            Some(Err(e)) if e.is(Errno::NOENT) => self.signal_all(Signal::KILL.as_raw()),
            None => self.signal_all(Signal::KILL.as_raw()),
            Some(killed) => killed,
        };
        ignore_removed(killed)
    }

    /// Waits until there is no process here or below.
    ///
    /// # Errors
    /// `Timeout`.
    pub fn wait_empty(&self, deadline: Duration) -> Result<()> {
        let until = until(deadline);
        ignore_removed(match &self.unified {
            Some(dir) => wait_for(dir, "wait until empty", until, |e| !e.populated),
            None => self.v1.iter().try_for_each(|d| wait_exits(&d.dir, until)),
        })
    }
}
