//! The proxy's use of the daemon's own network: names, own addresses, connections.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};

use futures::future::BoxFuture;
use tokio::net::TcpStream;

use crate::error::Error;
use crate::own_address::OwnAddress;

/// The daemon's network, or its stand-in in tests.
pub(super) trait Uplink: Send + Sync {
    /// The IPv4 addresses of a name.
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<Ipv4Addr>>>;
    /// True for an address of this machine.
    fn is_own(&self, address: Ipv4Addr) -> bool;
    /// Connects to a server.
    fn connect(&self, to: SocketAddrV4) -> BoxFuture<'_, io::Result<TcpStream>>;
}

/// The namespace of this process.
pub(super) struct HostUplink(OwnAddress);

impl HostUplink {
    pub(super) fn new() -> Result<Self, Error> {
        let probe = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0));
        let probe = probe.map_err(|cause| Error::new("make a socket for", "own addresses", cause))?;
        Ok(Self(OwnAddress::new(probe)))
    }
}

impl Uplink for HostUplink {
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<Ipv4Addr>>> {
        Box::pin(async move {
            // Boxes have no IPv6, and their policies speak of IPv4 networks.
            let found = tokio::net::lookup_host((name, 0)).await?;
            Ok(found
                .filter_map(|address| match address {
                    SocketAddr::V4(address) => Some(*address.ip()),
                    SocketAddr::V6(_) => None,
                })
                .collect())
        })
    }

    fn is_own(&self, address: Ipv4Addr) -> bool {
        self.0.is(address)
    }

    fn connect(&self, to: SocketAddrV4) -> BoxFuture<'_, io::Result<TcpStream>> {
        Box::pin(TcpStream::connect(to))
    }
}
