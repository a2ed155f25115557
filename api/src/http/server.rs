//! The server: accepting connections, with limits, and closing down.
//!
//! Our own loop over hyper, because its defaults are not enough: the time limit for request heads works only with a
//! timer, and there is no limit on connections at all.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::flush::{Gate, Gated};
use super::host_router::Answers;
use super::system::Peer;
use crate::error::Error;
use crate::metrics::Metrics;
use crate::public_urls::Certificate;

/// How long a client may take for the head of a request, and how long a connection may be idle before one.
const HEAD_DEADLINE: Duration = Duration::from_secs(30);
/// Longest head of a request.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Headers of one request.
const HEADERS_MAX: usize = 100;
/// How long requests in progress may go on when the daemon stops.
const DRAIN_DEADLINE: Duration = Duration::from_secs(2);
/// Pause after a failed accept: out of descriptors, most likely, and some connection will end.
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

/// A listener and who answers there.
#[derive(Debug)]
pub struct Door<A> {
    /// The bound address.
    pub listening: Listening,
    /// For TLS.
    pub certificate: Option<Arc<Certificate>>,
    /// Who answers.
    pub answers: A,
    /// Connections that may be open at once.
    pub connections_max: u32,
    /// Told how many are.
    pub metrics: Option<Arc<Metrics>>,
}

/// Serves until `stop` is called; then lets requests in progress finish for a short while.
pub async fn serve<A: Answers>(door: Door<A>, stop: CancellationToken) {
    let Door { listening, certificate, answers, connections_max, metrics } = door;
    let room = Arc::new(Semaphore::new(connections_max as usize));
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
        // Without room the connection is closed at once: the client learns of it, and we stay able to serve others.
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else { continue };
        let connection = accept(stream, peer, certificate.clone(), answers.clone(), stop.clone());
        connections.spawn(async move {
            connection.await;
            drop(permit);
        });
        if let Some(metrics) = &metrics {
            metrics.set_connections(i64::try_from(connections.len()).unwrap_or(i64::MAX));
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
    stop: CancellationToken,
) {
    // Small pieces must leave at once: trailers, frames, single lines. And a client that has vanished without a word is
    // noticed some day, however long its connection may be silent.
    let prepared =
        stream.set_nodelay(true).and_then(|()| Ok(rustix::net::sockopt::set_socket_keepalive(&stream, true)?));
    if let Err(cause) = prepared {
        tracing::debug!(%cause, "a connection has gone already");
        return;
    }
    let Some(certificate) = certificate else {
        return connection(stream, Peer { address: peer, secure: false }, answers, stop).await;
    };
    match certificate.accept(stream).await {
        Ok(stream) => connection(stream, Peer { address: peer, secure: true }, answers, stop).await,
        Err(cause) => tracing::debug!(%peer, %cause, "no agreement on keys"),
    }
}

async fn connection<A, T>(stream: T, peer: Peer, answers: A, stop: CancellationToken)
where
    A: Answers,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let gate = Gate::default();
    let io = TokioIo::new(Gated::new(stream, gate.clone()));
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let (answers, gate) = (answers.clone(), gate.clone());
        async move {
            let mut request: Request = request.map(axum::body::Body::new);
            request.extensions_mut().insert(gate);
            request.extensions_mut().insert(peer);
            Ok::<_, Infallible>(answers.answer(request).await)
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
    };
    if let Err(cause) = served {
        tracing::debug!(peer = %peer.address, %cause, "a connection ended early");
    }
}
