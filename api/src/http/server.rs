//! The server: accepting connections, with limits, and shutting down.
//!
//! An accept loop of its own over hyper, whose defaults are not enough: the time limit for request heads works only
//! with a timer, and there is no limit on connections at all. Beside the address there is a socket in the run directory
//! for the operator, with room of its own that clients cannot use up.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Frame, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::again::Again;
use super::flush::{FlushWatch, Watched};
use super::host_router::Answers;
use super::seats::{Busy, Cut, Seat, SeatLimits, Seats};
use super::system::Peer;
use super::unread;
use crate::error::Error;
use crate::metrics::Metrics;
use crate::public_urls::Certificate;

/// Time limit for the head of a request, and for an idle connection before one.
const HEAD_DEADLINE: Duration = Duration::from_secs(30);
/// Longest head of a request.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Most headers of one request.
const HEADERS_MAX: usize = 100;
/// Time limit for requests in progress when the daemon stops.
const DRAIN_DEADLINE: Duration = Duration::from_secs(2);
/// Most connections to the operator's socket.
const OPERATOR_CONNECTIONS_MAX: usize = 64;
/// Delay after a failed accept: most likely out of descriptors, until a connection ends.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A bound address.
#[derive(Debug)]
pub struct Listening {
    listener: TcpListener,
    /// The address, with the port that was chosen.
    pub address: SocketAddr,
}

impl Listening {
    /// Binds an address.
    pub async fn bind(address: SocketAddr) -> Result<Self, Error> {
        let failed = |cause| Error::new("listen on", address.to_string(), cause);
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address })
    }
}

/// A listener and its handler.
#[derive(Debug)]
pub struct Door<A> {
    /// The bound address.
    pub listening: Listening,
    /// Configuration of TLS.
    pub certificate: Option<Arc<Certificate>>,
    /// The handler.
    pub answers: A,
    /// Limits of open connections.
    pub limits: SeatLimits,
    /// Gauge of open connections.
    pub metrics: Option<Arc<Metrics>>,
}

/// Serves until `stop` is called; then lets requests in progress finish for a short while.
pub async fn serve<A: Answers>(door: Door<A>, stop: CancellationToken) {
    let Door { listening, certificate, answers, limits, metrics } = door;
    let seats = Seats::new(limits);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = listening.listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(cause) => {
                tracing::warn!(%cause, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Without room the connection is closed at once: the client learns of it, and others are served.
        let Some(seat) = seats.take(peer.ip()) else { continue };
        let accepted = accept(stream, peer, certificate.clone(), answers.clone(), seat, stop.clone());
        connections.spawn(Again::new(accepted));
        if let Some(metrics) = &metrics {
            metrics.set_connections(i64::try_from(seats.count()).unwrap_or(i64::MAX));
        }
    }
    drop(listening);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN_DEADLINE, drained).await.is_err() {
        tracing::info!("requests in progress are cut; what they started in boxes goes on");
    }
}

async fn accept<A: Answers>(
    stream: TcpStream,
    peer: SocketAddr,
    certificate: Option<Arc<Certificate>>,
    answers: A,
    seat: Seat,
    stop: CancellationToken,
) {
    // Small pieces must leave at once: trailers, frames, single lines. Keepalive detects a client that has vanished
    // without a FIN, however long its connection may be silent.
    let prepared =
        stream.set_nodelay(true).and_then(|()| Ok(rustix::net::sockopt::set_socket_keepalive(&stream, true)?));
    if let Err(cause) = prepared {
        tracing::debug!(%cause, "a connection has gone already");
        return;
    }
    let Some(certificate) = certificate else {
        let peer = Peer { address: peer, secure: false, operator: false };
        return connection(stream, peer, answers, Some(seat), stop).await;
    };
    let agreed = tokio::select! {
        agreed = certificate.accept(stream) => agreed,
        () = seat.ended().cancelled() => return,
    };
    match agreed {
        Ok(stream) => {
            let peer = Peer { address: peer, secure: true, operator: false };
            connection(stream, peer, answers, Some(seat), stop).await;
        }
        Err(cause) => tracing::debug!(%peer, %cause, "no agreement on keys"),
    }
}

async fn connection<A, T>(stream: T, peer: Peer, answers: A, seat: Option<Seat>, stop: CancellationToken)
where
    A: Answers,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let flushes = FlushWatch::default();
    let io = TokioIo::new(Watched::new(stream, flushes.clone()));
    // Cancelled to make room for another connection, or by a handler.
    let ended = seat.as_ref().map_or_else(CancellationToken::new, |seat| seat.ended().clone());
    let cut = Cut(ended.clone());
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let (answers, flushes, seat, cut) = (answers.clone(), flushes.clone(), seat.clone(), cut.clone());
        // From the head of the request to the end of the answer.
        let busy = seat.as_ref().map(Seat::busy);
        async move {
            let (mut request, rest) = unread::share(request);
            request.extensions_mut().insert(flushes.clone());
            request.extensions_mut().insert(peer);
            request.extensions_mut().insert(cut);
            if let Some(seat) = seat {
                request.extensions_mut().insert(seat);
            }
            let response = rest.dropped(answers.answer(request).await, &flushes).await;
            Ok::<_, Infallible>(response.map(|body| Held { body, _busy: busy }))
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(io, service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        () = ended.cancelled() => return,
    };
    if let Err(cause) = served {
        tracing::debug!(peer = %peer.address, %cause, "a connection ended early");
    }
}

/// The body of an answer. Its connection counts as busy until it is dropped.
struct Held {
    body: axum::body::Body,
    _busy: Option<Busy>,
}

impl hyper::body::Body for Held {
    type Data = axum::body::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The operator's socket.
#[derive(Debug)]
pub struct OperatorSocket(UnixListener);

impl OperatorSocket {
    /// Binds a socket at this path. Only root can open it.
    pub fn bind(path: &Path) -> Result<Self, Error> {
        let failed = |cause: std::io::Error| Error::new("listen on", path.display().to_string(), cause);
        match std::fs::remove_file(path) {
            Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => return Err(failed(cause)),
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(Self(listener))
    }

    /// Serves until `stop` is called.
    pub async fn serve<A: Answers>(self, answers: A, stop: CancellationToken) {
        let room = Arc::new(Semaphore::new(OPERATOR_CONNECTIONS_MAX));
        let peer = Peer { address: SocketAddr::from(([127, 0, 0, 1], 0)), secure: false, operator: true };
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = self.0.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(cause) => {
                    tracing::warn!(%cause, "cannot accept a connection of the operator");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&room).try_acquire_owned() else { continue };
            let (answers, stop) = (answers.clone(), stop.clone());
            tokio::spawn(Again::new(async move {
                connection(stream, peer, answers, None, stop).await;
                drop(permit);
            }));
        }
    }
}
