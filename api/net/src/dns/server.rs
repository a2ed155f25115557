//! Receives questions and sends answers: the datagrams and streams of boxes.
//!
//! Owns: which peers are served, and for how long. A peer that is no box gets no answer.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::judge::Judge;
use super::metrics::count;
use super::question::QUESTION_BYTES_MAX;
use super::reply::Transport;
use super::upstream::Place;
use crate::error::Error;
use crate::table::{BoxNet, NetTable};

/// Longest silence of a connection, and longest time to read an answer.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that wait for accept.
const BACKLOG: u32 = 256;
/// Pause after a socket error, which may last a while (no memory, no descriptors).
const ERROR_PAUSE: Duration = Duration::from_millis(20);
/// Bytes of the receive buffer, which all boxes share.
const RECEIVE_BYTES: usize = 1 << 20;

/// The two sockets.
#[derive(Debug)]
pub(super) struct Ends {
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Ends {
    pub(super) async fn open(place: &Place, listen: SocketAddr) -> Result<Self, Error> {
        let failed = |cause: std::io::Error| Error::new("listen for DNS at", listen.to_string(), cause);
        let udp = place.udp(listen).await?;
        // Up to the system's limit.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&udp, RECEIVE_BYTES);
        let listen = udp.local_addr().map_err(failed)?;
        let tcp = place.tcp(listen).await?;
        tcp.set_reuseaddr(true).map_err(failed)?;
        tcp.bind(listen).map_err(failed)?;
        let tcp = tcp.listen(BACKLOG).map_err(failed)?;
        Ok(Self { udp, tcp })
    }

    pub(super) fn address(&self) -> Result<SocketAddr, Error> {
        self.udp.local_addr().map_err(|cause| Error::new("listen for DNS", "", cause))
    }
}

/// Serves boxes until `end`.
pub(super) fn serve(ends: Ends, judge: Arc<Judge>, table: Arc<NetTable>, end: CancellationToken) {
    let Ends { udp, tcp } = ends;
    let datagrams = take_datagrams(Arc::new(udp), Arc::clone(&judge), Arc::clone(&table));
    tokio::spawn(end.clone().run_until_cancelled_owned(datagrams));
    tokio::spawn(end.run_until_cancelled_owned(take_connections(tcp, judge, table)));
}

/// The box that has the peer's address.
fn box_at(judge: &Judge, table: &NetTable, peer: SocketAddr) -> Option<(Arc<BoxNet>, Ipv4Addr)> {
    let address = match peer {
        SocketAddr::V4(peer) => Some(*peer.ip()),
        SocketAddr::V6(_) => None,
    };
    let found = address.and_then(|address| Some((table.at(address)?, address)));
    if found.is_none() {
        count(&judge.metrics.strangers);
    }
    found
}

async fn take_datagrams(socket: Arc<UdpSocket>, judge: Arc<Judge>, table: Arc<NetTable>) {
    // One byte more than the longest question: a longer datagram is cut, and recognized as too long.
    let mut buffer = [0; QUESTION_BYTES_MAX + 1];
    loop {
        let (length, peer) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(cause) => {
                tracing::warn!(%cause, "cannot receive questions of boxes");
                tokio::time::sleep(ERROR_PAUSE).await;
                continue;
            }
        };
        let Some((box_, address)) = box_at(&judge, &table, peer) else { continue };
        let place = match judge.limits.question(address, Instant::now()) {
            Ok(place) => place,
            Err(too_much) => {
                judge.drop_question(&box_, too_much);
                continue;
            }
        };
        let (socket, judge, bytes) = (Arc::clone(&socket), Arc::clone(&judge), buffer[..length].to_vec());
        tokio::spawn(async move {
            let answer = judge.answer(&box_, &bytes, Transport::Udp);
            // If the box is gone, its address may belong to another box.
            if let Some(Some(answer)) = box_.gone().run_until_cancelled(answer).await {
                // A client that gets no answer asks again.
                let _ = socket.send_to(&answer, peer).await;
            }
            drop(place);
        });
    }
}

async fn take_connections(listener: TcpListener, judge: Arc<Judge>, table: Arc<NetTable>) {
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(cause) => {
                tracing::warn!(%cause, "cannot take connections of boxes for questions");
                tokio::time::sleep(ERROR_PAUSE).await;
                continue;
            }
        };
        let Some((box_, address)) = box_at(&judge, &table, peer) else { continue };
        let Some(place) = judge.limits.connection(address, Instant::now()) else {
            count(&judge.metrics.dropped);
            continue;
        };
        let judge = Arc::clone(&judge);
        tokio::spawn(async move {
            let _ = box_.gone().run_until_cancelled(converse(stream, &judge, &box_, address)).await;
            drop(place);
        });
    }
}

/// Answers one question after the other, until the box closes or sends something invalid.
async fn converse(mut stream: TcpStream, judge: &Judge, box_: &Arc<BoxNet>, address: Ipv4Addr) -> std::io::Result<()> {
    let mut buffer = [0; QUESTION_BYTES_MAX];
    let _ = stream.set_nodelay(true);
    loop {
        let read = async {
            let length = usize::from(stream.read_u16().await?);
            let bytes = buffer.get_mut(..length).ok_or(std::io::ErrorKind::InvalidData)?;
            stream.read_exact(bytes).await?;
            std::io::Result::Ok(length)
        };
        let length = timeout(IDLE_TIMEOUT, read).await??;
        let place = match judge.limits.question(address, Instant::now()) {
            Ok(place) => place,
            Err(too_much) => {
                judge.drop_question(box_, too_much);
                return Ok(());
            }
        };
        let Some(answer) = judge.answer(box_, &buffer[..length], Transport::Tcp).await else { return Ok(()) };
        drop(place);
        let Ok(length) = u16::try_from(answer.len()) else { return Ok(()) };
        let frame = [&length.to_be_bytes(), answer.as_slice()].concat();
        timeout(IDLE_TIMEOUT, stream.write_all(&frame)).await??;
    }
}
