//! A server of one request per connection, whose answers a test writes byte by byte if it likes.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// A request that has come.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) target: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub(crate) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }
}

/// An answer.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
    /// The announced length, if it is another one.
    pub(crate) length: Option<u64>,
    /// The connection stays open after the body, silent, until the client closes it.
    pub(crate) hangs: bool,
    /// Bytes in place of all of this, again and again until the client closes the connection.
    pub(crate) endless: Option<(Vec<u8>, Vec<u8>)>,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), length: None, hangs: false, endless: None }
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// First these bytes, then those without end.
    pub(crate) fn endless(first: impl Into<Vec<u8>>, then: impl Into<Vec<u8>>) -> Self {
        Self { endless: Some((first.into(), then.into())), ..Self::new(200, "") }
    }
}

type Answers = dyn Fn(&Request) -> Reply + Send + Sync;

/// A server on the loopback interface; it ends with this.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

impl Server {
    pub(crate) fn start(answers: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
        let address = listener.local_addr().expect("an address");
        let (requests, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let answers: Arc<Answers> = Arc::new(answers);
        let (heard, ends) = (Arc::clone(&requests), Arc::clone(&stop));
        thread::spawn(move || {
            for stream in listener.incoming() {
                if ends.load(Ordering::SeqCst) {
                    break;
                }
                let (Ok(stream), answers, heard) = (stream, Arc::clone(&answers), Arc::clone(&heard)) else { continue };
                // A client that goes away is no failure of the server.
                thread::spawn(move || drop(serve(stream, &*answers, &heard)));
            }
        });
        Self { address, requests, stop }
    }

    /// Host and port, as names of images have them.
    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("no panic").clone()
    }

    /// Requests of this method whose path ends so.
    pub(crate) fn count(&self, method: &str, end: &str) -> usize {
        self.requests().iter().filter(|request| request.method == method && request.path().ends_with(end)).count()
    }
}

fn serve(stream: TcpStream, answers: &Answers, heard: &Mutex<Vec<Request>>) -> std::io::Result<()> {
    let mut first = [0];
    // The beginning of TLS: this server has none.
    if stream.peek(&mut first)? == 0 || first[0] == 0x16 {
        return Ok(());
    }
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = BTreeMap::new();
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            headers.insert(name.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = Vec::new();
    reader.take(length).read_to_end(&mut body)?;
    let request = Request { method, target, headers, body };
    heard.lock().expect("no panic").push(request.clone());
    send(stream, &request, answers(&request))
}

fn send(mut stream: TcpStream, request: &Request, reply: Reply) -> std::io::Result<()> {
    if let Some((first, then)) = reply.endless {
        stream.write_all(&first)?;
        loop {
            stream.write_all(&then)?;
        }
    }
    let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", reply.status);
    head.push_str(&format!("Content-Length: {}\r\n", reply.length.unwrap_or(reply.body.len() as u64)));
    for (name, value) in reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    if request.method != "HEAD" {
        stream.write_all(&reply.body)?;
    }
    if reply.hangs {
        let mut rest = [0; 16];
        while stream.read(&mut rest)? > 0 {}
    }
    Ok(())
}
