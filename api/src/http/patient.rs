//! The body of a request, with a deadline for its progress.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use hyper::body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep};

/// Lowest average rate at which a body may arrive.
const BYTES_PER_SECOND_MIN: u64 = 1024;

/// The client has stopped sending, or sends below the lowest rate.
#[derive(Debug)]
pub(super) struct TooSlow;

impl fmt::Display for TooSlow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the body arrived too slowly")
    }
}

impl std::error::Error for TooSlow {}

/// A body that fails with [`TooSlow`] when no byte of it arrives for `pause`, or when its average rate is below
/// [`BYTES_PER_SECOND_MIN`].
struct Patient {
    inner: Body,
    pause: Duration,
    began: Instant,
    bytes: u64,
    deadline: Pin<Box<Sleep>>,
}

/// Wraps a body with its deadline. An empty body needs none.
pub(super) fn patient(inner: Body, pause: Duration) -> Body {
    use hyper::body::Body as _;
    if inner.is_end_stream() {
        return inner;
    }
    let deadline = Box::pin(tokio::time::sleep(pause));
    Body::new(Patient { inner, pause, began: Instant::now(), bytes: 0, deadline })
}

impl hyper::body::Body for Patient {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(context) {
            if let Some(Ok(frame)) = &frame {
                this.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
            }
            let earned = this.pause + Duration::from_secs(this.bytes / BYTES_PER_SECOND_MIN);
            this.deadline.as_mut().reset((Instant::now() + this.pause).min(this.began + this.pause + earned));
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        ready!(this.deadline.as_mut().poll(context));
        Poll::Ready(Some(Err(Box::new(TooSlow))))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    const PAUSE: Duration = Duration::from_secs(30);

    async fn rest(sender_pause: Duration, piece: usize, pieces: usize) -> (usize, bool) {
        let stream = futures::stream::unfold(0, move |sent| async move {
            if sent == pieces {
                return None;
            }
            tokio::time::sleep(sender_pause).await;
            Some((Ok::<_, std::io::Error>(Bytes::from(vec![b'x'; piece])), sent + 1))
        });
        let mut body = patient(Body::from_stream(stream), PAUSE);
        let mut got = 0;
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => got += frame.data_ref().map_or(0, Bytes::len),
                Err(_) => return (got, false),
            }
        }
        (got, true)
    }

    #[tokio::test(start_paused = true)]
    async fn progress_is_what_counts() {
        assert_eq!(rest(Duration::from_secs(29), 40_000, 100).await, (4_000_000, true));
        assert_eq!(rest(Duration::from_secs(31), 40_000, 100).await, (0, false));
        // A byte now and then does not count as progress.
        let (got, whole) = rest(Duration::from_secs(20), 1, 100).await;
        assert!(got < 5 && !whole, "{got}");
    }
}
