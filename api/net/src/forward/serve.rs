//! The proxy's connections: reads requests, connects, passes both directions on.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{Either, Empty, Full};
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::destination::{Destination, NoWay};
use super::rules::{ForwardRules, OnForwardRefusal};
use super::uplink::Uplink;
use crate::hop_by_hop::{strip_answer, strip_request};

/// Connections at once.
pub(super) const CONNECTIONS_MAX: usize = 256;
/// Time for connecting to a server.
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// Time for a request's head.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// Longest head of a message.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Bytes that are read and written at once in a tunnel.
const TUNNEL_BYTES: usize = 16 * 1024;
/// The port of `http` URIs.
const PORT_HTTP: u16 = 80;
/// The wait after a failed accept, for a resource that is short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

type Body = Either<Incoming, Either<Full<Bytes>, Empty<Bytes>>>;
type Answer = Response<Body>;

pub(super) struct Proxy {
    pub(super) rules: ForwardRules,
    pub(super) on_refusal: OnForwardRefusal,
    pub(super) uplink: Arc<dyn Uplink>,
}

/// Accepts connections until the task is cancelled; its connections end with it.
pub(super) async fn accept(listener: TcpListener, proxy: Arc<Proxy>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        // Without a free slot the kernel's queue holds the next ones.
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
        };
        match stream {
            Ok((stream, _)) => {
                let proxy = Arc::clone(&proxy);
                connections.spawn(async move {
                    let _slot = slot;
                    if let Err(error) = serve(&proxy, stream).await {
                        tracing::debug!(%error, "a connection to a box's forward proxy ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a box's forward proxy cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(proxy: &Arc<Proxy>, stream: TcpStream) -> io::Result<()> {
    // Small pieces must leave at once. It fails only if the other end has gone already.
    let _ = stream.set_nodelay(true);
    // A tunnel begins when the answer to CONNECT is written, and is a part of this connection's task.
    let (tunnel, mut opened) = tokio::sync::mpsc::channel(1);
    let service = service_fn(|request| {
        let (proxy, tunnel) = (Arc::clone(proxy), tunnel.clone());
        async move { Ok::<_, Infallible>(proxy.answer(request, tunnel).await) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD_BYTES_MAX)
        .preserve_header_case(true);
    http.serve_connection(TokioIo::new(stream), service).with_upgrades().await.map_err(io::Error::other)?;
    drop(tunnel);
    let Some((upgrade, mut server)) = opened.recv().await else { return Ok(()) };
    let upgrade: hyper::upgrade::OnUpgrade = upgrade;
    let mut client = TokioIo::new(upgrade.await.map_err(io::Error::other)?);
    tokio::io::copy_bidirectional_with_sizes(&mut client, &mut server, TUNNEL_BYTES, TUNNEL_BYTES).await.map(|_| ())
}

type Tunnel = tokio::sync::mpsc::Sender<(hyper::upgrade::OnUpgrade, TcpStream)>;

impl Proxy {
    async fn answer(&self, mut request: Request<Incoming>, tunnel: Tunnel) -> Answer {
        let is_connect = request.method() == Method::CONNECT;
        let destination = match self.destination(&request, is_connect) {
            Ok(destination) => destination,
            Err(why) => return own(StatusCode::BAD_REQUEST, why),
        };
        let server = match self.connect(&destination).await {
            Ok(server) => server,
            Err(refused) => return refused,
        };
        if is_connect {
            let upgrade = hyper::upgrade::on(&mut request);
            // There is one upgrade on a connection, so there is room for it.
            let _ = tunnel.try_send((upgrade, server));
            return Response::new(Either::Right(Either::Right(Empty::new())));
        }
        match exchange(request, server).await {
            Ok(answer) => answer.map(Either::Left),
            Err(error) => own(StatusCode::BAD_GATEWAY, &format!("{destination} gave no answer: {error}")),
        }
    }

    fn destination<B>(&self, request: &Request<B>, is_connect: bool) -> Result<Destination, &'static str> {
        let uri = request.uri();
        let authority =
            uri.authority().ok_or("this is a proxy: it wants CONNECT, or a request with an absolute URI")?;
        if authority.as_str().contains('@') {
            return Err("the URI has a user name");
        }
        if !is_connect && uri.scheme_str() != Some("http") {
            return Err("for other schemes than http it wants CONNECT");
        }
        let default_port = (!is_connect).then_some(PORT_HTTP);
        let read = Destination::read(authority.as_str(), default_port);
        read.ok_or("the destination must be a name or an IPv4 address, with a port")
    }

    /// A connection to the destination, or the answer that refuses it.
    async fn connect(&self, destination: &Destination) -> Result<TcpStream, Answer> {
        let addresses = match destination.judge(&self.rules, &*self.uplink).await {
            Ok(addresses) => addresses,
            Err(NoWay::Refused(denial)) => {
                let text = format!("the network policy refuses {denial}");
                (self.on_refusal)(denial);
                return Err(own(StatusCode::FORBIDDEN, &text));
            }
            Err(NoWay::Unresolved(why)) => {
                return Err(own(StatusCode::BAD_GATEWAY, &format!("cannot resolve {destination}: {why}")));
            }
        };
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for address in addresses {
            match timeout(CONNECT_TIME, self.uplink.connect(address)).await {
                Ok(Ok(stream)) => {
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Ok(Err(error)) => last = error,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(own(StatusCode::BAD_GATEWAY, &format!("cannot connect to {destination}: {last}")))
    }
}

/// One request to a server, on a connection of its own.
async fn exchange(mut request: Request<Incoming>, server: TcpStream) -> Result<Response<Incoming>, hyper::Error> {
    let mut http = hyper::client::conn::http1::Builder::new();
    http.preserve_header_case(true).max_buf_size(HEAD_BYTES_MAX);
    let (mut send, driver) = http.handshake(TokioIo::new(server)).await?;
    // It ends with the answer's body, or with the body's reader.
    tokio::spawn(driver);
    strip_request(request.headers_mut());
    // An origin server expects the path only, and the host that the URI names (RFC 9112, 3.2.2).
    if let Some(host) = request.uri().authority().and_then(|host| HeaderValue::from_str(host.as_str()).ok()) {
        request.headers_mut().insert(header::HOST, host);
    }
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = Uri::try_from(path).unwrap_or_default();
    *request.version_mut() = Version::HTTP_11;
    let mut answer = send.send_request(request).await?;
    strip_answer(answer.headers_mut());
    Ok(answer)
}

/// An answer of the proxy itself.
fn own(status: StatusCode, text: &str) -> Answer {
    let mut answer = Response::new(Either::Right(Either::Left(Full::from(format!("icebox: {text}\n")))));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}
