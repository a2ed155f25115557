//! Tests the proxy end to end, in one process: the box is a client with its own address on the loopback device, and the
//! test supplies the original destination instead of the firewall.

mod attach;
mod checked;
mod long;

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Mutex;

use futures::future::BoxFuture;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::address::Pair;
use crate::authority::provider;
use crate::denial::Denial;
use crate::headers::HeaderRules;
use crate::policy::DomainPattern;
use crate::secret::SealingKey;
use crate::table::BoxNet;

/// Not reached in a passing test.
pub(super) const DEADLINE: Duration = Duration::from_secs(30);
/// The box.
const GUEST: Ipv4Addr = Ipv4Addr::new(127, 9, 0, 3);
/// The address of the tests' names, and an address without a name.
pub(super) const SITE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub(super) const OTHER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);

#[derive(Default)]
struct Roads {
    /// The original destination, by the box's source port.
    wanted: HashMap<u16, SocketAddrV4>,
    /// The test server that stands in for an address.
    servers: HashMap<SocketAddrV4, SocketAddr>,
    /// The addresses that the proxy connected to.
    connected: Vec<SocketAddrV4>,
}

#[derive(Clone, Default)]
struct FakeWay(Arc<Mutex<Roads>>);

impl Way for FakeWay {
    fn wanted(&self, stream: &TcpStream) -> io::Result<SocketAddrV4> {
        let port = stream.peer_addr()?.port();
        self.0.lock().unwrap().wanted.get(&port).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn is_own(&self, address: Ipv4Addr) -> bool {
        address == Ipv4Addr::new(203, 0, 113, 2)
    }

    fn connect(&self, address: SocketAddrV4) -> BoxFuture<'_, io::Result<TcpStream>> {
        Box::pin(async move {
            let server = {
                let mut roads = self.0.lock().unwrap();
                roads.connected.push(address);
                roads.servers.get(&address).copied()
            };
            TcpStream::connect(server.ok_or(io::ErrorKind::ConnectionRefused)?).await
        })
    }
}

struct FakeNames;

impl NameSource for FakeNames {
    fn addresses<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Vec<Ipv4Addr>> {
        let found = if name.ends_with(".later.example") { vec![SITE] } else { vec![] };
        Box::pin(async move { found })
    }
}

/// A certificate authority of the outside world, with its certificate.
pub(super) struct WorldAuthority {
    issuer: Issuer<'static, KeyPair>,
    pub(super) pem: String,
}

impl WorldAuthority {
    fn new() -> Self {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::new(Vec::new()).expect("params");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("certificate");
        Self { issuer: Issuer::new(params, key), pem: certificate.pem() }
    }

    pub(super) fn server(&self, name: &str) -> TlsAcceptor {
        let key = KeyPair::generate().expect("key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("params");
        let leaf = params.signed_by(&key, &self.issuer).expect("certificate");
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("key");
        let config = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let config = config.expect("versions").with_no_client_auth().with_single_cert(vec![leaf.der().clone()], key);
        TlsAcceptor::from(Arc::new(config.expect("config")))
    }
}

pub(super) fn trusting(pem: &str) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM")).expect("root");
    let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let mut config = config.expect("versions").with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    TlsConnector::from(Arc::new(config))
}

pub(super) struct World {
    pub(super) egress: Egress,
    pub(super) box_: Arc<BoxNet>,
    pub(super) denials: Arc<Mutex<Vec<Denial>>>,
    pub(super) outside: WorldAuthority,
    pub(super) authority: Arc<Authority>,
    listen: SocketAddr,
    way: FakeWay,
    _folder: tempfile::TempDir,
}

pub(super) fn custom(domains: &[&str]) -> BoxPolicy {
    let domains = domains.iter().map(|d| DomainPattern::parse(d).expect("pattern")).collect();
    BoxPolicy::Custom { domains, allowed: vec![], denied: vec![] }
}

use crate::policy::BoxPolicy;

impl World {
    pub(super) async fn new(policy: BoxPolicy, headers: Option<serde_json::Value>) -> Self {
        Self::with_config(policy, headers, |_| {}).await
    }

    pub(super) async fn with_config(
        policy: BoxPolicy,
        headers: Option<serde_json::Value>,
        choose: impl FnOnce(&mut EgressConfig),
    ) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let outside = WorldAuthority::new();
        let roots = folder.path().join("roots.pem");
        std::fs::write(&roots, &outside.pem).expect("write");
        let key = SealingKey::load_or_create(&folder.path().join("key")).expect("key");
        let authority = Arc::new(Authority::load_or_create(&folder.path().join("ca"), &key).expect("authority"));
        let rules = headers
            .map(|json| Arc::new(HeaderRules::check(&serde_json::from_value(json).expect("json")).expect("rules")));
        let box_ = Arc::new(BoxNet::new("box", "account", Pair::of(GUEST), policy, rules));
        let table = Arc::new(NetTable::default());
        table.insert(Arc::clone(&box_));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("listen");
        let listen = listener.local_addr().expect("address");
        let mut config = EgressConfig {
            listen,
            pool: "10.88.0.0/16".parse().expect("pool"),
            extra_roots: Some(roots),
            ech_allowed: false,
            slots: SlotLimits { all: 4096, per_account: 2000, per_box: 1000 },
        };
        choose(&mut config);
        let way = FakeWay::default();
        let denials = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&denials);
        let told: OnDenial = Arc::new(move |_, denial| noted.lock().unwrap().push(denial));
        let road = Box::new(way.clone());
        let egress =
            Egress::start_with(config, listener, road, table, Arc::new(FakeNames), Arc::clone(&authority), told);
        let egress = egress.expect("egress");
        Self { egress, box_, denials, outside, authority, listen, way, _folder: folder }
    }

    /// A connection of the box to `address`, as the firewall would redirect it.
    pub(super) async fn dial(&self, address: Ipv4Addr, port: u16) -> TcpStream {
        let socket = TcpSocket::new_v4().expect("socket");
        socket.bind((GUEST, 0).into()).expect("bind");
        let own = socket.local_addr().expect("address").port();
        self.way.0.lock().unwrap().wanted.insert(own, SocketAddrV4::new(address, port));
        socket.connect(self.listen).await.expect("connect")
    }

    /// The same with TLS for `name`, trusting the installation's authority.
    pub(super) async fn dial_tls(
        &self,
        port: u16,
        name: &str,
    ) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let stream = self.dial(SITE, port).await;
        let name = ServerName::try_from(name.to_owned()).expect("name");
        trusting(&self.authority.certificate_pem()).connect(name, stream).await
    }

    /// Starts a server that stands in for an address.
    pub(super) async fn serve(&self, address: Ipv4Addr, port: u16) -> TcpListener {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("listen");
        let server = listener.local_addr().expect("address");
        self.way.0.lock().unwrap().servers.insert(SocketAddrV4::new(address, port), server);
        listener
    }

    /// Echoes all bytes at an address, until the end.
    pub(super) async fn serve_echo(&self, address: Ipv4Addr, port: u16) {
        let listener = self.serve(address, port).await;
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut reader, mut writer) = stream.split();
                    let _ = tokio::io::copy(&mut reader, &mut writer).await;
                    let _ = writer.shutdown().await;
                });
            }
        });
    }

    /// Serves HTTP at an address, inside TLS if there is an acceptor.
    pub(super) async fn serve_http<F, R>(&self, port: u16, tls: Option<TlsAcceptor>, answer: F)
    where
        F: Fn(hyper::Request<hyper::body::Incoming>) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = hyper::Response<http_body_util::combinators::BoxBody<bytes::Bytes, io::Error>>>
            + Send
            + 'static,
    {
        let listener = self.serve(SITE, port).await;
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, answer) = (tls.clone(), answer.clone());
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(move |request| {
                        let answer = answer(request);
                        async move { Ok::<_, std::convert::Infallible>(answer.await) }
                    });
                    let http = http1::Builder::new();
                    match tls {
                        None => drop(http.serve_connection(TokioIo::new(stream), service).with_upgrades().await),
                        Some(tls) => {
                            let Ok(stream) = tls.accept(stream).await else { return };
                            drop(http.serve_connection(TokioIo::new(stream), service).with_upgrades().await);
                        }
                    }
                });
            }
        });
    }

    /// The addresses that the proxy has connected to.
    pub(super) fn connected(&self) -> Vec<SocketAddrV4> {
        self.way.0.lock().unwrap().connected.clone()
    }

    /// The rules of the refusals so far.
    pub(super) fn rules(&self) -> Vec<String> {
        self.denials.lock().unwrap().iter().map(|d| d.rule.clone()).collect()
    }
}

/// Reads everything up to the end or a reset.
pub(super) async fn rest(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> (Vec<u8>, Option<io::ErrorKind>) {
    let mut all = Vec::new();
    let read = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut all)).await.expect("it does not end");
    (all, read.err().map(|e| e.kind()))
}

/// Sends a message and reads the whole answer.
pub(super) async fn ask(
    stream: &mut (impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin),
    bytes: &[u8],
) -> String {
    stream.write_all(bytes).await.expect("write");
    String::from_utf8_lossy(&rest(stream).await.0).into_owned()
}
