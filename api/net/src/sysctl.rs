//! Settings of network interfaces under `/proc/sys/net`, in the namespace of the calling thread.
//!
//! Leaves out: namespace-wide settings, except those of a box's own namespace; the host's global settings are the
//! operator's.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use crate::error::Error;

/// The settings of the host's end of a box's link.
///
/// Only this end forwards (the uplink does too; see [`forwards`]). A source that is not the box's is refused here
/// already (`rp_filter`), before the firewall. The host answers ARP requests for the address of this link only.
const HOST_END: [(&str, &str); 11] = [
    ("ipv4/conf/IF/forwarding", "1"),
    ("ipv4/conf/IF/rp_filter", "1"),
    ("ipv4/conf/IF/arp_ignore", "1"),
    ("ipv4/conf/IF/arp_announce", "2"),
    ("ipv4/conf/IF/arp_filter", "1"),
    ("ipv4/conf/IF/proxy_arp", "0"),
    ("ipv4/conf/IF/accept_redirects", "0"),
    ("ipv4/conf/IF/send_redirects", "0"),
    ("ipv4/conf/IF/accept_source_route", "0"),
    ("ipv4/conf/IF/route_localnet", "0"),
    ("ipv6/conf/IF/disable_ipv6", "1"),
];

/// The settings of a box's own namespace. Nothing relies on them. The link has no IPv6; the loopback has, for programs
/// that listen at `::1`.
const BOX: [(&str, &str); 2] = [("ipv6/conf/default/disable_ipv6", "1"), ("ipv4/conf/all/accept_redirects", "0")];

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

/// Configures the host's end of a box's link, while it is still down.
pub(super) fn host_end(interface: &str) -> Result<(), Error> {
    HOST_END.iter().try_for_each(|(name, value)| write(name, interface, value))
}

/// Configures the namespace of a box, while it has no link.
pub(super) fn of_box() -> Result<(), Error> {
    BOX.iter().try_for_each(|(name, value)| write(name, "", value))
}

/// True if packets that arrive at `interface` are forwarded.
pub(super) fn forwards(interface: &str) -> Result<bool, Error> {
    let path = file("ipv4/conf/IF/forwarding", interface);
    let text = fs::read_to_string(&path).map_err(|e| Error::new("read", path.display().to_string(), e))?;
    Ok(text.trim() == "1")
}

/// Enables forwarding of packets that arrive at `interface`.
pub(super) fn forward(interface: &str) -> Result<(), Error> {
    write("ipv4/conf/IF/forwarding", interface, "1")
}
