//! What the proxy asks the kernel for: where a connection was going, which addresses are the host's own, and connections
//! to servers; and how it trusts servers.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::BoxFuture;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::net::TcpStream;

use crate::authority::provider;
use crate::error::{Cause, Error};
use crate::namespace::Namespace;
use crate::sockets::Sockets;

/// Any port: nothing is sent there.
const PORT_DISCARD: u16 = 9;

/// The kernel, or in tests somebody else.
pub(super) trait Way: Send + Sync {
    /// Where the box wanted to connect to.
    fn wanted(&self, stream: &TcpStream) -> io::Result<SocketAddrV4>;
    /// Whether an address is one of the host's side.
    fn is_own(&self, address: Ipv4Addr) -> bool;
    /// A connection to a server.
    fn connect(&self, address: SocketAddrV4) -> BoxFuture<'_, io::Result<TcpStream>>;
}

/// The host's side.
pub(super) struct HostWay {
    namespace: Namespace,
    sockets: Arc<Sockets>,
    /// It is connected to addresses, without sending anything, to learn which of ours would be used.
    probe: Mutex<UdpSocket>,
}

impl HostWay {
    pub(super) async fn new(namespace: Namespace, sockets: Arc<Sockets>) -> Result<Self, Error> {
        let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
        let probe = sockets.udp(&namespace, any.into()).await?.into_std();
        let probe = probe.map_err(|e| Error::new("make a socket for", "own addresses", e))?;
        Ok(Self { namespace, sockets, probe: Mutex::new(probe) })
    }
}

impl Way for HostWay {
    fn wanted(&self, stream: &TcpStream) -> io::Result<SocketAddrV4> {
        Ok(rustix::net::sockopt::ip_original_dst(stream)?)
    }

    /// The kernel reaches an address of its own from that very address. What cannot be reached at all is not own.
    fn is_own(&self, address: Ipv4Addr) -> bool {
        let probe = self.probe.lock().unwrap_or_else(PoisonError::into_inner);
        // Without this it would keep the address that was chosen for the last one.
        if rustix::net::connect_unspec(&*probe).is_err() {
            return true;
        }
        match probe.connect((address, PORT_DISCARD)) {
            Ok(()) => probe.local_addr().map_or(true, |from| from.ip() == address),
            Err(_) => false,
        }
    }

    fn connect(&self, address: SocketAddrV4) -> BoxFuture<'_, io::Result<TcpStream>> {
        Box::pin(async move {
            let socket = self.sockets.tcp(&self.namespace, address.into()).await;
            let socket = socket.map_err(|e| io::Error::other(e.chain()))?;
            socket.connect(address.into()).await
        })
    }
}

/// How servers are trusted: as the host trusts them, and by the authorities in a file.
pub(super) fn client(extra: Option<&Path>) -> Result<Arc<ClientConfig>, Error> {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        tracing::warn!(%error, "a certificate of the host cannot be read");
    }
    roots.add_parsable_certificates(native.certs);
    if let Some(path) = extra {
        let subject = || path.display().to_string();
        let invalid = |_| Error::new("read certificates", subject(), Cause::Invalid("expected certificates in PEM"));
        let list = CertificateDer::pem_file_iter(path).map_err(invalid)?;
        let list = list.collect::<Result<Vec<_>, _>>().map_err(invalid)?;
        if list.is_empty() {
            return Err(Error::new("read certificates", subject(), Cause::Invalid("there is none in the file")));
        }
        for certificate in list {
            let unfit = |_| Error::new("read certificates", subject(), Cause::Invalid("one is not of an authority"));
            roots.add(certificate).map_err(unfit)?;
        }
    }
    if roots.is_empty() {
        tracing::warn!("the host trusts no authority: nothing that headers are added for can be reached");
    }
    let mut client = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::new("choose versions of TLS", "", io::Error::other(e)))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(client))
}
