//! Settings of network interfaces under `/proc/sys/net`, in the namespace of the calling thread: the few that netlink
//! cannot set, or that are not a link's ([`devconf`](crate::devconf) has the others).
//!
//! Leaves out: namespace-wide settings; they are the operator's.

use std::fs;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

use crate::error::Error;

/// The directory of interfaces in the IPv6 settings.
const IPV6: &str = "/proc/sys/net/ipv6/conf";

fn file(name: &str, interface: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net").join(name.replace("IF", interface))
}

fn write(name: &str, interface: &str, value: &str) -> Result<(), Error> {
    let path = file(name, interface);
    fs::write(&path, value).map_err(|e| Error::new("write", path.display().to_string(), e))
}

/// The IPv6 settings of interfaces in the namespace of the thread that opened them.
///
/// The directory is held open: on the way to it the kernel compares each name with those of all network namespaces that
/// were looked at by this way (`proc_sys_compare`), so each box would make the next one's link dearer.
#[derive(Debug)]
pub(super) struct Ipv6(Option<OwnedFd>);

impl Ipv6 {
    pub(super) fn open() -> Result<Self, Error> {
        match openat(CWD, IPV6, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
            // A kernel without IPv6 has none to disable.
            Err(Errno::NOENT) => Ok(Self(None)),
            other => other.map(|dir| Self(Some(dir))).map_err(|e| Error::new("open", IPV6, e)),
        }
    }

    /// Takes IPv6 off the host's end of a box's link, while it is still down: the kernel then drops IPv6 packets of the box
    /// before it reads their options, and thus before the firewall. This is a file because netlink only reports the value
    /// (`IFLA_INET6_CONF`).
    pub(super) fn disable(&self, interface: &str) -> Result<(), Error> {
        let Some(dir) = &self.0 else { return Ok(()) };
        let name = format!("{interface}/disable_ipv6");
        let write = || -> io::Result<()> {
            match openat(dir, &name, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
                // The MTU of the link is below IPv6's least.
                Err(Errno::NOENT) => Ok(()),
                file => fs::File::from(file?).write_all(b"1"),
            }
        };
        write().map_err(|e| Error::new("write", format!("{IPV6}/{name}"), e))
    }
}

/// True if packets that arrive at `interface` are forwarded.
pub(super) fn forwards(interface: &str) -> Result<bool, Error> {
    let path = file("ipv4/conf/IF/forwarding", interface);
    let text = fs::read_to_string(&path).map_err(|e| Error::new("read", path.display().to_string(), e))?;
    Ok(text.trim() == "1")
}

/// Enables forwarding of packets that arrive at `interface`, which is not ours: the kernel forgets its routes when the
/// value comes by this file, and does not when it comes by netlink.
pub(super) fn forward(interface: &str) -> Result<(), Error> {
    write("ipv4/conf/IF/forwarding", interface, "1")
}
