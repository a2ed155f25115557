//! The address of a box's control socket, however long its path is.
//!
//! A socket address holds 107 bytes. A long data or run directory must not make boxes impossible, so beyond that the
//! directory is opened and the socket named through its descriptor.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use crate::protocol::CONTROL_SOCKET;

const SOCKET_PATH_BYTES_MAX: usize = 107;

/// A path that fits into a socket address, valid for the lifetime of this value.
#[derive(Debug)]
pub(crate) struct ControlPath {
    path: PathBuf,
    _directory: Option<File>,
}

impl ControlPath {
    /// The control socket in that run directory.
    pub(crate) fn of(run_dir: &Path) -> io::Result<Self> {
        let path = run_dir.join(CONTROL_SOCKET);
        if path.as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
            return Ok(Self { path, _directory: None });
        }
        let directory = File::open(run_dir)?;
        let short = format!("/proc/self/fd/{}/{CONTROL_SOCKET}", directory.as_raw_fd());
        Ok(Self { path: short.into(), _directory: Some(directory) })
    }

    pub(crate) fn as_path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn a_long_directory_is_as_good_as_a_short_one() {
        let top = tempfile::tempdir().unwrap();
        let long = top.path().join("x".repeat(120));
        std::fs::create_dir(&long).unwrap();
        for directory in [top.path(), &long] {
            let listener = UnixListener::bind(ControlPath::of(directory).unwrap().as_path()).unwrap();
            assert!(directory.join(CONTROL_SOCKET).exists());
            UnixStream::connect(ControlPath::of(directory).unwrap().as_path()).unwrap();
            drop(listener);
        }
    }
}
