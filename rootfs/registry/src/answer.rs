//! What a server answers: read with a limit and a deadline.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap};
use hyper::{Response, StatusCode};
use serde::Deserialize;
use tokio::time::timeout;
use url::Url;

use crate::connect::{Driver, place, unavailable};
use crate::error::{Cause, refuse, shown};
use crate::reach::Reach;

/// Largest document with an error that is read.
const FAILURE_BYTES_MAX: u64 = 16 * 1024;

/// An answer whose body has not been read.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// Where it came from, after redirects.
    pub(crate) url: Url,
    /// How public the server is that was asked first.
    pub(crate) reach: Option<Reach>,
    body: Incoming,
    _driver: Driver,
}

#[derive(Deserialize)]
struct Failures {
    #[serde(default)]
    errors: Vec<Failure>,
    /// As token services say it.
    #[serde(default, alias = "details", alias = "message")]
    error_description: Option<String>,
}

#[derive(Deserialize)]
struct Failure {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

impl Answer {
    pub(crate) fn new(response: Response<Incoming>, url: Url, reach: Option<Reach>, driver: Driver) -> Self {
        let (parts, body) = response.into_parts();
        Self { status: parts.status, headers: parts.headers, url, reach, body, _driver: driver }
    }

    /// The text of a header.
    pub(crate) fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The announced length of the body.
    pub(crate) fn length(&self) -> Option<u64> {
        self.header(header::CONTENT_LENGTH)?.parse().ok()
    }

    /// The next piece of the body, `None` at its end.
    pub(crate) async fn piece(&mut self, deadline: Duration) -> Result<Option<Bytes>, Cause> {
        match timeout(deadline, self.next()).await {
            Ok(piece) => piece,
            Err(_) => Err(unavailable(&self.url, "nothing more comes")),
        }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Cause> {
        loop {
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            let frame = frame.map_err(|cause| unavailable(&self.url, &format!("the connection breaks: {cause}")))?;
            // Trailers have nothing for us.
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
    }

    /// The whole body, which must be small.
    pub(crate) async fn document(mut self, most: u64, deadline: Duration) -> Result<Vec<u8>, Cause> {
        let too_large =
            |url: &Url| Cause::Refused(format!("{} sends a document of more than {most} bytes", place(url)));
        if self.length().is_some_and(|length| length > most) {
            return Err(too_large(&self.url));
        }
        let read = async {
            let mut all = Vec::new();
            while let Some(piece) = self.next().await? {
                if (all.len() + piece.len()) as u64 > most {
                    return Err(too_large(&self.url));
                }
                all.extend_from_slice(&piece);
            }
            Ok(all)
        };
        match timeout(deadline, read).await {
            Ok(read) => read,
            Err(_) => Err(Cause::Unavailable("a document does not come in time".to_owned())),
        }
    }

    /// The failure that this answer is.
    pub(crate) async fn failure(self, deadline: Duration) -> Cause {
        let (status, place) = (self.status, place(&self.url));
        let told = self.document(FAILURE_BYTES_MAX, deadline).await.ok().map(|text| told(&text)).unwrap_or_default();
        let colon = if told.is_empty() { "" } else { ": " };
        let text = format!("{place} answers {}{colon}{told}", status.as_u16());
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Cause::Denied(text),
            StatusCode::NOT_FOUND => Cause::NotFound(text),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => Cause::Unavailable(text),
            status if status.is_server_error() => Cause::Unavailable(text),
            _ => Cause::Refused(text),
        }
    }

    /// Refuses any status but these.
    pub(crate) async fn expect(self, statuses: &[StatusCode], deadline: Duration) -> Result<Self, Cause> {
        if statuses.contains(&self.status) {
            return Ok(self);
        }
        if self.status.is_success() || self.status.is_redirection() {
            refuse!("{} answers {}, which is not expected here", place(&self.url), self.status.as_u16());
        }
        Err(self.failure(deadline).await)
    }
}

/// What a document with errors says.
fn told(text: &[u8]) -> String {
    let Ok(read) = serde_json::from_slice::<Failures>(text) else { return String::new() };
    let all: Vec<String> = read
        .errors
        .iter()
        .take(4)
        .map(|failure| shown(&format!("{} {}", failure.code, failure.message)))
        .chain(read.error_description.as_deref().map(shown))
        .collect();
    all.join(", ")
}

#[cfg(test)]
mod tests {
    use super::told;

    #[test]
    fn errors_are_told_on_one_line() {
        assert_eq!(
            told(br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest\nunknown\u001b[0m","detail":{}}]}"#),
            "MANIFEST_UNKNOWN manifest unknown [0m"
        );
        assert_eq!(told(br#"{"details":"incorrect username or password"}"#), "incorrect username or password");
        assert_eq!(told(b"<html>"), "");
    }
}
