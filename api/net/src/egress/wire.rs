//! The two TCP connections of a proxied connection, and copying between them.
//!
//! Owns: [`Socket`], which can be reset while another task reads and writes it; [`Wire`], the same as
//! a stream that begins with bytes read ahead; [`splice`].
//!
//! Invariants: data is written before more is read, so the slower side sets the pace and little is buffered. An idle
//! connection has no buffer.

use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use rustix::net::{Shutdown, sockopt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Bytes read at once.
const CHUNK_BYTES: usize = 64 * 1024;
/// TCP keep-alive: idle time, interval and number of probes.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(120);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(30);
const KEEPALIVE_COUNT: u32 = 4;

/// A connection.
pub(super) struct Socket {
    stream: TcpStream,
}

impl Socket {
    pub(super) fn new(stream: TcpStream) -> io::Result<Arc<Self>> {
        stream.set_nodelay(true)?;
        sockopt::set_socket_keepalive(&stream, true)?;
        sockopt::set_tcp_keepidle(&stream, KEEPALIVE_IDLE)?;
        sockopt::set_tcp_keepintvl(&stream, KEEPALIVE_EVERY)?;
        sockopt::set_tcp_keepcnt(&stream, KEEPALIVE_COUNT)?;
        Ok(Arc::new(Self { stream }))
    }

    /// Makes the close a reset: the peer sees an abort, and unsent data is discarded.
    pub(super) fn cut(&self) {
        let _ = self.stream.set_zero_linger();
    }

    /// Shuts down the sending direction.
    pub(super) fn finish(&self) -> io::Result<()> {
        match rustix::net::shutdown(&self.stream, Shutdown::Write) {
            Ok(()) | Err(rustix::io::Errno::NOTCONN) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Waits for data or the end.
    pub(super) async fn readable(&self) -> io::Result<()> {
        self.stream.readable().await
    }

    /// Appends received data to `buffer`; returns zero at the end.
    pub(super) async fn read(&self, buffer: &mut Vec<u8>, bytes_max: usize) -> io::Result<usize> {
        poll_fn(|cx| {
            let mut limited = bytes::BufMut::limit(&mut *buffer, bytes_max);
            self.poll_read(cx, &mut limited)
        })
        .await
    }

    fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut impl bytes::BufMut) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            match self.stream.try_read_buf(buffer) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }

    fn poll_write(
        &self,
        cx: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            match write(&self.stream) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }

    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let count = poll_fn(|cx| self.poll_write(cx, |stream| stream.try_write(bytes))).await?;
            bytes = &bytes[count..];
        }
        Ok(())
    }
}

/// A connection as a stream. The socket closes when its last owner drops it.
pub(super) struct Wire {
    socket: Arc<Socket>,
    /// Bytes that were read ahead, before this stream existed.
    ahead: Bytes,
}

impl Wire {
    pub(super) fn new(socket: Arc<Socket>, ahead: Bytes) -> Self {
        Self { socket, ahead }
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let count = self.ahead.len().min(buf.remaining());
            buf.put_slice(&self.ahead[..count]);
            self.ahead.advance(count);
            return Poll::Ready(Ok(()));
        }
        self.socket.poll_read(cx, buf).map_ok(drop)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.socket.poll_write(cx, |stream| stream.try_write(buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.socket.poll_write(cx, |stream| stream.try_write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.socket.finish())
    }
}

/// Copies both ways until both have ended. If one direction ends, the connection stays half-closed until the other
/// ends. On an error both are reset.
pub(super) async fn splice(a: &Socket, b: &Socket, ahead: &[u8]) -> io::Result<()> {
    let there = async {
        b.write_all(ahead).await?;
        copy(a, b).await
    };
    let done = tokio::try_join!(there, copy(b, a));
    if done.is_err() {
        a.cut();
        b.cut();
    }
    done.map(drop)
}

async fn copy(from: &Socket, to: &Socket) -> io::Result<()> {
    loop {
        from.readable().await?;
        let mut buffer = Vec::with_capacity(CHUNK_BYTES);
        loop {
            buffer.clear();
            match from.stream.try_read_buf(&mut buffer) {
                Ok(0) => return to.finish(),
                Ok(_) => to.write_all(&buffer).await?,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
            // A fast pair yields to the other tasks.
            tokio::task::coop::consume_budget().await;
        }
    }
}
