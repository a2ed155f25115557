//! Settings of network interfaces under `/proc/sys/net`, in the namespace of the calling thread: the few that netlink
//! cannot set, or that are not a link's ([`devconf`](crate::devconf) has the others).
//!
//! Leaves out: namespace-wide settings; they are the operator's.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use crate::error::Error;

fn file(name: &str, interface: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net").join(name.replace("IF", interface))
}

fn write(name: &str, interface: &str, value: &str) -> Result<(), Error> {
    let path = file(name, interface);
    match fs::write(&path, value) {
        // A kernel without IPv6 has none to disable.
        Err(e) if e.kind() == ErrorKind::NotFound && name.starts_with("ipv6/") => Ok(()),
        other => other.map_err(|e| Error::new("write", path.display().to_string(), e)),
    }
}

/// Takes IPv6 off the host's end of a box's link, while it is still down: the kernel then drops IPv6 packets of the box
/// before it reads their options, and thus before the firewall. This is a file because netlink only reports the value
/// (`IFLA_INET6_CONF`).
pub(super) fn disable_ipv6(interface: &str) -> Result<(), Error> {
    write("ipv6/conf/IF/disable_ipv6", interface, "1")
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
