//! Holding a running box still for a moment, while its disk is copied.
//!
//! Unlike a box that sleeps, this one has work to do: it goes on as soon as the copy is made. A note on its cgroup says so
//! before it is frozen and until it is thawed. If this process is killed in between, the note tells the next one that the
//! box must not stay frozen.

use std::os::fd::AsFd;
use std::time::Duration;

use icebox_runtime::cgroup::set_leaf_note;

use super::BoxHandle;
use super::held::blocking;
use crate::error::Error;

/// The note on the cgroup of a box that is held still.
const STILL: &str = "still";

impl BoxHandle {
    /// Stops every process of the box until [`BoxHandle::let_go`]. Leaves of runs stay.
    ///
    /// # Errors
    /// `FreezeTimeout` after the deadline; the box goes on then.
    pub async fn hold_still(&self, deadline: Duration) -> Result<(), Error> {
        let handle = self.clone();
        blocking(move || {
            handle.note_still(STILL)?;
            let held = handle.with_cgroup("hold box still", |held| held.whole.freeze(deadline));
            if held.is_err() {
                // The first error is reported; the note is harmless on a box that is not frozen.
                let _ = handle.note_still("");
            }
            held
        })
        .await
    }

    /// Lets the box go on.
    ///
    /// # Errors
    /// `Timeout` after the deadline.
    pub async fn let_go(&self, deadline: Duration) -> Result<(), Error> {
        let handle = self.clone();
        blocking(move || {
            handle.with_cgroup("let box go on", |held| held.whole.thaw(deadline))?;
            handle.note_still("")
        })
        .await
    }

    /// True if a process that held the box still has not let it go.
    ///
    /// # Errors
    /// The cgroup cannot be read.
    pub fn is_held_still(&self) -> Result<bool, Error> {
        self.with_cgroup("read box's note", |held| Ok(held.whole.note()?.as_deref() == Some(STILL)))
    }

    fn note_still(&self, text: &str) -> Result<(), Error> {
        self.with_cgroup("write box's note", |held| {
            held.whole.unified_fd().map_or(Ok(()), |directory| set_leaf_note(directory.as_fd(), text))
        })
    }
}
