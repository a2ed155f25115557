//! The container's terminal: a pseudo terminal of its own devpts instance. The peer is opened through the master
//! (`TIOCGPTPEER`), never by a path in the image (CVE-2025-52565), and the host's side becomes no process's
//! controlling terminal (CVE-2017-5226).

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

use super::{
    mount_parts::attach_at,
    rootfs_fd::RootfsFd,
    sync::{Sync, ToParent},
};
use crate::{Result, Step, error::OnStep as _, plan::Process, sys::process as sys};

/// Opens the terminal, if the process has one, and sends the host's side to the caller.
pub(super) fn hand_over(rootfs: &RootfsFd, process: &Process, sync: &Sync) -> Result<()> {
    let Some(size) = process.terminal else { return Ok(()) };
    let master = open_below(rootfs, size, process.uid)?;
    sync.send(&ToParent::Terminal, Some(&master)).on(Step::Terminal, "handing over the terminal")
}

/// Opens a pseudo terminal below the new root and makes it standard input, output, error and the controlling terminal.
/// Returns the host's side.
/// It is bound to `/dev/console` as well (OCI config-linux, "Default Devices").
fn open_below(rootfs: &RootfsFd, size: (u16, u16), uid: u32) -> Result<OwnedFd> {
    let dir = rootfs.resolve(Path::new("/dev/pts")).on(Step::Terminal, "/dev/pts")?;
    let (master, peer) = take(&dir, size, uid)?;
    let bind = || -> io::Result<()> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let tree = open_tree(&peer, "", flags)?;
        attach_at(&tree, &rootfs.make_file(Path::new("/dev/console"))?)
    };
    bind().on(Step::Terminal, "/dev/console")?;
    Ok(master)
}

/// The same as [`hand_over`] in a process that has entered the root already.
pub(crate) fn hand_over_here(process: &Process, sync: &Sync) -> Result<()> {
    let Some(size) = process.terminal else { return Ok(()) };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = openat(CWD, "/dev/pts", flags, Mode::empty()).on(Step::Terminal, "/dev/pts")?;
    let (master, _) = take(&dir, size, process.uid)?;
    sync.send(&ToParent::Terminal, Some(&master)).on(Step::Terminal, "handing over the terminal")
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
