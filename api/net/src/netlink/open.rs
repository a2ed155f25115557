//! Opening a netlink socket in the namespace of this thread.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType};

/// Timeout of an answer; the kernel normally answers at once.
const ANSWER_SECONDS_MAX: u64 = 20;

/// A socket in the multicast groups whose bits are set. A protocol of `None` is NETLINK_ROUTE, number 0.
pub(super) fn bound_socket(protocol: Option<Protocol>, groups: u32) -> Result<OwnedFd, Errno> {
    let fd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
    rustix::net::bind(&fd, &SocketAddrNetlink::new(0, groups))?;
    sockopt::set_socket_timeout(&fd, Timeout::Recv, Some(Duration::from_secs(ANSWER_SECONDS_MAX)))?;
    Ok(fd)
}
