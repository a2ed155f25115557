//! A visitor of public URLs: HTTP by hand over a socket, so that a test can send what no well-behaved client sends.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::api::TestBox;
use crate::wait::wait_until;

/// How long a visitor waits for the next bytes, unless it is told otherwise.
const PATIENCE: Duration = Duration::from_secs(60);
/// The server that tests start in boxes.
const SERVER: &str = include_str!("visit/server.py");

/// A public URL of a box.
#[derive(Debug, Clone)]
pub struct Url {
    /// `host:port` of the listener.
    pub address: String,
    /// The host name of the box's port.
    pub host: String,
    /// What was answered when it was made.
    pub made: Value,
}

impl Url {
    /// Makes the URL of a port.
    pub fn open(made: &TestBox, port: u16, options: &Value) -> Self {
        let mut body = options.clone();
        body["port"] = json!(port);
        let answer = made.post("/preview", &body).ok();
        let url = answer["host_url"].as_str().expect("a url");
        let host = url.trim_start_matches("http://").trim_start_matches("https://").trim_end_matches('/').to_owned();
        let address = made.api.base().trim_start_matches("http://").to_owned();
        Self { address, host, made: answer }
    }

    /// The headers that open it with its token.
    pub fn bearer(&self) -> String {
        format!("Authorization: Bearer {}\r\n", self.made["token"].as_str().expect("a token"))
    }

    /// A GET whose answer is read to its end.
    pub fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, "")
    }

    /// A request without a body; `headers` are whole lines.
    pub fn ask(&self, method: &str, path: &str, headers: &str) -> Answer {
        let mut visitor = Visitor::new(&self.address);
        visitor.send(&format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{headers}\r\n", self.host));
        visitor.answer(method)
    }

    /// Opens a WebSocket.
    pub fn websocket(&self, headers: &str) -> Socket {
        let mut visitor = Visitor::new(&self.address);
        visitor.send(&format!(
            "GET /ws HTTP/1.1\r\nHost: {}\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: \
             13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n",
            self.host
        ));
        let answer = visitor.head();
        assert_eq!(answer.status, 101, "{answer:?}");
        assert_eq!(answer.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        Socket { visitor }
    }
}

/// Starts the test server in a box and waits until it listens.
pub fn serve(made: &TestBox, port: u16) {
    serve_at(made, port, "127.0.0.1");
}

/// As [`serve`], at an address of the box.
pub fn serve_at(made: &TestBox, port: u16, host: &str) {
    made.write("/tmp/server.py", SERVER);
    made.out(&format!("setsid python3 /tmp/server.py {port} {host} >/tmp/server.log 2>&1 & echo started"));
    let probe = format!(
        "import socket; s = socket.socket(socket.AF_INET6 if ':' in '{host}' else socket.AF_INET); s.connect(('{host}', {port}))"
    );
    wait_until(PATIENCE, "the server in the box", || made.python(&probe).code == 0);
}

/// An answer.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Headers, names in lower case; trailers come last.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// What the test server says it has got of a header; panics if it has got it twice.
    pub fn told(&self, name: &str) -> Option<String> {
        let told = self.json();
        let headers = told["headers"].as_array().unwrap_or_else(|| panic!("{told}")).clone();
        let mut found = headers.iter().filter(|header| header[0] == name).map(|header| header[1].as_str());
        let first = found.next().flatten().map(str::to_owned);
        assert!(found.next().is_none(), "{name} twice: {told}");
        first
    }
}

/// A connection.
#[derive(Debug)]
pub struct Visitor {
    stream: TcpStream,
    read: VecDeque<u8>,
}

impl Visitor {
    /// Connects to a listener, `host:port`.
    pub fn new(address: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap_or_else(|e| panic!("connect to {address}: {e}"));
        stream.set_nodelay(true).expect("no delay");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        Self { stream, read: VecDeque::new() }
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, text: &str) {
        self.send_bytes(text.as_bytes());
    }

    /// Sends bytes as they are.
    pub fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("send");
    }

    /// As [`Visitor::send`], but the other side may have closed already.
    pub fn try_send(&mut self, text: &str) {
        let _ = self.stream.write_all(text.as_bytes());
    }

    /// Sets how long it waits for bytes.
    pub fn patience(&mut self, patience: Duration) {
        self.stream.set_read_timeout(Some(patience)).expect("a time limit");
    }

    /// More bytes, if there are any before the end.
    fn fill(&mut self) -> bool {
        let mut chunk = [0; 65536];
        match self.stream.read(&mut chunk) {
            Ok(count) => {
                self.read.extend(&chunk[..count]);
                count > 0
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => false,
            Err(error) => {
                let some: Vec<u8> = self.read.iter().copied().take(200).collect();
                panic!("read: {error}; {} bytes so far: {:?}", self.read.len(), String::from_utf8_lossy(&some))
            }
        }
    }

    /// Whether the other side closes, and says nothing before it does.
    pub fn is_closed(&mut self) -> bool {
        self.read.is_empty() && !self.fill()
    }

    /// Nothing comes for a while.
    pub fn is_silent(&mut self, window: Duration) -> bool {
        self.stream.set_read_timeout(Some(window)).expect("a time limit");
        let read = self.stream.peek(&mut [0; 1]);
        self.stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        self.read.is_empty() && read.is_err_and(|e| matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
    }

    fn line(&mut self) -> String {
        loop {
            if let Some(at) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=at).collect();
                return String::from_utf8_lossy(&line).trim_end().to_owned();
            }
            assert!(self.fill(), "the connection ended within a line: {:?}", self.read);
        }
    }

    /// Exactly so many bytes.
    pub fn exactly(&mut self, count: usize) -> Vec<u8> {
        while self.read.len() < count {
            assert!(self.fill(), "the connection ended {} bytes early", count - self.read.len());
        }
        self.read.drain(..count).collect()
    }

    /// The head of an answer. Interim answers are passed over.
    pub fn head(&mut self) -> Answer {
        loop {
            let answer = self.any_head();
            if !(100..200).contains(&answer.status) || answer.status == 101 {
                return answer;
            }
        }
    }

    /// The head of an answer, interim or not.
    pub fn any_head(&mut self) -> Answer {
        let first = self.line();
        let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no status line: {first:?}"));
        Answer { status, headers: self.fields(), body: Vec::new() }
    }

    fn fields(&mut self) -> Vec<(String, String)> {
        let mut fields = Vec::new();
        loop {
            let line = self.line();
            if line.is_empty() {
                return fields;
            }
            let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("no header: {line:?}"));
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    /// A chunk of a chunked body; nothing at its end.
    pub fn chunk(&mut self) -> Vec<u8> {
        let size = self.line();
        let size = usize::from_str_radix(&size, 16).unwrap_or_else(|_| panic!("no chunk size: {size:?}"));
        let data = self.exactly(size);
        if size > 0 {
            assert_eq!(self.line(), "");
        }
        data
    }

    /// An answer to its end.
    pub fn answer(&mut self, method: &str) -> Answer {
        let mut answer = self.head();
        if method == "HEAD" || matches!(answer.status, 101 | 204 | 304) {
            return answer;
        }
        if answer.header("transfer-encoding") == Some("chunked") {
            loop {
                let chunk = self.chunk();
                if chunk.is_empty() {
                    let trailers = self.fields();
                    answer.headers.extend(trailers);
                    return answer;
                }
                answer.body.extend(chunk);
            }
        }
        match answer.header("content-length").map(|length| length.parse().expect("a length")) {
            Some(length) => answer.body = self.exactly(length),
            None => {
                while self.fill() {}
                answer.body = self.read.drain(..).collect();
            }
        }
        answer
    }
}

/// A WebSocket of the test server, which sends back what it gets.
#[derive(Debug)]
pub struct Socket {
    visitor: Visitor,
}

impl Socket {
    /// Sends a message.
    pub fn send(&mut self, data: &[u8]) {
        let mask = [1, 2, 3, 4];
        let size = u16::try_from(data.len()).expect("a short message");
        let mut frame = vec![0x82];
        if size < 126 {
            frame.push(0x80 | size.to_be_bytes()[1]);
        } else {
            frame.push(0x80 | 126);
            frame.extend(size.to_be_bytes());
        }
        frame.extend(mask);
        frame.extend(data.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        self.visitor.send_bytes(&frame);
    }

    /// The next message.
    pub fn receive(&mut self) -> Vec<u8> {
        let head = self.visitor.exactly(2);
        assert_eq!(head[0], 0x82, "a binary message");
        let size = match head[1] {
            126 => {
                let size = self.visitor.exactly(2);
                usize::from(u16::from_be_bytes([size[0], size[1]]))
            }
            size => usize::from(size),
        };
        self.visitor.exactly(size)
    }

    /// Sends a message and gets it back.
    pub fn echo(&mut self, data: &[u8]) {
        self.send(data);
        assert!(self.receive() == data, "another message came back");
    }

    /// The connection below.
    pub fn visitor(&mut self) -> &mut Visitor {
        &mut self.visitor
    }
}
