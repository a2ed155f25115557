//! Whether an address is one of this side's own, asked of the kernel's routes.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::{Mutex, PoisonError};

/// Any port: nothing is sent to it.
const PORT_DISCARD: u16 = 9;

/// A UDP socket that is connected to addresses without sending, to learn the source address that the kernel chooses in the
/// socket's namespace.
#[derive(Debug)]
pub(crate) struct OwnAddress(Mutex<UdpSocket>);

impl OwnAddress {
    /// Uses this socket, which is not connected.
    pub(crate) fn new(socket: UdpSocket) -> Self {
        Self(Mutex::new(socket))
    }

    /// True for an address of this side. The kernel reaches its own address from that same address. An unreachable
    /// address is not own.
    pub(crate) fn is(&self, address: Ipv4Addr) -> bool {
        let probe = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Without this the socket would keep the source address chosen for the last destination.
        if rustix::net::connect_unspec(&*probe).is_err() {
            return true;
        }
        match probe.connect((address, PORT_DISCARD)) {
            Ok(()) => probe.local_addr().map_or(true, |from| from.ip() == address),
            Err(_) => false,
        }
    }
}
