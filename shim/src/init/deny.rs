//! The small filter that every program of a run stacks on the box's own.
//!
//! The box's filter must let the init use clone3 (it forks into cgroups), and a filter cannot look into clone3's
//! arguments; so each program loses clone3 altogether and falls back to clone, whose flags are filtered. Compiled once,
//! before anything forks.

use icebox_runtime::seccomp::{self, Program};
use rustix::io::Errno;

use crate::error::{Error, ErrorKind};

/// The compiled filter.
#[derive(Debug)]
pub(crate) struct Filter {
    program: Program,
}

impl Filter {
    /// Compiles it.
    pub(crate) fn prepare() -> Result<Self, Error> {
        let program = seccomp::compile(&seccomp::profile::deny_clone3())
            .map_err(|e| Error::new(ErrorKind::Internal, "compile filter", "clone3").because(e))?;
        Ok(Self { program })
    }

    /// Loads it for this process and everything it becomes.
    pub(crate) fn load(&self) -> Result<(), Errno> {
        match seccomp::load(&self.program) {
            Ok(_) => Ok(()),
            Err(seccomp::Error::Load { source, .. }) => Err(Errno::from_io_error(&source).unwrap_or(Errno::IO)),
            Err(_) => Err(Errno::IO),
        }
    }
}
