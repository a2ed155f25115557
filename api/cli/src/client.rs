//! HTTP to `iceboxd`.
//!
//! Owns URLs, the key header, time limits and the reading of errors. Knows the routes only as lists of path segments,
//! which are percent-encoded here.

use std::path::Path;
use std::time::Duration;

use reqwest::{Method, RequestBuilder, Response, Url, header};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::access::Access;
use super::error::Error;
use super::types::BoxData;

/// Header of the API key.
pub(crate) const KEY_HEADER: &str = "X-Box-Api-Key";

const CONNECT_SECONDS_MAX: u64 = 5;
/// For calls that only read or write records.
const RECORD_SECONDS_MAX: u64 = 60;
/// A line of an answer of lines is shorter than this.
const LINE_BYTES_MAX: usize = 1 << 20;
/// Errors are one sentence; a body longer than this is cut.
const ERROR_BYTES_MAX: usize = 16 * 1024;

/// How long a call may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Records: a minute.
    Record,
    /// Work in a box and transfers: as long as it takes.
    Work,
}

/// A connection to one server with one key.
pub(crate) struct Client {
    http: reqwest::Client,
    access: Access,
}

impl Client {
    /// Prepares the client; nothing is sent yet.
    pub(crate) fn new(access: Access) -> Result<Self, Error> {
        let mut key = header::HeaderValue::from_str(&access.key)
            .map_err(|_| Error::usage("the API key holds characters that no HTTP header may hold"))?;
        key.set_sensitive(true);
        let mut headers = header::HeaderMap::new();
        headers.insert(KEY_HEADER, key);
        Self::with(reqwest::Client::builder().default_headers(headers), access)
    }

    /// A client of the operator's socket, which needs no key.
    pub(crate) fn of_operator(socket: &Path) -> Result<Self, Error> {
        let url = Url::parse("http://operator.sock/").map_err(|cause| Error::usage(cause.to_string()))?;
        Self::with(reqwest::Client::builder().unix_socket(socket), Access { url, key: String::new() })
    }

    fn with(builder: reqwest::ClientBuilder, access: Access) -> Result<Self, Error> {
        let http = builder
            .user_agent(concat!("icebox/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(CONNECT_SECONDS_MAX))
            // A redirect would carry the key to another server.
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(|cause| Error::transport("prepare the HTTP client", &access.url, cause))?;
        Ok(Self { http, access })
    }

    /// Server and key, for connections that are not plain HTTP.
    pub(crate) fn access(&self) -> &Access {
        &self.access
    }

    /// The URL of a route.
    pub(crate) fn url(&self, segments: &[&str]) -> Url {
        let mut url = self.access.url.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        url
    }

    /// Begins a request.
    pub(crate) fn request(&self, method: Method, segments: &[&str], patience: Patience) -> RequestBuilder {
        let request = self.http.request(method, self.url(segments));
        match patience {
            Patience::Record => request.timeout(Duration::from_secs(RECORD_SECONDS_MAX)),
            Patience::Work => request,
        }
    }

    /// Sends a request and turns every answer that is not a success into an error.
    pub(crate) async fn send(&self, request: RequestBuilder) -> Result<Response, Error> {
        let answer = request.send().await.map_err(|cause| {
            let step = if cause.is_connect() { "reach the server" } else { "finish the request" };
            Error::transport(step, &self.access.url, cause.without_url())
        })?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status().as_u16();
        let mut body = answer.bytes().await.unwrap_or_default();
        body.truncate(ERROR_BYTES_MAX);
        Err(refusal(status, &body))
    }

    /// Sends a request and reads its JSON; an empty body is null.
    pub(crate) async fn json(&self, request: RequestBuilder) -> Result<Value, Error> {
        let body = self
            .send(request)
            .await?
            .bytes()
            .await
            .map_err(|cause| Error::transport("read the answer", &self.access.url, cause.without_url()))?;
        if body.iter().all(u8::is_ascii_whitespace) {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&body)
            .map_err(|cause| Error::protocol("understand the answer", format!("no JSON ({cause})")))
    }

    /// GET of a record.
    pub(crate) async fn get(&self, segments: &[&str], query: &[(&str, String)]) -> Result<Value, Error> {
        self.json(self.request(Method::GET, segments, Patience::Record).query(query)).await
    }

    /// Finds a box by id or name. Reading its record wakes nothing.
    pub(crate) async fn find(&self, name: &str) -> Result<BoxData, Error> {
        if name.is_empty() || name.contains('/') {
            return Err(Error::usage(format!("`{name}` is no id or name of a box")));
        }
        let found: BoxData = read(self.get(&["v2", "box", name], &[]).await.map_err(with_list_hint)?)?;
        if found.id.is_empty() {
            return Err(Error::protocol("find the box", "the server's record has no id"));
        }
        Ok(found)
    }
}

/// Reads a typed value from JSON.
pub(crate) fn read<T: DeserializeOwned>(value: Value) -> Result<T, Error> {
    serde_json::from_value(value).map_err(|cause| Error::protocol("understand the answer", cause.to_string()))
}

/// An answer of lines of JSON, which come while the server works.
pub(crate) struct JsonLines {
    answer: Response,
    pending: Vec<u8>,
}

impl JsonLines {
    /// Sends the request, and reads its answer by lines.
    pub(crate) async fn of(client: &Client, request: RequestBuilder) -> Result<Self, Error> {
        Ok(Self { answer: client.send(request).await?, pending: Vec::new() })
    }

    /// The next line; `None` at the end of the answer.
    pub(crate) async fn next(&mut self) -> Result<Option<Value>, Error> {
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                let value = serde_json::from_slice(&line)
                    .map_err(|cause| Error::protocol("understand the answer", format!("no JSON ({cause})")))?;
                return Ok(Some(value));
            }
            if self.pending.len() > LINE_BYTES_MAX {
                return Err(Error::protocol("understand the answer", "a line of it is too long"));
            }
            let piece = self.answer.chunk().await;
            match piece.map_err(|cause| Error::transport("read the answer", "iceboxd", cause.without_url()))? {
                Some(piece) => self.pending.extend_from_slice(&piece),
                None => return Ok(None),
            }
        }
    }
}

/// The error that a refusing answer stands for.
pub(crate) fn refusal(status: u16, body: &[u8]) -> Error {
    let text = serde_json::from_slice::<Value>(body)
        .ok()
        .and_then(|value| value.get("error").and_then(Value::as_str).map(str::to_owned))
        .unwrap_or_default();
    let hint = match status {
        401 => Some("is the API key right? `icebox env` shows what is used".to_owned()),
        300..=399 => Some("the server redirects; give its final address by --url".to_owned()),
        _ => None,
    };
    Error::Server { status, text, hint }
}

fn with_list_hint(error: Error) -> Error {
    match error {
        Error::Server { status: 404, text, hint: None } => {
            Error::Server { status: 404, text, hint: Some("`icebox ls` lists the boxes of this account".to_owned()) }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(url: &str) -> Client {
        let url = url.parse().expect("a URL");
        Client::new(Access { url, key: "k".to_owned() }).expect("a client")
    }

    #[test]
    fn routes_keep_a_prefix_and_encode_their_parts() {
        let url = |base: &str, parts: &[&str]| client(base).url(parts).to_string();
        assert_eq!(url("http://h:1", &["v2", "box"]), "http://h:1/v2/box");
        assert_eq!(url("http://h:1/x/", &["v2", "box", "a b"]), "http://h:1/x/v2/box/a%20b");
        assert_eq!(url("http://h:1/x", &["v1", "a?b#c"]), "http://h:1/x/v1/a%3Fb%23c");
    }

    #[test]
    fn a_refusal_speaks_the_servers_words() {
        assert_eq!(refusal(404, br#"{"error":"box x not found"}"#).to_string(), "box x not found");
        assert_eq!(refusal(500, b"<html>").to_string(), "the server answered with status 500");
        assert_eq!(refusal(400, br#"{"error":{"a":1}}"#).to_string(), "the server answered with status 400");
        assert!(refusal(404, b"").is_not_found());
    }

    #[test]
    fn a_key_that_is_no_header_is_refused() {
        let url: Url = "http://h".parse().expect("a URL");
        assert!(Client::new(Access { url, key: "a\nb".to_owned() }).is_err());
    }

    #[tokio::test]
    async fn names_that_would_change_the_route_are_refused() {
        let client = client("http://127.0.0.1:1");
        for name in ["", "a/b", "/"] {
            assert!(matches!(client.find(name).await, Err(Error::Usage { .. })), "{name:?}");
        }
    }
}
