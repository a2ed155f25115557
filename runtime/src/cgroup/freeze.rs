//! Freezing and thawing, by cgroup v2's freezer.

use std::time::Duration;

use super::Cgroup;
use super::error::{Error, ErrorKind, Result};
use super::file::Dir;
use super::stats::{Events, parse_events};
use super::wait::{until, wait_for};

impl Cgroup {
    /// Freezes every process here and below, and returns when the kernel reports it done. If that takes longer than
    /// `deadline` (a task in uninterruptible sleep delays it) everything is thawed again.
    ///
    /// # Errors
    /// `FreezeTimeout`; `Unsupported` on a legacy layout.
    pub fn freeze(&self, deadline: Duration) -> Result<()> {
        let dir = self.v2("freeze")?;
        dir.write("cgroup.freeze", "1")?;
        match wait_for(dir, "freeze", until(deadline), |e| e.frozen) {
            Ok(()) => Ok(()),
            Err(error) => {
                dir.write("cgroup.freeze", "0")?;
                Err(if error.kind == ErrorKind::Timeout { error.with_kind(ErrorKind::FreezeTimeout) } else { error })
            }
        }
    }

    /// Ends the freeze.
    ///
    /// # Errors
    /// `Timeout` when it is still frozen after `deadline`: then a cgroup above it is frozen. `Unsupported` on a legacy
    /// layout.
    pub fn thaw(&self, deadline: Duration) -> Result<()> {
        let dir = self.v2("thaw")?;
        dir.write("cgroup.freeze", "0")?;
        wait_for(dir, "thaw", until(deadline), |e| !e.frozen)
    }

    /// The state of the cgroup as the kernel reports it.
    ///
    /// # Errors
    /// `Unsupported` on a legacy layout, else those of the system calls.
    pub fn events(&self) -> Result<Events> {
        Ok(parse_events(&self.v2("read")?.read("cgroup.events")?))
    }

    pub(super) fn v2(&self, operation: &'static str) -> Result<&Dir> {
        self.unified.as_ref().ok_or_else(|| {
            Error::new(operation, self.path.as_str(), ErrorKind::Unsupported).detail("cgroup v2 is not mounted")
        })
    }
}
