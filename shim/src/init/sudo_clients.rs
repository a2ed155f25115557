//! The socket of sudo and the table of its connections. Leaves out: serving them (`sudo_server`).

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Instant;

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, UCred};

use super::conn::Connection;
use super::spawn::StartPipe;
use crate::error::Error;

const BACKLOG: i32 = 64;

/// The listening socket and its connections.
#[derive(Debug)]
pub(crate) struct SudoServer {
    pub(crate) listener: OwnedFd,
    /// The reactor watches it.
    pub(super) watched: bool,
    pub(super) clients: BTreeMap<u64, SudoClient>,
}

/// A connection and its command.
#[derive(Debug)]
pub(super) struct SudoClient {
    /// `None` when the client is gone and its command still lives.
    pub(super) conn: Option<Connection>,
    pub(super) peer: UCred,
    pub(super) deadline: Instant,
    pub(super) command: Option<Running>,
}

/// A command that was started.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) pid: i32,
    pub(super) start: Option<StartPipe>,
    pub(super) background: bool,
}

impl SudoServer {
    /// Listens on a path that every user of the box can reach.
    pub(crate) fn listen(path: &Path) -> Result<Self, Error> {
        let failed = |e: rustix::io::Errno| Error::io("make sudo socket", path.display(), e);
        if let Some(directory) = path.parent() {
            match rustix::fs::mkdir(directory, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(e) => return Err(failed(e)),
            }
        }
        match rustix::fs::unlink(path) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(e) => return Err(failed(e)),
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(failed)?;
        let address = SocketAddrUnix::new(path).map_err(failed)?;
        rustix::net::bind(&listener, &address).map_err(failed)?;
        rustix::fs::chmod(path, Mode::from_raw_mode(0o666)).map_err(failed)?;
        rustix::net::listen(&listener, BACKLOG).map_err(failed)?;
        Ok(Self { listener, watched: true, clients: BTreeMap::new() })
    }

    /// Connections without a request yet.
    pub(super) fn pending(&self) -> usize {
        let waiting = |client: &&SudoClient| client.command.is_none();
        self.clients.values().filter(waiting).count()
    }
}
