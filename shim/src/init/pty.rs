//! A terminal for a run, from the box's own devpts.
//!
//! Invariants: the multiplexer is opened in place and must be a devpts file with the right device number; the other
//! side is reached through it (TIOCGPTPEER) and never by a path (CVE-2025-52565); the init never gets a controlling
//! terminal.

use std::os::fd::OwnedFd;

use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::pty::OpenptFlags;

use super::user::Identity;
use crate::error::{Error, ErrorKind};
use crate::protocol::Winsize;

const MULTIPLEXER: &str = "/dev/pts/ptmx";
const DEVPTS_SUPER_MAGIC: u64 = 0x1cd1;
/// Device number of the multiplexer: 5:2.
const MULTIPLEXER_DEVICE: (u32, u32) = (5, 2);

/// Both sides of a terminal.
#[derive(Debug)]
pub(crate) struct Terminal {
    /// The init's side, non-blocking.
    pub(crate) ours: OwnedFd,
    /// The program's side.
    pub(crate) theirs: OwnedFd,
}

/// Opens a terminal of that size, owned by the user.
pub(crate) fn open(size: Winsize, identity: &Identity) -> Result<Terminal, Error> {
    let failed = |step: &'static str| move |e: Errno| Error::own(step, MULTIPLEXER, e);
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let ours =
        rustix::fs::open(MULTIPLEXER, flags | OFlags::NONBLOCK, Mode::empty()).map_err(failed("open terminal"))?;
    let stat = rustix::fs::fstat(&ours).map_err(failed("check terminal"))?;
    let system = rustix::fs::fstatfs(&ours).map_err(failed("check terminal"))?;
    let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    if system.f_type.cast_unsigned() != DEVPTS_SUPER_MAGIC || device != MULTIPLEXER_DEVICE {
        return Err(Error::new(ErrorKind::InvalidInput, "check terminal", MULTIPLEXER));
    }
    rustix::pty::unlockpt(&ours).map_err(failed("unlock terminal"))?;
    let peer = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let theirs = rustix::pty::ioctl_tiocgptpeer(&ours, peer).map_err(failed("open terminal's other side"))?;
    rustix::fs::fchown(&theirs, Some(Uid::from_raw(identity.uid)), None::<Gid>)
        .map_err(failed("give terminal to user"))?;
    resize(&ours, size)?;
    Ok(Terminal { ours, theirs })
}

/// Sets the terminal's size; its foreground processes get SIGWINCH.
pub(crate) fn resize(ours: &OwnedFd, size: Winsize) -> Result<(), Error> {
    let size = rustix::termios::Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(ours, size).map_err(|e| Error::own("resize terminal", "", e))
}
