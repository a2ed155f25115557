//! Connections to a port of a box, made inside the box's own network namespace.
//!
//! The address is always the box's loopback and the namespace that of the PID 1 of exactly this life of this box: no
//! part of a request influences it, so a request cannot reach another destination. The namespace is opened for each
//! connection and not kept: an open one would outlive its box, with the links in it.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::OnceCell;

use crate::boxes::Entry;
use crate::error::Error;
use icebox_net::namespace::Namespace;
use icebox_net::sockets::Sockets;

/// Longest wait for a listener that is too busy to accept.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// Addresses where servers listen, in this order.
const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// Reason for a failed connection.
#[derive(Debug)]
pub(super) enum NoDial {
    /// The port has no listener.
    Silent,
    /// The listener does not accept connections.
    Busy,
    /// The box has no processes (any more).
    Dead,
    /// An internal error.
    Failed(Error),
}

/// The maker of these connections.
#[derive(Debug, Default)]
pub(super) struct Dialler {
    sockets: OnceCell<Sockets>,
}

impl Dialler {
    /// Connects to a port of a box that is awake.
    pub(super) async fn dial(&self, entry: &Arc<Entry>, port: u16) -> Result<TcpStream, NoDial> {
        let sockets =
            self.sockets.get_or_try_init(Sockets::start).await.map_err(|error| NoDial::Failed(error.into()))?;
        let namespace = namespace(entry)?;
        for address in LOOPBACK {
            let address = SocketAddr::new(address, port);
            let socket = match sockets.tcp(&namespace, address).await {
                Ok(socket) => socket,
                // A kernel without IPv6 has no such socket either.
                Err(_) if address.is_ipv6() => return Err(NoDial::Silent),
                Err(error) => return Err(NoDial::Failed(error.into())),
            };
            let connecting = tokio::time::timeout(CONNECT_DEADLINE, socket.connect(address));
            let failed = match connecting.await {
                Ok(Ok(stream)) => {
                    // TCP_NODELAY: small pieces must leave at once. It fails only if the other end has gone already.
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Ok(Err(cause)) => cause,
                Err(_) => return Err(NoDial::Busy),
            };
            match failed.kind() {
                ErrorKind::ConnectionRefused
                | ErrorKind::ConnectionReset
                | ErrorKind::AddrNotAvailable
                | ErrorKind::NetworkUnreachable
                | ErrorKind::HostUnreachable => {}
                _ => return Err(NoDial::Failed(Error::new("connect into", &entry.id, failed))),
            }
        }
        Err(NoDial::Silent)
    }
}

/// The namespace of the current life of a box.
fn namespace(entry: &Entry) -> Result<Namespace, NoDial> {
    let pid = entry.view().incarnation.map(|init| init.pid).ok_or(NoDial::Dead)?;
    let opened = u32::try_from(pid).map_err(|_| NoDial::Dead).map(Namespace::of_process)?;
    // After the open: the pid may have been reused by now, but not if the box's init still has it.
    if !entry.alive() || entry.view().incarnation.map(|init| init.pid) != Some(pid) {
        return Err(NoDial::Dead);
    }
    opened.map_err(|error| NoDial::Failed(error.into()))
}
