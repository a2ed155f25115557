//! Relayed bodies.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use tokio::time::Sleep;

use super::passage::Passage;
use crate::boxes::{Activity, Work, WorkKind};

/// Longest pause of a client that sends a body.
const UPLOAD_PAUSE: Duration = Duration::from_secs(300);

/// A request that the box has received completely and has not begun to answer keeps it awake: it presumably works on
/// it. Before and after, each piece of a body counts as activity, and a silent client does not.
#[derive(Debug)]
pub(super) struct Asked {
    activity: Arc<Activity>,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Sending,
    Answering { _work: Work },
    Answered,
}

impl Asked {
    /// A request that is about to be sent.
    pub(super) fn new(activity: &Arc<Activity>) -> Arc<Self> {
        Arc::new(Self { activity: Arc::clone(activity), state: Mutex::new(State::Sending) })
    }

    fn sent(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, State::Sending) {
            *state = State::Answering { _work: self.activity.begin(WorkKind::Url) };
        }
    }

    /// The box has begun to answer, or will not answer.
    pub(super) fn answered(&self) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = State::Answered;
    }
}

/// The body of a client's request.
#[derive(Debug)]
pub(super) struct Upload {
    inner: Body,
    asked: Arc<Asked>,
    pause: Pin<Box<Sleep>>,
}

impl Upload {
    pub(super) fn new(inner: Body, asked: Arc<Asked>) -> Self {
        if inner.is_end_stream() {
            asked.sent();
        }
        Self { inner, asked, pause: Box::pin(tokio::time::sleep(UPLOAD_PAUSE)) }
    }
}

impl hyper::body::Body for Upload {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        match Pin::new(&mut this.inner).poll_frame(context) {
            Poll::Ready(frame) => {
                if frame.is_none() || this.inner.is_end_stream() {
                    this.asked.sent();
                }
                this.pause.as_mut().reset(tokio::time::Instant::now() + UPLOAD_PAUSE);
                Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
            }
            Poll::Pending => match this.pause.as_mut().poll(context) {
                Poll::Ready(()) => Poll::Ready(Some(Err("the client has stopped sending".into()))),
                Poll::Pending => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// The body of a box's answer. Dropping it ends the connection into the box.
pub(super) struct Download {
    inner: Incoming,
    _passage: Passage,
}

impl Download {
    pub(super) fn body(inner: Incoming, passage: Passage) -> Body {
        Body::new(Self { inner, _passage: passage }.map_err(axum::Error::new))
    }
}

impl hyper::body::Body for Download {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.inner).poll_frame(context)
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
    use super::*;

    #[tokio::test]
    async fn only_a_whole_request_keeps_a_box_awake() {
        let activity = Activity::new(0);
        let asked = Asked::new(&activity);
        let (sender, pieces) = tokio::sync::mpsc::channel::<Result<Bytes, std::io::Error>>(4);
        let body = Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(pieces));
        let mut upload = Upload::new(body, Arc::clone(&asked));
        sender.send(Ok(Bytes::from_static(b"x"))).await.expect("room");
        assert!(upload.frame().await.is_some_and(|frame| frame.is_ok()));
        assert_eq!(activity.counts().urls, 0);
        drop(sender);
        assert!(upload.frame().await.is_none());
        assert_eq!(activity.counts().urls, 1);
        asked.answered();
        assert_eq!(activity.counts().urls, 0);
        drop(upload);
        assert_eq!(activity.counts().urls, 0);
    }

    #[tokio::test]
    async fn a_request_without_a_body_is_whole_at_once_and_one_that_was_answered_early_stays_so() {
        let activity = Activity::new(0);
        let asked = Asked::new(&activity);
        let upload = Upload::new(Body::empty(), Arc::clone(&asked));
        assert_eq!(activity.counts().urls, 1);
        asked.answered();
        drop(upload);
        let asked = Asked::new(&activity);
        asked.answered();
        let _upload = Upload::new(Body::empty(), asked);
        assert_eq!(activity.counts().urls, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stops_sending_is_given_up() {
        let asked = Asked::new(&Activity::new(0));
        let body = Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>());
        let mut upload = Upload::new(body, asked);
        assert!(upload.frame().await.is_some_and(|frame| frame.is_err()));
    }
}
