//! A connection whose flushes are counted, and that can linger.
//!
//! The exit trailer of an exec stream must reach the client in one piece (both public clients read its data from the
//! same buffer in which they find its mark). So it must be one write of its own, with no earlier output waiting in the
//! server's buffer. hyper flushes the connection only when its own buffer is empty: the connection is wrapped, and a
//! body can wait for the next flush.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// Time for which a connection reads and drops input of a client after the last answer.
const LINGER: Duration = Duration::from_secs(5);

/// Shared by a connection and its bodies. One body at a time waits: HTTP/1 has no other.
#[derive(Debug, Clone, Default)]
pub(super) struct FlushWatch {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    flushes: u64,
    waiting: Option<Waker>,
    lingers: bool,
}

impl FlushWatch {
    /// Number of flushes so far.
    pub(super) fn flushes(&self) -> u64 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).flushes
    }

    /// Ready after a flush later than number `seen`.
    pub(super) fn poll_flushed(&self, seen: u64, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.flushes > seen {
            return Poll::Ready(());
        }
        state.waiting = Some(context.waker().clone());
        Poll::Pending
    }

    /// The client still sends when the connection is shut down: read and drop that for a while. Otherwise the kernel
    /// sends a TCP reset, and the client loses the answer.
    pub(super) fn linger(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).lingers = true;
    }

    fn lingers(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).lingers
    }

    fn flushed(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.flushes += 1;
        if let Some(waker) = state.waiting.take() {
            waker.wake();
        }
    }
}

/// A connection that reports flushes to its [`FlushWatch`].
#[derive(Debug)]
pub(super) struct Watched<T> {
    inner: T,
    flushes: FlushWatch,
    /// End of its lingering, once it is shut down.
    until: Option<Pin<Box<Sleep>>>,
}

impl<T> Watched<T> {
    /// Wraps a connection.
    pub(super) fn new(inner: T, flushes: FlushWatch) -> Self {
        Self { inner, flushes, until: None }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(context);
        if matches!(flushed, Poll::Ready(Ok(()))) {
            self.flushes.flushed();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.until.is_none() {
            ready!(Pin::new(&mut self.inner).poll_shutdown(context))?;
            if !self.flushes.lingers() {
                return Poll::Ready(Ok(()));
            }
            self.until = Some(Box::pin(tokio::time::sleep(LINGER)));
        }
        let Self { inner, until, .. } = &mut *self;
        let mut dropped = [0; 16 * 1024];
        loop {
            if until.as_mut().is_some_and(|until| until.as_mut().poll(context).is_ready()) {
                return Poll::Ready(Ok(()));
            }
            let mut buffer = ReadBuf::new(&mut dropped);
            match ready!(Pin::new(&mut *inner).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                // The client has closed its side, or is gone.
                Ok(()) | Err(_) => return Poll::Ready(Ok(())),
            }
        }
    }
}
