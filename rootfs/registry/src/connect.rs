//! Connections to registries and the places that they name.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use url::{Host, Url};

use crate::error::{Cause, refuse};
use crate::proxy::{Proxies, Proxy};
use crate::reach::{self, Reach};
use crate::timing::Timing;

/// Most bytes of an answer that are kept in memory.
const BUFFER_BYTES_MAX: usize = 256 * 1024;
/// Most headers of an answer.
const HEADERS_MAX: usize = 128;
/// Longest answer of a proxy to CONNECT.
const PROXY_HEAD_BYTES_MAX: usize = 16 * 1024;
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 4;

/// The body of a request.
pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Makes connections.
#[derive(Debug)]
pub(crate) struct Dialer {
    pub(crate) tls: Arc<ClientConfig>,
    pub(crate) proxies: Proxies,
    pub(crate) insecure: BTreeSet<String>,
    pub(crate) timing: Timing,
}

/// Where a connection may lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leash {
    /// Anywhere: the operator has named the place.
    Free,
    /// To addresses that are at least as public as this: a registry has named the place.
    Within(Reach),
}

/// A connection for one request.
pub(crate) struct Link {
    pub(crate) sender: SendRequest<Body>,
    /// How public the server is; `None` through a proxy, which resolves the name itself.
    pub(crate) reach: Option<Reach>,
    /// The request line has the whole URL, for a proxy.
    pub(crate) absolute: bool,
    pub(crate) driver: Driver,
}

/// The task that moves the bytes of a connection; it ends with this.
pub(crate) struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Dialer {
    /// Whether the operator allows to speak to this host without TLS.
    pub(crate) fn may_be_plain(&self, url: &Url) -> bool {
        let local = match url.host() {
            Some(Host::Domain(name)) => name == "localhost",
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        };
        let host = url.host_str().unwrap_or_default();
        local
            || match url.port() {
                Some(port) => self.insecure.contains(&format!("{host}:{port}")),
                None => self.insecure.contains(host),
            }
    }

    /// Whether a server answers in TLS. One whose certificate is not trusted does.
    pub(crate) async fn speaks_tls(&self, url: &Url) -> Result<bool, Cause> {
        let (stream, _) = self.stream(url, Leash::Free).await?;
        match self.handshake(url, stream).await {
            Ok(_) | Err(Cause::Refused(_)) => Ok(true),
            Err(_) => Ok(false),
        }
    }

    /// Connects to the server of a URL.
    pub(crate) async fn open(&self, url: &Url, leash: Leash) -> Result<Link, Cause> {
        let tls = match url.scheme() {
            "https" => true,
            "http" if self.may_be_plain(url) => false,
            "http" => {
                refuse!("{} would be asked without TLS; list it in `insecure` of [registry] if it may be", place(url))
            }
            other => refuse!("{other}: is no scheme of a registry; there are https and http"),
        };
        let (stream, reach) = self.stream(url, leash).await?;
        let absolute = !tls && self.proxies.for_url(url).is_some();
        let (sender, driver) =
            if tls { drive(self.handshake(url, stream).await?).await? } else { drive(stream).await? };
        Ok(Link { sender, reach, absolute, driver })
    }

    async fn stream(&self, url: &Url, leash: Leash) -> Result<(TcpStream, Option<Reach>), Cause> {
        let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let port = url.port_or_known_default().unwrap_or(443);
        let Some(proxy) = self.proxies.for_url(url) else {
            let (stream, address) = self.tcp(host, port, leash).await?;
            return Ok((stream, Some(reach::of(address.ip()))));
        };
        // The proxy resolves names. What is an address can be judged here.
        if let Ok(address) = host.parse() {
            permit(host, reach::of(address), leash)?;
        }
        let (mut stream, _) = self.tcp(&proxy.host, proxy.port, Leash::Free).await?;
        if url.scheme() == "https" {
            let asked = timeout(self.timing.answer, tunnel(&mut stream, host, port, proxy)).await;
            asked.map_err(|_| unavailable(url, "the proxy does not answer"))??;
        }
        Ok((stream, None))
    }

    async fn tcp(&self, host: &str, port: u16, leash: Leash) -> Result<(TcpStream, SocketAddr), Cause> {
        let failed =
            |why: &dyn std::fmt::Display| Cause::Unavailable(format!("{host}:{port} cannot be reached: {why}"));
        let found = timeout(self.timing.connect, lookup_host((host, port))).await;
        let found = found.map_err(|_| failed(&"its name is not resolved in time"))?.map_err(|cause| failed(&cause))?;
        let mut last = failed(&"its name has no address");
        for address in found.take(ADDRESSES_MAX) {
            if let Err(refused) = permit(host, reach::of(address.ip()), leash) {
                last = refused;
                continue;
            }
            match timeout(self.timing.connect, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    // Requests are small: waiting for more would only delay them.
                    let _ = stream.set_nodelay(true);
                    return Ok((stream, address));
                }
                Ok(Err(cause)) => last = failed(&cause),
                Err(_) => last = failed(&"it does not answer in time"),
            }
        }
        Err(last)
    }

    async fn handshake(&self, url: &Url, stream: TcpStream) -> Result<TlsStream<TcpStream>, Cause> {
        let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| Cause::Refused(format!("'{host}' is no name that a certificate can have")))?;
        let connector = TlsConnector::from(Arc::clone(&self.tls));
        match timeout(self.timing.connect, connector.connect(name, stream)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(cause)) => {
                let of_tls = cause.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
                if matches!(of_tls, Some(rustls::Error::InvalidCertificate(_))) {
                    refuse!(
                        "the certificate of {} is not trusted ({cause}); if its authority is to be trusted, name it in \
                         `ca_file` of [registry]",
                        place(url)
                    );
                }
                Err(unavailable(url, &format!("TLS fails: {cause}")))
            }
            Err(_) => Err(unavailable(url, "it does not answer in TLS in time")),
        }
    }
}

/// Host and port of a URL.
pub(crate) fn place(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

pub(crate) fn unavailable(url: &Url, why: &str) -> Cause {
    Cause::Unavailable(format!("{}: {why}", place(url)))
}

fn permit(host: &str, found: Reach, leash: Leash) -> Result<(), Cause> {
    match leash {
        Leash::Within(most) if found > most => refuse!(
            "the registry, whose address is {most}, leads to {host}, whose address is {found}; such a place is not asked"
        ),
        _ => Ok(()),
    }
}

async fn drive<S>(stream: S) -> Result<(SendRequest<Body>, Driver), Cause>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http1::Builder::new();
    builder.max_buf_size(BUFFER_BYTES_MAX).max_headers(HEADERS_MAX);
    let (sender, connection) =
        builder.handshake(TokioIo::new(stream)).await.map_err(|cause| Cause::Unavailable(cause.to_string()))?;
    // Its failure is that of the request on it.
    let driver = tokio::spawn(async move { drop(connection.await) });
    Ok((sender, Driver(driver)))
}

/// Asks an HTTP proxy for a connection.
async fn tunnel(stream: &mut TcpStream, host: &str, port: u16, proxy: &Proxy) -> Result<(), Cause> {
    let broken = |cause: io::Error| Cause::Unavailable(format!("the proxy {}: {cause}", proxy.host));
    let target = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
    if let Some(authorization) = &proxy.authorization {
        request.push_str(&format!("Proxy-Authorization: {authorization}\r\n"));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await.map_err(broken)?;
    let mut head = Vec::new();
    // One byte after the other: what follows the head belongs to the server.
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == PROXY_HEAD_BYTES_MAX {
            refuse!("the proxy {} answers with more than {PROXY_HEAD_BYTES_MAX} bytes of headers", proxy.host);
        }
        head.push(stream.read_u8().await.map_err(broken)?);
    }
    let status = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let status = String::from_utf8_lossy(status);
    match status.split(' ').nth(1) {
        Some("200") => Ok(()),
        Some("407") => Err(Cause::Denied(format!("the proxy {} asks for other credentials", proxy.host))),
        _ => Err(Cause::Unavailable(format!("the proxy {} answers '{}'", proxy.host, crate::error::shown(&status)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A proxy that answers CONNECT so; the result is what it was asked, and the first byte that came after it.
    async fn asked(answer: &'static str) -> (Cause, String, Option<u8>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a socket");
        let address = listener.local_addr().expect("an address");
        let proxies = Proxies::from_env(|name| (name == "https_proxy").then(|| format!("http://me:secret@{address}")));
        let dialer = Dialer {
            tls: icebox_tls::client(None).expect("a configuration"),
            proxies: proxies.expect("a proxy"),
            insecure: BTreeSet::new(),
            timing: Timing::default(),
        };
        let proxy = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.expect("a byte"));
            }
            stream.write_all(answer.as_bytes()).await.expect("written");
            (String::from_utf8(head).expect("text"), stream.read_u8().await.ok())
        });
        let url = "https://registry.example.invalid:5000/v2/".parse().expect("a URL");
        let Err(cause) = dialer.open(&url, Leash::Free).await else { panic!("it is connected") };
        let (head, first) = proxy.await.expect("the proxy");
        (cause, head, first)
    }

    #[tokio::test]
    async fn a_proxy_makes_the_connection_and_tls_goes_through_it() {
        let (cause, head, first) = asked("HTTP/1.1 200 Connected\r\nX: y\r\n\r\n").await;
        assert!(head.starts_with("CONNECT registry.example.invalid:5000 HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("\r\nProxy-Authorization: Basic bWU6c2VjcmV0\r\n"), "{head}");
        assert_eq!(first, Some(0x16), "no TLS came: {cause}");
        let (cause, _, first) = asked("HTTP/1.1 407 No\r\n\r\n").await;
        assert!(matches!(cause, Cause::Denied(_)) && first.is_none(), "{cause}");
        let (cause, ..) = asked("HTTP/1.1 502 Bad\r\n\r\n").await;
        assert!(matches!(&cause, Cause::Unavailable(text) if text.contains("502")), "{cause}");
    }

    #[test]
    fn places_are_no_less_public_than_the_registry() {
        assert!(permit("x", Reach::Private, Leash::Within(Reach::Public)).is_err());
        assert!(permit("x", Reach::Loopback, Leash::Within(Reach::Private)).is_err());
        assert!(permit("x", Reach::Public, Leash::Within(Reach::Private)).is_ok());
        assert!(permit("x", Reach::Special, Leash::Within(Reach::Loopback)).is_err());
        assert!(permit("x", Reach::Loopback, Leash::Free).is_ok());
    }
}
