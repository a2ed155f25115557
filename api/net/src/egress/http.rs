//! Proxies a box's HTTP request by request: each request is checked and written anew.
//!
//! Owns: which requests pass, and which parts of them. Both sides are HTTP/1.1; HTTP/2 is not offered inside TLS and
//! not understood outside of it. A message is parsed and written again, so both sides agree where it ends. Bodies
//! stream, at the pace of the slower side.
//!
//! Invariants: a request goes to the server only if its host is the one of the connection's TLS, or is allowed and
//! stands for the address; each request is checked anew. Bytes pass unread only after a WebSocket upgrade.
//!
//! Leaves out: the content of answers, except hop-by-hop headers ([`hop_by_hop`](crate::hop_by_hop)).

use std::io;
use std::net::SocketAddrV4;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex as SyncMutex, PoisonError};

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::header::{self, HeaderValue};
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Mutex, Notify};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::connection::{CONNECT_TIME, Connection, SAY_TIME};
use super::wire::{Socket, Wire};
use crate::hop_by_hop::{has_token, strip_answer, strip_request, tokens, upgrade_to};
use crate::policy::normalized;

/// Longest message head.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Bytes read and written at once after an upgrade.
const UPGRADED_BYTES: usize = 16 * 1024;
const WEBSOCKET: &str = "websocket";
type Answer = Response<Either<Incoming, Full<Bytes>>>;

/// The rule by which requests pass.
pub(super) enum Gate {
    /// Requests to allowed hosts.
    Checked,
    /// Requests to this host, which get headers.
    Attached(String),
}

/// The proxy's own answer to a refused request.
struct Refused(StatusCode, String);

impl Refused {
    fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self(status, text.into())
    }

    fn answer(self) -> Answer {
        let mut answer = Response::new(Either::Right(Full::from(format!("icebox: {}\n", self.1))));
        *answer.status_mut() = self.0;
        let text = HeaderValue::from_static("text/plain; charset=utf-8");
        answer.headers_mut().insert(header::CONTENT_TYPE, text);
        // Further requests on this connection cannot be trusted, or have no server.
        answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        answer
    }
}

/// The connection to the server.
struct Server {
    send: SendRequest<Incoming>,
    _driver: AbortOnDropHandle<()>,
}

struct Exchange {
    connection: Arc<Connection>,
    gate: Gate,
    /// An already open connection.
    made: SyncMutex<Option<Arc<Socket>>>,
    server: Mutex<Option<Server>>,
    has_begun: AtomicBool,
    is_upgrading: Arc<AtomicBool>,
    upgraded: SyncMutex<Option<(OnUpgrade, OnUpgrade)>>,
    server_closed: Arc<Notify>,
}

/// Proxies HTTP until one side ends.
pub(super) async fn serve<S>(
    connection: &Arc<Connection>,
    io: S,
    gate: Gate,
    made: Option<Arc<Socket>>,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let exchange = Arc::new(Exchange {
        connection: Arc::clone(connection),
        gate,
        made: SyncMutex::new(made),
        server: Mutex::default(),
        has_begun: AtomicBool::new(false),
        is_upgrading: Arc::default(),
        upgraded: SyncMutex::default(),
        server_closed: Arc::default(),
    });
    let service = service_fn(|request| {
        let exchange = Arc::clone(&exchange);
        async move { Ok::<_, std::convert::Infallible>(exchange.answer(request).await) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    // A connection may be silent for any time; the time for the first request is limited below.
    http.preserve_header_case(true).max_buf_size(HEAD_BYTES_MAX).header_read_timeout(None);
    let mut http = std::pin::pin!(http.serve_connection(TokioIo::new(io), service).with_upgrades());
    let mut late = std::pin::pin!(sleep(SAY_TIME));
    let (mut is_late, mut is_closing) = (false, false);
    loop {
        tokio::select! {
            done = http.as_mut() => {
                done.map_err(io::Error::other)?;
                break;
            }
            () = late.as_mut(), if !is_late => {
                is_late = true;
                if !exchange.has_begun.load(Ordering::Relaxed) {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
            // The box then sees the close as it would without the proxy.
            () = exchange.server_closed.notified(), if !is_closing => {
                is_closing = true;
                http.as_mut().graceful_shutdown();
            }
        }
    }
    let upgraded = exchange.upgraded.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some((of_box, of_server)) = upgraded else {
        return Ok(());
    };
    let (of_box, of_server) = tokio::try_join!(of_box, of_server).map_err(io::Error::other)?;
    let (mut of_box, mut of_server) = (TokioIo::new(of_box), TokioIo::new(of_server));
    tokio::io::copy_bidirectional_with_sizes(&mut of_box, &mut of_server, UPGRADED_BYTES, UPGRADED_BYTES).await?;
    Ok(())
}

impl Exchange {
    async fn answer(&self, request: Request<Incoming>) -> Answer {
        self.has_begun.store(true, Ordering::Relaxed);
        match self.exchange(request).await {
            Ok(answer) => answer,
            Err(refused) => refused.answer(),
        }
    }

    async fn exchange(&self, mut request: Request<Incoming>) -> Result<Answer, Refused> {
        let host = match host(&request, self.connection.to.port()) {
            Ok(host) => host,
            Err(why) => {
                self.connection.deny("not a right HTTP request", self.protocol(), None);
                return Err(Refused::new(StatusCode::BAD_REQUEST, why));
            }
        };
        self.check(host.as_deref()).await?;
        let is_websocket = wants_websocket(&request);
        strip_request(request.headers_mut());
        if is_websocket {
            upgrade_to(request.headers_mut(), HeaderValue::from_static(WEBSOCKET));
            self.is_upgrading.store(true, Ordering::Relaxed);
        }
        to_origin_form(&mut request);
        if let (Gate::Attached(name), Some(rules)) = (&self.gate, &self.connection.box_.headers) {
            rules.attach(name, request.headers_mut());
        }
        let of_box = is_websocket.then(|| hyper::upgrade::on(&mut request));
        self.connection.shared.counts.requests.fetch_add(1, Ordering::Relaxed);
        let mut answer = self.send(request).await?;
        match (answer.status() == StatusCode::SWITCHING_PROTOCOLS, of_box) {
            (true, Some(of_box)) => {
                let pair = (of_box, hyper::upgrade::on(&mut answer));
                *self.upgraded.lock().unwrap_or_else(PoisonError::into_inner) = Some(pair);
                strip_answer(answer.headers_mut());
                upgrade_to(answer.headers_mut(), HeaderValue::from_static(WEBSOCKET));
            }
            (true, None) => return Err(Refused::new(StatusCode::BAD_GATEWAY, "the server switched protocols unasked")),
            (false, _) => {
                self.is_upgrading.store(false, Ordering::Relaxed);
                strip_answer(answer.headers_mut());
            }
        }
        Ok(answer.map(Either::Left))
    }

    fn protocol(&self) -> &'static str {
        match self.gate {
            Gate::Checked => "http",
            Gate::Attached(_) => "tls",
        }
    }

    /// Checks the host of a request. None is an address, not a name.
    async fn check(&self, host: Option<&str>) -> Result<(), Refused> {
        match (&self.gate, host) {
            (Gate::Attached(name), Some(host)) if name == host => Ok(()),
            (Gate::Attached(name), _) => {
                self.connection.deny("Host differs from the server name of TLS", "tls", host);
                let text = format!("this connection is for {name} only");
                Err(Refused::new(StatusCode::MISDIRECTED_REQUEST, text))
            }
            (Gate::Checked, host) => {
                let verdict = match host {
                    Some(host) => self.connection.vouch(host).await,
                    None => Err("not in allowed_domains"),
                };
                if let Err(rule) = verdict {
                    self.connection.deny(rule, "http", host);
                    let what = host.unwrap_or("an address without a name");
                    let text = format!("this box may not reach {what}: {rule}");
                    return Err(Refused::new(StatusCode::FORBIDDEN, text));
                }
                self.connection.allow(host, true);
                Ok(())
            }
        }
    }

    /// Sends a request. If the server has closed before receiving any of it, sends it once more on a new connection.
    async fn send(&self, request: Request<Incoming>) -> Result<Response<Incoming>, Refused> {
        let mut server = self.server.lock().await;
        let mut request = request;
        loop {
            let is_new = server.is_none();
            if is_new {
                *server = Some(self.connect().await?);
            }
            let Some(open) = server.as_mut() else { continue };
            if open.send.ready().await.is_err() && !is_new {
                *server = None;
                continue;
            }
            let mut error = match open.send.try_send_request(request).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            *server = None;
            match error.take_message() {
                Some(unsent) if !is_new => request = unsent,
                _ => {
                    let text = format!("{} has closed the connection or does not speak HTTP/1.1", self.connection.to);
                    return Err(Refused::new(StatusCode::BAD_GATEWAY, text));
                }
            }
        }
    }

    async fn connect(&self) -> Result<Server, Refused> {
        let to = self.connection.to;
        let failed = |e: &dyn std::fmt::Display| unreachable_server(to, e);
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner).take();
        let socket = match made {
            Some(socket) => socket,
            None => self.connection.connect().await.map_err(|e| failed(&e))?,
        };
        let wire = Wire::new(socket, Bytes::new());
        let Gate::Attached(name) = &self.gate else {
            return self.handshake(wire).await;
        };
        let server_name = ServerName::try_from(name.clone()).map_err(|e| failed(&e))?;
        let connector = TlsConnector::from(Arc::clone(&self.connection.shared.client));
        let tls = timeout(CONNECT_TIME, connector.connect(server_name, wire)).await;
        let tls = tls.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(|e| {
            self.connection.shared.counts.failed.fetch_add(1, Ordering::Relaxed);
            self.connection.deny("TLS of the server", "tls", Some(name));
            tracing::info!(error = %e, %to, name, "a server that headers are added for is not trusted or not reached");
            let text = format!("TLS with {name} at {to} failed, nothing was sent: {e}");
            Refused::new(StatusCode::BAD_GATEWAY, text)
        })?;
        self.handshake(tls).await
    }

    async fn handshake<S>(&self, io: S) -> Result<Server, Refused>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut http = hyper::client::conn::http1::Builder::new();
        http.preserve_header_case(true).max_buf_size(HEAD_BYTES_MAX);
        let (send, driver) = http
            .handshake::<_, Incoming>(TokioIo::new(io))
            .await
            .map_err(|e| unreachable_server(self.connection.to, &e))?;
        let (is_upgrading, closed) = (Arc::clone(&self.is_upgrading), Arc::clone(&self.server_closed));
        let driver = tokio::spawn(async move {
            if let Err(error) = driver.with_upgrades().await {
                tracing::debug!(%error, "a connection to a server ended");
            }
            if !is_upgrading.load(Ordering::Relaxed) {
                closed.notify_one();
            }
        });
        Ok(Server { send, _driver: AbortOnDropHandle::new(driver) })
    }
}

fn unreachable_server(to: SocketAddrV4, error: &dyn std::fmt::Display) -> Refused {
    Refused::new(StatusCode::BAD_GATEWAY, format!("connecting to {to} failed: {error}"))
}

/// The host of a request, in its normal form; none if it is an address.
fn host<B>(request: &Request<B>, port: u16) -> Result<Option<String>, &'static str> {
    if request.method() == Method::CONNECT {
        return Err("this is no proxy for CONNECT");
    }
    let encodings: Vec<&HeaderValue> = request.headers().get_all(header::TRANSFER_ENCODING).iter().collect();
    let is_plain = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"chunked");
    if encodings.len() > 1 || !encodings.iter().all(|value| is_plain(value)) {
        return Err("another Transfer-Encoding than chunked");
    }
    if !encodings.is_empty() && request.headers().contains_key(header::CONTENT_LENGTH) {
        return Err("both Content-Length and Transfer-Encoding");
    }
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Err("there must be exactly one Host");
    };
    let host = host.to_str().map_err(|_| "Host is not a name")?;
    if let Some(authority) = request.uri().authority()
        && !authority.as_str().eq_ignore_ascii_case(host)
    {
        return Err("Host differs from the host in the request line");
    }
    if !matches!(request.uri().scheme_str(), None | Some("http" | "https")) {
        return Err("another scheme than http");
    }
    let (name, with_port) = match host.rsplit_once(':') {
        Some((name, digits)) if !name.ends_with(':') => (name, Some(digits)),
        _ => (host, None),
    };
    // The port of the connection is the one that counts.
    if with_port.is_some_and(|digits| digits.parse() != Ok(port) && !digits.is_empty()) {
        return Err("Host has another port than the connection");
    }
    let is_address = name.starts_with('[') || name.parse::<std::net::IpAddr>().is_ok();
    match normalized(name) {
        Some(name) => Ok(Some(name)),
        None if is_address => Ok(None),
        None => Err("Host is not a name"),
    }
}

/// An origin server expects the path only.
fn to_origin_form<B>(request: &mut Request<B>) {
    *request.version_mut() = Version::HTTP_11;
    if request.uri().authority().is_some() {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        let uri = Uri::try_from(if path.is_empty() { "/" } else { path });
        *request.uri_mut() = uri.unwrap_or_default();
    }
}

/// True for a WebSocket upgrade and no other.
fn wants_websocket<B>(request: &Request<B>) -> bool {
    let headers = request.headers();
    let mut protocols = tokens(headers, &header::UPGRADE);
    request.method() == Method::GET
        && request.version() == Version::HTTP_11
        && has_token(headers, &header::CONNECTION, "upgrade")
        && protocols.next().is_some_and(|protocol| protocol.eq_ignore_ascii_case(WEBSOCKET))
        && protocols.next().is_none()
}
