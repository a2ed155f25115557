//! The container's terminal: a pseudo terminal of its own devpts instance. The peer is opened through the master
//! (`TIOCGPTPEER`), never by a path in the image (CVE-2025-52565), and the host's side is nobody's controlling
//! terminal (CVE-2017-5226).

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2},
    mount::{OpenTreeFlags, open_tree},
    pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt},
    termios::{Winsize, tcsetwinsize},
};

use super::{inside::Inside, root::attach_at};
use crate::{Result, Step, error::OnStep as _, sys::process as sys};

/// Opens a pseudo terminal inside and makes it standard input, output, error and the controlling terminal. Returns
/// the host's side.
/// It is bound to `/dev/console` as well (OCI config-linux, "Default Devices").
pub(super) fn open_inside(inside: &Inside, size: (u16, u16), uid: u32) -> Result<OwnedFd> {
    let dir = inside.resolve(Path::new("/dev/pts")).on(Step::Terminal, "/dev/pts")?;
    let (master, peer) = take(&dir, size, uid)?;
    let bind = || -> io::Result<()> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let tree = open_tree(&peer, "", flags)?;
        attach_at(&tree, &inside.make_file(Path::new("/dev/console"))?)
    };
    bind().on(Step::Terminal, "/dev/console")?;
    Ok(master)
}

/// The same in a process that is inside already.
#[cfg_attr(not(feature = "oci"), expect(dead_code, reason = "only the exec of icerun does so"))]
pub(crate) fn open_here(size: (u16, u16), uid: u32) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = openat(CWD, "/dev/pts", flags, Mode::empty()).on(Step::Terminal, "/dev/pts")?;
    take(&dir, size, uid).map(|(master, _)| master)
}

/// The host's side and the program's side, which belongs to the program's user.
fn take(pts_dir: &OwnedFd, size: (u16, u16), uid: u32) -> Result<(OwnedFd, OwnedFd)> {
    let open = || -> io::Result<(OwnedFd, OwnedFd)> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let master = openat2(pts_dir, "ptmx", flags, Mode::empty(), resolve)?;
        unlockpt(&master)?;
        let peer = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        let (rows, cols) = size;
        if rows != 0 || cols != 0 {
            tcsetwinsize(&master, Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 })?;
        }
        Ok((master, peer))
    };
    let (master, peer) = open().on(Step::Terminal, "/dev/pts/ptmx")?;
    crate::stdio::give_to_user(&peer, uid).on(Step::Terminal, "owner of the terminal")?;
    rustix::process::ioctl_tiocsctty(&peer).on(Step::Terminal, "controlling terminal")?;
    for number in 0..=2 {
        sys::place_fd(peer.as_fd(), number).on(Step::Terminal, format!("descriptor {number}"))?;
    }
    Ok((master, peer))
}
