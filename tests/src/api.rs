//! A plain HTTP client of the wire contract: what any program could send, the wrong things too.

use std::io::Read;
use std::time::Duration;

use serde_json::{Value, json};

use crate::wait::{PATIENCE, wait_until};

/// Longest time a test waits for one answer.
const REQUEST_TIMEOUT_S: u64 = 120;

/// One account's view of one `iceboxd`.
#[derive(Debug, Clone)]
pub struct Api {
    base: String,
    key: Option<String>,
    http: reqwest::blocking::Client,
}

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub struct Reply {
    /// What was asked, for messages.
    pub what: String,
    /// HTTP status.
    pub status: u16,
    /// Value of the `content-type` header, or nothing.
    pub content_type: String,
    /// The body.
    pub body: Vec<u8>,
}

impl Reply {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{}: {} is not JSON ({e}): {:?}", self.what, self.status, self.text()))
    }

    /// The JSON body of a 2xx answer; an empty body is null. Panics for any other status.
    pub fn ok(&self) -> Value {
        assert!((200..300).contains(&self.status), "{}: {} {}", self.what, self.status, self.text());
        if self.body.iter().all(u8::is_ascii_whitespace) { Value::Null } else { self.json() }
    }

    /// Asserts the status and the one error shape of the contract, and returns the text.
    pub fn error(&self, status: u16) -> String {
        assert!(self.status == status, "{}: wanted {status}, got {} {}", self.what, self.status, self.text());
        self.error_text()
    }

    /// The text of an error answer of any status: `{"error": "…"}` with a non-empty string, or a panic.
    pub fn error_text(&self) -> String {
        assert!(self.status >= 400, "{}: wanted an error, got {} {}", self.what, self.status, self.text());
        let body = self.json();
        let text = body.get("error").and_then(Value::as_str).unwrap_or_default();
        assert!(!text.is_empty(), "{}: {} has no error text: {body}", self.what, self.status);
        text.to_owned()
    }
}

impl Api {
    /// A client of the server at `base` (no trailing slash) that shows `key`, or none.
    pub fn new(base: &str, key: Option<&str>) -> Self {
        let http = reqwest::blocking::Client::builder()
            .timeout(Duration::from_secs(REQUEST_TIMEOUT_S))
            .build()
            .expect("an HTTP client");
        Self { base: base.to_owned(), key: key.map(str::to_owned), http }
    }

    /// The server's address.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The same server seen with another key.
    pub fn with_key(&self, key: Option<&str>) -> Self {
        Self { key: key.map(str::to_owned), ..self.clone() }
    }

    /// A request that is not sent yet, with the key header.
    pub fn build(&self, method: &str, path: &str) -> reqwest::blocking::RequestBuilder {
        let method = method.parse::<reqwest::Method>().expect("a method");
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.key {
            Some(key) => request.header("X-Box-Api-Key", key),
            None => request,
        }
    }

    /// Sends and reads to the end; a transport error is a panic.
    pub fn send(&self, what: &str, request: reqwest::blocking::RequestBuilder) -> Reply {
        self.try_send(what, request).unwrap_or_else(|e| panic!("{what}: {e:?}"))
    }

    /// Sends and reads to the end.
    pub fn try_send(&self, what: &str, request: reqwest::blocking::RequestBuilder) -> reqwest::Result<Reply> {
        let response = request.send()?;
        let status = response.status().as_u16();
        let content_type = response.headers().get("content-type");
        let content_type = content_type.and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        let body = response.bytes()?.to_vec();
        Ok(Reply { what: what.to_owned(), status, content_type, body })
    }

    /// A request with a JSON body, or without a body.
    pub fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Reply {
        let mut request = self.build(method, path);
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        self.send(&format!("{method} {path}"), request)
    }

    /// GET.
    pub fn get(&self, path: &str) -> Reply {
        self.call("GET", path, None)
    }

    /// POST with a JSON body.
    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.call("POST", path, Some(body))
    }

    /// POST without a body.
    pub fn post_empty(&self, path: &str) -> Reply {
        self.call("POST", path, None)
    }

    /// DELETE without a body.
    pub fn delete(&self, path: &str) -> Reply {
        self.call("DELETE", path, None)
    }

    /// Creates a box with `options` as the body and waits until it can be used.
    pub fn create(&self, options: &Value) -> TestBox {
        let data = self.post("/v2/box", options).ok();
        let id = data["id"].as_str().unwrap_or_else(|| panic!("create answered without id: {data}")).to_owned();
        let made = TestBox { api: self.clone(), id };
        wait_until(PATIENCE, "the box to leave the state creating", || made.status() != "creating");
        let status = made.status();
        assert!(status == "idle" || status == "running", "a new box is {status}");
        made
    }

    /// Creates a box with an empty body.
    pub fn create_default(&self) -> TestBox {
        self.create(&json!({}))
    }

    /// The boxes of the account.
    pub fn list(&self) -> Vec<Value> {
        let data = self.get("/v2/box").ok();
        data.as_array().unwrap_or_else(|| panic!("the list of boxes is no bare array: {data}")).clone()
    }
}

/// Result of one command.
#[derive(Debug, Clone)]
pub struct Exec {
    /// Exit code.
    pub code: i64,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// A box of an account. Not deleted on drop: its [`crate::Daemon`] does that.
#[derive(Debug, Clone)]
pub struct TestBox {
    /// The account's client.
    pub api: Api,
    /// The box id.
    pub id: String,
}

impl TestBox {
    /// The path of a route of this box: `tail` is empty or begins with a slash.
    pub fn path(&self, tail: &str) -> String {
        format!("/v2/box/{}{tail}", self.id)
    }

    /// GET on a route of this box.
    pub fn get(&self, tail: &str) -> Reply {
        self.api.get(&self.path(tail))
    }

    /// POST with JSON on a route of this box.
    pub fn post(&self, tail: &str, body: &Value) -> Reply {
        self.api.post(&self.path(tail), body)
    }

    /// The box record.
    pub fn data(&self) -> Value {
        self.get("").ok()
    }

    /// The status text.
    pub fn status(&self) -> String {
        let data = self.get("/status").ok();
        data["status"].as_str().unwrap_or_else(|| panic!("no status in {data}")).to_owned()
    }

    /// Runs an argv to its end.
    pub fn exec(&self, argv: &[&str]) -> Exec {
        exec_result(&self.post("/exec", &json!({ "command": argv })).ok())
    }

    /// Runs a shell line to its end.
    pub fn sh(&self, line: &str) -> Exec {
        self.exec(&["sh", "-c", line])
    }

    /// Runs a shell line that must succeed; its output, trimmed.
    pub fn out(&self, line: &str) -> String {
        let result = self.sh(line);
        assert!(result.code == 0, "{line:?} in {}: {result:?}", self.id);
        result.stdout.trim().to_owned()
    }

    /// Runs Python code to its end.
    pub fn python(&self, code: &str) -> Exec {
        self.exec(&["python3", "-c", code])
    }

    /// Runs Python code that must succeed; its output, trimmed.
    pub fn python_out(&self, code: &str) -> String {
        let result = self.python(code);
        assert!(result.code == 0, "python in {}: {result:?}\n{code}", self.id);
        result.stdout.trim().to_owned()
    }

    /// Starts a command whose output is streamed; the answer's head has been read.
    pub fn stream(&self, argv: &[&str]) -> reqwest::blocking::Response {
        let request = self.api.build("POST", &self.path("/exec-stream"));
        let body = json!({ "command": argv }).to_string();
        let response = request.header("content-type", "application/json").body(body).send().expect("exec-stream");
        assert!(response.status().is_success(), "exec-stream: {}", response.status());
        response
    }

    /// Writes a text file.
    pub fn write(&self, path: &str, content: &str) {
        self.post("/files/write", &json!({ "path": path, "content": content })).ok();
    }

    /// Reads a text file.
    pub fn read(&self, path: &str) -> String {
        let data = self.get(&format!("/files/read?path={}", encode(path))).ok();
        data["content"].as_str().unwrap_or_else(|| panic!("no content in {data}")).to_owned()
    }

    /// Freezes the box now.
    pub fn pause(&self) {
        self.api.post_empty(&self.path("/pause")).ok();
    }

    /// Wakes the box.
    pub fn resume(&self) {
        self.api.post_empty(&self.path("/resume")).ok();
    }

    /// Deletes the box for good.
    pub fn delete(&self) {
        self.api.delete(&self.path("")).ok();
    }

    /// The runs, newest first, with all that is known of them.
    pub fn runs(&self) -> Vec<Value> {
        let data = self.api.get(&format!("/v1/boxes/{}/runs", self.id)).ok();
        data["runs"].as_array().unwrap_or_else(|| panic!("no runs in {data}")).clone()
    }

    /// The bill of this box.
    pub fn bill(&self) -> Value {
        self.api.get(&format!("/v1/boxes/{}/usage", self.id)).ok()
    }

    /// Billed CPU time in microseconds.
    pub fn billed_usec(&self) -> u64 {
        let bill = self.bill();
        bill["cpu_usec"].as_u64().unwrap_or_else(|| panic!("no cpu_usec in {bill}"))
    }
}

fn exec_result(data: &Value) -> Exec {
    let text = |name: &str| data[name].as_str().unwrap_or_default().to_owned();
    let code = data["exit_code"].as_i64().unwrap_or_else(|| panic!("no exit code in {data}"));
    Exec { code, stdout: text("output"), stderr: text("error") }
}

/// Splits the body of an exec stream into its output and the data of its one trailer.
pub fn split_stream(body: &[u8]) -> (Vec<u8>, Value) {
    const MARK: &[u8] = b"event: exit\ndata: ";
    let at = body.windows(MARK.len()).rposition(|w| w == MARK);
    let at = at.unwrap_or_else(|| panic!("no exit trailer in {:?}", String::from_utf8_lossy(tail(body))));
    let data = &body[at + MARK.len()..];
    assert!(data.ends_with(b"\n\n"), "the trailer ends in a blank line");
    let data = serde_json::from_slice(data).expect("the trailer is JSON");
    (body[..at].to_vec(), data)
}

fn tail(body: &[u8]) -> &[u8] {
    &body[body.len().saturating_sub(400)..]
}

/// Reads a stream until `wanted` was seen, and returns what was read.
pub fn read_until(reader: &mut impl Read, wanted: &str) -> String {
    let mut seen = Vec::new();
    let mut chunk = [0_u8; 4096];
    while !String::from_utf8_lossy(&seen).contains(wanted) {
        let count = reader.read(&mut chunk).unwrap_or_else(|e| panic!("reading for {wanted:?}: {e}"));
        assert!(count > 0, "the stream ended before {wanted:?}: {:?}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&chunk[..count]);
    }
    String::from_utf8_lossy(&seen).into_owned()
}

/// Percent-encodes a query value.
pub fn encode(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte as char),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
