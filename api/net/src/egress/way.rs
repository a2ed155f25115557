//! The proxy's use of the kernel and of TLS roots: a connection's original destination, the host's own addresses,
//! connections to servers, and the trust in servers.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::sync::Arc;

use futures::future::BoxFuture;
use rustls::ClientConfig;
use tokio::net::TcpStream;

use crate::error::{Cause, Error};
use crate::namespace::Namespace;
use crate::own_address::OwnAddress;
use crate::sockets::Sockets;

/// The kernel, or its stand-in in tests.
pub(super) trait Way: Send + Sync {
    /// The destination that the box wanted.
    fn wanted(&self, stream: &TcpStream) -> io::Result<SocketAddrV4>;
    /// True for an address of the host's side.
    fn is_own(&self, address: Ipv4Addr) -> bool;
    /// Connects to a server.
    fn connect(&self, address: SocketAddrV4) -> BoxFuture<'_, io::Result<TcpStream>>;
}

/// The namespace of the host's side.
pub(super) struct HostWay {
    namespace: Namespace,
    sockets: Arc<Sockets>,
    own: OwnAddress,
}

impl HostWay {
    pub(super) async fn new(namespace: Namespace, sockets: Arc<Sockets>) -> Result<Self, Error> {
        let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
        let probe = sockets.udp(&namespace, any.into()).await?.into_std();
        let probe = probe.map_err(|e| Error::new("make a socket for", "own addresses", e))?;
        Ok(Self { namespace, sockets, own: OwnAddress::new(probe) })
    }
}

impl Way for HostWay {
    fn wanted(&self, stream: &TcpStream) -> io::Result<SocketAddrV4> {
        Ok(rustix::net::sockopt::ip_original_dst(stream)?)
    }

    fn is_own(&self, address: Ipv4Addr) -> bool {
        self.own.is(address)
    }

    fn connect(&self, address: SocketAddrV4) -> BoxFuture<'_, io::Result<TcpStream>> {
        Box::pin(async move {
            let socket = self.sockets.tcp(&self.namespace, address.into()).await;
            let socket = socket.map_err(|e| io::Error::other(e.chain()))?;
            socket.connect(address.into()).await
        })
    }
}

/// The TLS client configuration: it trusts the host's roots and those in a file.
pub(crate) fn client(extra: Option<&Path>) -> Result<Arc<ClientConfig>, Error> {
    icebox_tls::client(extra).map_err(|fault| {
        let subject = extra.map(|path| path.display().to_string()).unwrap_or_default();
        Error::new("read certificates", subject, Cause::Invalid(fault.text()))
    })
}
