//! Knowing when everything written so far has left for the client.
//!
//! The exit trailer of an exec stream must reach the client in one piece (both public clients read its data from the
//! very buffer in which they find its mark). So it must be one write of its own, with nothing of the output before it
//! still waiting in the server's buffer. hyper flushes the connection only when its own buffer is empty: the connection
//! is wrapped, and a body that wants to know waits for the next flush.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Shared by a connection and the bodies that go through it. One body at a time waits: HTTP/1 has no other.
#[derive(Debug, Clone, Default)]
pub(super) struct Gate {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    flushes: u64,
    waiting: Option<Waker>,
}

impl Gate {
    /// How many flushes there were.
    pub(super) fn flushes(&self) -> u64 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).flushes
    }

    /// Ready when there was a flush after the one with the number `seen`.
    pub(super) fn poll_flushed(&self, seen: u64, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.flushes > seen {
            return Poll::Ready(());
        }
        state.waiting = Some(context.waker().clone());
        Poll::Pending
    }

    fn flushed(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.flushes += 1;
        if let Some(waker) = state.waiting.take() {
            waker.wake();
        }
    }
}

/// A connection that tells its [`Gate`] about flushes.
#[derive(Debug)]
pub(super) struct Gated<T> {
    inner: T,
    gate: Gate,
}

impl<T> Gated<T> {
    /// Wraps a connection.
    pub(super) fn new(inner: T, gate: Gate) -> Self {
        Self { inner, gate }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Gated<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Gated<T> {
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
            self.gate.flushed();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}
