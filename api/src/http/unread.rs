//! Request bodies that are answered before they are read.
//!
//! A client that still sends when its connection is closed gets a TCP reset in place of the answer, and a client that
//! keeps the connection for its next request finds it closed. So the rest of a body is read and dropped before the
//! answer is sent, within limits. Beyond them the answer says `Connection: close`, and the connection lingers: see
//! [`FlushWatch::linger`](super::flush::FlushWatch::linger).

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::flush::FlushWatch;

/// Most bytes of a body that are read and dropped: the longest that a route takes, and some margin.
const DROPPED_BYTES_MAX: u64 = 160 * 1024 * 1024;
/// Longest time of reading and dropping.
const DROP_DEADLINE: Duration = Duration::from_secs(10);
/// A client that pauses this long gets its answer at once.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The body of a request, shared by its handler and [`Rest`].
#[derive(Debug)]
struct Shared(Arc<Mutex<Incoming>>);

/// The part of a body that its handler did not read.
#[derive(Debug)]
pub(super) struct Rest {
    body: Arc<Mutex<Incoming>>,
    /// The client waits for `100 Continue` before it sends the body.
    expects: bool,
}

/// The request for its handler, and the handle on its body.
pub(super) fn share(request: hyper::Request<Incoming>) -> (Request, Rest) {
    let expects = request.headers().contains_key(header::EXPECT);
    let (parts, body) = request.into_parts();
    let body = Arc::new(Mutex::new(body));
    let request = Request::from_parts(parts, axum::body::Body::new(Shared(Arc::clone(&body))));
    (request, Rest { body, expects })
}

impl Rest {
    /// Reads the rest of the body before its answer is sent.
    pub(super) async fn dropped(self, mut response: Response, flushes: &FlushWatch) -> Response {
        // An upgraded connection has no rest, and a body that is still held is still being read.
        if response.status() == StatusCode::SWITCHING_PROTOCOLS || Arc::strong_count(&self.body) > 1 {
            return response;
        }
        let is_slow = response.status() == StatusCode::REQUEST_TIMEOUT;
        if is_slow || !self.read_to_end().await {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            flushes.linger();
        }
        response
    }

    async fn read_to_end(&self) -> bool {
        let (is_over, announced) = {
            let body = self.body.lock().unwrap_or_else(PoisonError::into_inner);
            (body.is_end_stream(), body.size_hint().lower())
        };
        if is_over {
            return true;
        }
        if self.expects || announced > DROPPED_BYTES_MAX {
            return false;
        }
        let reading = async {
            let mut dropped = 0;
            loop {
                let next = std::future::poll_fn(|context| poll(&self.body, context));
                let frame = match tokio::time::timeout(PAUSE_MAX, next).await {
                    Ok(Some(Ok(frame))) => frame,
                    // The end, or the client is gone.
                    Ok(Some(Err(_)) | None) => return true,
                    Err(_) => return false,
                };
                dropped += frame.data_ref().map_or(0, |data| data.len() as u64);
                if dropped > DROPPED_BYTES_MAX {
                    return false;
                }
            }
        };
        tokio::time::timeout(DROP_DEADLINE, reading).await.unwrap_or(false)
    }
}

fn poll(body: &Mutex<Incoming>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
    Pin::new(&mut *body.lock().unwrap_or_else(PoisonError::into_inner)).poll_frame(context)
}

impl Body for Shared {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        poll(&self.0, context)
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).size_hint()
    }
}
