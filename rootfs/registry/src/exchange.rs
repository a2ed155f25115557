//! One request and its answer, along redirects.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::body::Frame;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Method, Request, StatusCode};
use tokio::time::timeout;
use url::Url;

use crate::answer::Answer;
use crate::connect::{Body, Dialer, Leash, place, unavailable};
use crate::error::{Cause, refuse};
use crate::reach::Reach;

/// Redirects of one request.
const REDIRECTS_MAX: usize = 5;
/// Bytes that are read from a file at once.
const PIECE_BYTES: usize = 256 * 1024;
const USER_AGENT: &str = concat!("icebox/", env!("CARGO_PKG_VERSION"));

/// The body of a request, which can be sent again.
#[derive(Clone)]
pub(crate) enum Payload {
    Empty,
    Bytes(Bytes),
    /// A file from its beginning, its length, and how much of it is sent.
    File(Arc<File>, u64, Arc<Sent>),
}

/// How much of a file is sent.
pub(crate) struct Sent {
    bytes: AtomicU64,
    tell: Box<dyn Fn(u64) + Send + Sync>,
}

impl Sent {
    pub(crate) fn new(tell: impl Fn(u64) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { bytes: AtomicU64::new(0), tell: Box::new(tell) })
    }

    fn set(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
        (self.tell)(bytes);
    }
}

/// A request.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    /// Is not sent to other hosts than that of `url`.
    pub(crate) authorization: Option<HeaderValue>,
    pub(crate) payload: Payload,
    /// Where `url` itself may lead.
    pub(crate) leash: Leash,
}

impl Call {
    pub(crate) fn get(url: Url, leash: Leash) -> Self {
        let (method, payload) = (Method::GET, Payload::Empty);
        Self { method, url, headers: Vec::new(), authorization: None, payload, leash }
    }
}

impl Payload {
    fn length(&self) -> u64 {
        match self {
            Self::Empty => 0,
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(_, length, _) => *length,
        }
    }

    fn body(&self) -> Body {
        match self {
            Self::Empty => Empty::new().map_err(|never| match never {}).boxed_unsync(),
            Self::Bytes(bytes) => Full::new(bytes.clone()).map_err(|never| match never {}).boxed_unsync(),
            Self::File(file, length, sent) => {
                sent.set(0);
                let (file, length, sent) = (Arc::clone(file), *length, Arc::clone(sent));
                let pieces = futures::stream::try_unfold(0, move |at| {
                    let (file, sent) = (Arc::clone(&file), Arc::clone(&sent));
                    async move {
                        sent.set(at);
                        let most = usize::try_from(length - at).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
                        if most == 0 {
                            return Ok(None);
                        }
                        let read = tokio::task::spawn_blocking(move || {
                            let mut piece = vec![0; most];
                            file.read_exact_at(&mut piece, at).map(|()| piece)
                        });
                        let piece = read.await.map_err(io::Error::other)??;
                        let next = at + piece.len() as u64;
                        Ok::<_, io::Error>(Some((Frame::data(Bytes::from(piece)), next)))
                    }
                });
                StreamBody::new(pieces).boxed_unsync()
            }
        }
    }

    fn sent(&self) -> u64 {
        match self {
            Self::File(_, _, sent) => sent.bytes.load(Ordering::Relaxed),
            other => other.length(),
        }
    }
}

impl Dialer {
    /// Sends a request. GET and HEAD follow redirects; the answer to the last is returned, whatever its status.
    pub(crate) async fn send(&self, mut call: Call) -> Result<Answer, Cause> {
        let origin = call.url.clone();
        let mut first: Option<Reach> = None;
        for _ in 0..=REDIRECTS_MAX {
            let mut answer = self.once(&call).await?;
            first = first.or(answer.reach);
            let redirects = matches!(answer.status.as_u16(), 301 | 302 | 303 | 307 | 308);
            if !redirects || !matches!(call.method, Method::GET | Method::HEAD) {
                answer.reach = first;
                return Ok(answer);
            }
            let Some(location) = answer.header(header::LOCATION) else {
                refuse!("{} answers {} without a place", place(&call.url), answer.status.as_u16());
            };
            let next = lead(&call.url, location)?;
            if !same_origin(&next, &origin) {
                call.authorization = None;
                // Through a proxy nothing is known about addresses but that the registry is not of this machine.
                call.leash = Leash::Within(first.unwrap_or(Reach::Public));
            }
            call.url = next;
        }
        refuse!("{} redirects more than {REDIRECTS_MAX} times", place(&origin))
    }

    async fn once(&self, call: &Call) -> Result<Answer, Cause> {
        let mut link = self.open(&call.url, call.leash).await?;
        let target = if link.absolute { call.url.as_str().to_owned() } else { path_of(&call.url) };
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(target)
            .header(header::HOST, place(&call.url))
            .header(header::USER_AGENT, USER_AGENT);
        if !matches!(call.payload, Payload::Empty) || matches!(call.method, Method::POST | Method::PUT) {
            request = request.header(header::CONTENT_LENGTH, call.payload.length());
        }
        for (name, value) in &call.headers {
            request = request.header(name, value);
        }
        if let Some(authorization) = &call.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let request = request
            .body(call.payload.body())
            .map_err(|cause| Cause::Refused(format!("{} cannot be asked: {cause}", place(&call.url))))?;
        let answer = link.sender.send_request(request);
        tokio::pin!(answer);
        let mut sent = 0;
        let response = loop {
            let done = call.payload.sent() >= call.payload.length();
            match timeout(self.deadline(call, done), &mut answer).await {
                Ok(response) => break response.map_err(|cause| broken(&call.url, &cause))?,
                Err(_) if !done && call.payload.sent() > sent => sent = call.payload.sent(),
                Err(_) => return Err(unavailable(&call.url, "it does not answer in time")),
            }
        };
        Ok(Answer::new(response, call.url.clone(), link.reach, link.driver))
    }

    fn deadline(&self, call: &Call, sent: bool) -> Duration {
        match call.payload {
            Payload::File(..) if sent => self.timing.acknowledge,
            Payload::File(..) => self.timing.stall,
            _ => self.timing.answer,
        }
    }
}

/// The place that a server names.
pub(crate) fn lead(from: &Url, location: &str) -> Result<Url, Cause> {
    let unfit = |why: &str| Cause::Refused(format!("{} leads to a place that is no URL: {why}", place(from)));
    let next = from.join(location).map_err(|cause| unfit(&cause.to_string()))?;
    if !matches!(next.scheme(), "https" | "http") || next.host_str().is_none() {
        return Err(unfit("it is neither https nor http"));
    }
    if !next.username().is_empty() || next.password().is_some() {
        return Err(unfit("it has credentials in it"));
    }
    if from.scheme() == "https" && next.scheme() == "http" {
        refuse!("{} leads from https to http ({})", place(from), place(&next));
    }
    Ok(next)
}

/// Whether credentials for one are for the other.
pub(crate) fn same_origin(one: &Url, other: &Url) -> bool {
    one.origin() == other.origin()
}

fn path_of(url: &Url) -> String {
    url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()))
}

fn broken(url: &Url, cause: &hyper::Error) -> Cause {
    let mut text = cause.to_string();
    let mut next = std::error::Error::source(cause);
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    // A server that sends nonsense is not asked again.
    if cause.is_parse() {
        return Cause::Refused(format!("{}: its answer is no HTTP: {text}", place(url)));
    }
    unavailable(url, &text)
}

/// The statuses after which a request is sent again.
pub(crate) fn is_passing(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_followed_by_rule() {
        let from: Url = "https://r.example:5000/v2/a/blobs/x".parse().expect("a URL");
        let ok = |location: &str| lead(&from, location).expect(location).to_string();
        assert_eq!(ok("/v2/other?x=y"), "https://r.example:5000/v2/other?x=y");
        assert_eq!(ok("https://cdn.example/x"), "https://cdn.example/x");
        for bad in
            ["http://r.example:5000/x", "file:///etc/passwd", "ftp://x/", "https://u:p@x/", "https://", "gopher:x"]
        {
            assert!(lead(&from, bad).is_err(), "{bad}");
        }
        assert!(same_origin(&from, &"https://r.example:5000/y".parse().expect("a URL")));
        assert!(!same_origin(&from, &"https://r.example/y".parse().expect("a URL")));
    }
}
