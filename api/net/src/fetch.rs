//! Fetches a file over HTTP as a program in a box would.
//!
//! The sockets are made in the box's network namespace, so its firewall, its DNS proxy and its policy decide as they do for
//! any program there; or the requests go through the [forward proxy](crate::forward) of the box, which judges by the same
//! policy. Nothing is connected from the daemon's own network.
//!
//! Owns: the URL, redirects, TLS (with the host's roots), and the bounds of time. Leaves out: where the bytes go, and
//! how many there may be.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hickory_proto::rr::{Name, RData, RecordType};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header;
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use crate::dns::upstream::{Place, exchange};
use crate::egress::client;
use crate::error::Error;
use crate::namespace::Namespace;
use crate::sockets::Sockets;

/// Longest wait for the server: for a connection, an answer, or a piece of it.
const WAIT: Duration = Duration::from_secs(60);
/// Most redirects.
const REDIRECTS_MAX: usize = 10;
/// Bytes of a proxy's refusal that are repeated.
const REFUSAL_BYTES_MAX: usize = 500;
const PORT_DNS: u16 = 53;
const AGENT: &str = concat!("icebox/", env!("CARGO_PKG_VERSION"));

/// How connections leave the box.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Through the box's network; names are asked of its DNS proxy at this address.
    Network(Ipv4Addr),
    /// Through the forward proxy at this port of the box's loopback.
    Proxy(u16),
}

/// Fetches files for a box.
#[derive(Debug)]
pub struct Fetcher {
    place: Place,
    way: Way,
    tls: Arc<ClientConfig>,
}

/// What the server says about a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// `Last-Modified`, as it came.
    pub modified: Option<String>,
}

/// A connection, with or without TLS.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Fetcher {
    /// Fetches for the box with this namespace. `extra_roots` are trusted beside the host's roots.
    ///
    /// # Errors
    /// The roots cannot be read.
    pub fn new(
        sockets: Arc<Sockets>,
        namespace: Namespace,
        way: Way,
        extra_roots: Option<&Path>,
    ) -> Result<Self, Error> {
        Ok(Self { place: Place::In(sockets, namespace), way, tls: client(extra_roots)? })
    }

    /// Fetches `url` and hands its bytes to `piece`. The error is for people.
    ///
    /// # Errors
    /// The URL is not one, the policy refuses the connection, the server gives no file, or `piece` fails.
    pub async fn get(
        &self,
        url: &str,
        piece: &mut (dyn FnMut(&[u8]) -> io::Result<()> + Send),
    ) -> Result<Facts, String> {
        let mut target = Target::read(url)?;
        for _ in 0..=REDIRECTS_MAX {
            let (mut answer, _connection) = within(&target, self.ask(&target)).await?;
            if answer.status().is_redirection()
                && let Some(to) = answer.headers().get(header::LOCATION)
            {
                let to = to.to_str().map_err(|_| format!("{target} redirects to a place that is no URL"))?;
                target = target.follow(to)?;
                continue;
            }
            if answer.status() != StatusCode::OK {
                return Err(format!("{target} answers {}", answer.status()));
            }
            while let Some(frame) = within(&target, async { Ok(answer.frame().await) }).await? {
                let frame = frame.map_err(|error| format!("{target} breaks off: {error}"))?;
                if let Some(bytes) = frame.data_ref() {
                    piece(bytes).map_err(|error| error.to_string())?;
                }
            }
            let modified = answer.headers().get(header::LAST_MODIFIED);
            let modified = modified.and_then(|value| value.to_str().ok()).map(str::to_owned);
            return Ok(Facts { modified });
        }
        Err(format!("{url} redirects more than {REDIRECTS_MAX} times"))
    }

    /// Sends the request. The connection ends with what is returned beside the answer.
    async fn ask(&self, target: &Target) -> Result<(Response<Incoming>, AbortOnDropHandle<()>), String> {
        let failed = |error: &dyn std::fmt::Display| format!("{target}: {error}");
        let mut stream: Box<dyn Stream> = match self.way {
            Way::Network(resolver) => Box::new(self.connect(target, resolver).await?),
            Way::Proxy(port) => self.tunnel(target, port).await?,
        };
        if target.tls {
            let name = ServerName::try_from(target.host.clone()).map_err(|error| failed(&error))?;
            let connector = TlsConnector::from(Arc::clone(&self.tls));
            stream = Box::new(connector.connect(name, stream).await.map_err(|error| failed(&error))?);
        }
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
        // Its errors are those of the request.
        let connection = AbortOnDropHandle::new(tokio::spawn(async { drop(connection.await) }));
        let request = Request::get(&target.path).header(header::HOST, target.authority());
        let request = request.header(header::USER_AGENT, AGENT).header(header::ACCEPT, "*/*");
        let request = request.body(Empty::<Bytes>::new()).map_err(|error| failed(&error))?;
        let answer = sender.send_request(request).await.map_err(|error| failed(&error))?;
        Ok((answer, connection))
    }

    async fn connect(&self, target: &Target, resolver: Ipv4Addr) -> Result<TcpStream, String> {
        let mut last = format!("{target}: the name has no IPv4 address");
        for address in self.resolve(target, resolver).await? {
            let to = SocketAddr::from((address, target.port));
            let socket = self.place.tcp(to).await.map_err(|error| error.chain())?;
            match socket.connect(to).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = format!("cannot connect to {target} at {to} from the network of the box: {error}"),
            }
        }
        Err(last)
    }

    async fn resolve(&self, target: &Target, resolver: Ipv4Addr) -> Result<Vec<Ipv4Addr>, String> {
        if let Ok(address) = target.host.parse() {
            return Ok(vec![address]);
        }
        let name = Name::from_ascii(format!("{}.", target.host)).map_err(|error| format!("{target}: {error}"))?;
        let answer = exchange(&self.place, SocketAddr::from((resolver, PORT_DNS)), &name, RecordType::A).await;
        let answer = answer.map_err(|error| format!("{target}: {}", error.chain()))?;
        let found: Vec<Ipv4Addr> = answer
            .answers
            .iter()
            .filter_map(|record| match &record.data {
                RData::A(address) => Some(address.0),
                _ => None,
            })
            .collect();
        if found.is_empty() {
            let why = "the network of the box has no address for it; its network policy may not allow the name";
            return Err(format!("{target}: {why} ({})", answer.response_code));
        }
        Ok(found)
    }

    /// A tunnel through the forward proxy.
    async fn tunnel(&self, target: &Target, port: u16) -> Result<Box<dyn Stream>, String> {
        let failed = |error: &dyn std::fmt::Display| format!("the proxy of the box: {error}");
        let proxy = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let socket = self.place.tcp(proxy).await.map_err(|error| error.chain())?;
        let stream = socket.connect(proxy).await.map_err(|error| failed(&error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
        // It ends with the tunnel.
        tokio::spawn(connection.with_upgrades());
        let to = format!("{}:{}", target.host, target.port);
        let request = Request::connect(&to).header(header::HOST, &to).body(Empty::<Bytes>::new());
        let request = request.map_err(|error| failed(&error))?;
        let answer = sender.send_request(request).await.map_err(|error| failed(&error))?;
        if answer.status() == StatusCode::OK {
            let upgraded = hyper::upgrade::on(answer).await.map_err(|error| failed(&error))?;
            return Ok(Box::new(TokioIo::new(upgraded)));
        }
        let body = answer.into_body().collect().await.map_err(|error| failed(&error))?.to_bytes();
        let text = String::from_utf8_lossy(&body[..body.len().min(REFUSAL_BYTES_MAX)]).into_owned();
        Err(text.trim().to_owned())
    }
}

async fn within<T>(target: &Target, work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    timeout(WAIT, work).await.unwrap_or_else(|_| Err(format!("{target} says nothing for {} s", WAIT.as_secs())))
}

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    tls: bool,
    host: String,
    port: u16,
    /// With the query.
    path: String,
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.authority())
    }
}

impl Target {
    fn read(url: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("the URL {why}");
        let url = url.split('#').next().unwrap_or_default();
        let uri: Uri = url.parse().map_err(|error| wrong(&format!("cannot be read: {error}")))?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(wrong("does not begin with http:// or https://")),
        };
        let authority = uri.authority().ok_or_else(|| wrong("has no host"))?;
        if authority.as_str().contains('@') {
            return Err(wrong(
                "has a user name or a password: fetch it in a RUN, with a credential from attach_headers",
            ));
        }
        let host = authority.host().to_ascii_lowercase();
        if host.is_empty() || host.starts_with('[') {
            return Err(wrong("has no host that is a name or an IPv4 address"));
        }
        let port = match authority.as_str().split_once(':') {
            Some((_, port)) => {
                port.parse().ok().filter(|port| *port != 0).ok_or_else(|| wrong("has a port that is none"))?
            }
            None => Self::default_port(tls),
        };
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Ok(Self { tls, host, port, path })
    }

    fn default_port(tls: bool) -> u16 {
        if tls { 443 } else { 80 }
    }

    fn authority(&self) -> String {
        match self.port == Self::default_port(self.tls) {
            true => self.host.clone(),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    /// The place that a redirect names.
    fn follow(&self, to: &str) -> Result<Self, String> {
        if to.contains("://") {
            return Self::read(to);
        }
        if let Some(rest) = to.strip_prefix("//") {
            return Self::read(&format!("{}://{rest}", if self.tls { "https" } else { "http" }));
        }
        let plain = self.path.split('?').next().unwrap_or_default();
        let dir = plain.rsplit_once('/').map_or("", |(dir, _)| dir);
        let path = if to.starts_with('/') { to.to_owned() } else { format!("{dir}/{to}") };
        Self::read(&format!("{self}{path}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_and_redirects_are_read() {
        let read = |url: &str| Target::read(url).map(|target| format!("{target} {} {}", target.port, target.path));
        assert_eq!(read("http://A.test").as_deref(), Ok("http://a.test 80 /"));
        assert_eq!(read("https://a.test:8443/x/y?z=1#part").as_deref(), Ok("https://a.test:8443 8443 /x/y?z=1"));
        for (bad, word) in [
            ("ftp://a.test/", "http://"),
            ("/x", "http://"),
            ("http://user:word@a.test/", "password"),
            ("http://[::1]/", "IPv4"),
            ("http://a.test:99999/", "port"),
            ("http://a.test:0/", "port"),
            ("http:// /", ""),
        ] {
            assert!(Target::read(bad).is_err_and(|why| why.contains(word)), "{bad}");
        }
        let from = Target::read("https://a.test/x/y?z").expect("a URL");
        for (to, wanted) in [
            ("http://b.test/q", "http://b.test 80 /q"),
            ("//b.test/q", "https://b.test 443 /q"),
            ("/q", "https://a.test 443 /q"),
            ("q?r", "https://a.test 443 /x/q?r"),
        ] {
            let found = from.follow(to).map(|target| format!("{target} {} {}", target.port, target.path));
            assert_eq!(found.as_deref(), Ok(wanted), "{to}");
        }
        assert!(from.follow("file:///etc/passwd").is_err());
    }
}
