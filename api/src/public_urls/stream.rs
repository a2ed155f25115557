//! The connection to a box, with regard to the box's sleep.
//!
//! Every byte of a public URL passes here. Bytes in either direction count as activity; silence does not, however long
//! a connection stays open. Bytes of the client wake a sleeping box before they are written, so that the box can
//! process them. Bytes of the box do not: it has written them before it fell asleep. There is one exception, a client
//! that did not read for a while and now continues: the box may be asleep in the middle of its output to that client.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use crate::boxes::{Awake, Entry, WorkKind};
use crate::lifecycle::Lifecycle;
use crate::refusal::Refusal;

/// A reader that took no bytes for this long was held up by its client. Shorter than the shortest idle time.
const HELD_UP: Duration = Duration::from_millis(500);

type Waking = Pin<Box<dyn Future<Output = Result<Awake, Refusal>> + Send>>;

/// A connection to a port of a box.
pub(super) struct BoxStream {
    inner: TcpStream,
    lifecycle: Lifecycle,
    entry: Arc<Entry>,
    /// A task waits for the box to wake.
    waking: Option<Waking>,
    /// The box has used up its rate.
    waiting: Option<Pin<Box<Sleep>>>,
    /// Time when bytes of the box were last taken, unless a task waits for more of them already.
    taken: Option<Instant>,
}

impl BoxStream {
    pub(super) fn new(inner: TcpStream, lifecycle: Lifecycle, entry: Arc<Entry>) -> Self {
        Self { inner, lifecycle, entry, waking: None, waiting: None, taken: None }
    }

    /// Waits until the box is awake. The returned work keeps it awake.
    fn poll_wake(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Awake>> {
        let waking = self.waking.get_or_insert_with(|| {
            let (lifecycle, entry) = (self.lifecycle.clone(), Arc::clone(&self.entry));
            Box::pin(async move { lifecycle.ensure_awake(&entry, WorkKind::Arriving).await })
        });
        let woken = ready!(waking.as_mut().poll(context));
        self.waking = None;
        Poll::Ready(woken.map_err(|refusal| io::Error::other(refusal.to_string())))
    }

    /// Counts bytes in either direction.
    fn count(&mut self, bytes: usize) {
        if let Some(wait) = self.entry.passed.count(bytes) {
            self.waiting = Some(Box::pin(tokio::time::sleep(wait)));
        }
    }

    /// Waits while the box has used up its rate.
    fn poll_rate(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let Some(waiting) = &mut self.waiting {
            ready!(waiting.as_mut().poll(context));
            self.waiting = None;
        }
        Poll::Ready(())
    }

    /// Writes by `write` into a box that is awake.
    fn poll_arrive(
        &mut self,
        context: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_rate(context));
        // From before the check of the box until the bytes are in its socket; but not while the socket is full: a
        // program that does not read its input does not count as work.
        let mut arriving = self.entry.activity.begin(WorkKind::Arriving);
        if self.waking.is_some() || self.entry.maybe_asleep() {
            arriving = ready!(self.poll_wake(context))?.work;
        }
        let written = write(Pin::new(&mut self.inner), context);
        drop(arriving);
        if let Poll::Ready(Ok(count)) = &written {
            self.count(*count);
        }
        written
    }
}

impl AsyncRead for BoxStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(this.poll_rate(context));
        if this.taken.is_some_and(|at| at.elapsed() > HELD_UP) && this.entry.maybe_asleep() {
            drop(ready!(this.poll_wake(context))?);
        }
        this.taken = None;
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            this.entry.activity.touch();
            this.taken = Some(Instant::now());
            this.count(buffer.filled().len() - before);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for BoxStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_arrive(context, |inner, context| inner.poll_write(context, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_arrive(context, |inner, context| inner.poll_write_vectored(context, pieces))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}
