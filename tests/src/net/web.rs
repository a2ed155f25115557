//! Web servers of the world. They are every name and every address, with or without TLS, and keep a list of what was
//! asked.
//!
//! | path | answer |
//! |---|---|
//! | a file that a test has put there | the file |
//! | `/headers` | the headers that came, as JSON pairs |
//! | `/echo` | the body that came |
//! | `/bytes/N` | N bytes |
//! | `/chunks/N` | N lines, each a chunk of its own |
//! | `/redirect?URL` | a redirect there |
//! | `/upgrade` | 101, then every byte comes back |
//! | anything else | `hello from HOST at ADDRESS` |

use std::collections::HashMap;
use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::http::{Request, reply};
use super::pki::Authority;
use super::{DEADLINE, listen};
use crate::netns::Netns;

/// Ports without TLS.
pub const HTTP_PORTS: [u16; 2] = [80, 8080];
/// Ports with TLS.
pub const HTTPS_PORTS: [u16; 2] = [443, 8443];
/// Bytes written at once.
const BLOCK_BYTES: usize = 64 << 10;

/// A request that came.
#[derive(Debug, Clone)]
pub struct Visit {
    /// Address and port it came to.
    pub to: SocketAddr,
    /// The name asked for in TLS.
    pub sni: Option<String>,
    /// Whether it came by TLS.
    pub tls: bool,
    /// The request.
    pub request: Request,
}

#[derive(Debug, Default)]
struct Shared {
    files: Mutex<HashMap<String, Vec<u8>>>,
    visits: Mutex<Vec<Visit>>,
}

/// The servers.
#[derive(Debug, Clone, Default)]
pub struct Web {
    shared: Arc<Shared>,
}

impl Web {
    /// Servers on all addresses of a namespace.
    #[must_use]
    pub fn start(namespace: &Netns, authority: &Authority) -> Self {
        let web = Self::default();
        for port in HTTP_PORTS {
            web.serve(namespace, port, None);
        }
        for port in HTTPS_PORTS {
            web.serve(namespace, port, Some(authority.server_config()));
        }
        web
    }

    /// Puts a file at a path of a host.
    pub fn put(&self, host: &str, path: &str, content: impl Into<Vec<u8>>) {
        let mut files = self.shared.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.insert(format!("{host}{path}"), content.into());
    }

    /// All requests until now.
    #[must_use]
    pub fn visits(&self) -> Vec<Visit> {
        self.shared.visits.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The requests for a host, by its header.
    #[must_use]
    pub fn visits_of(&self, host: &str) -> Vec<Visit> {
        let is_it = |v: &Visit| v.request.header("host").is_some_and(|h| h.split(':').next() == Some(host));
        self.visits().into_iter().filter(is_it).collect()
    }

    fn serve(&self, namespace: &Netns, port: u16, tls: Option<Arc<ServerConfig>>) {
        let listener = listen(namespace, port);
        let web = self.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { continue };
                let (web, tls) = (web.clone(), tls.clone());
                thread::spawn(move || web.converse(stream, tls));
            }
        });
    }

    fn converse(&self, stream: TcpStream, tls: Option<Arc<ServerConfig>>) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(6 * DEADLINE))?;
        let to = stream.local_addr()?;
        let Some(config) = tls else { return self.answer_all(stream, to, None, false) };
        let connection = ServerConnection::new(config).map_err(std::io::Error::other)?;
        let mut stream = StreamOwned::new(connection, stream);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        let sni = stream.conn.server_name().map(str::to_owned);
        self.answer_all(stream, to, sni, true)
    }

    fn answer_all(
        &self,
        stream: impl Read + Write,
        to: SocketAddr,
        sni: Option<String>,
        tls: bool,
    ) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        while let Some(request) = Request::read(&mut stream)? {
            let visit = Visit { to, sni: sni.clone(), tls, request: request.clone() };
            self.shared.visits.lock().unwrap_or_else(PoisonError::into_inner).push(visit);
            if request.target == "/upgrade" {
                let protocol = request.header("upgrade").unwrap_or("echo");
                let head =
                    format!("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: {protocol}\r\n\r\n");
                stream.get_mut().write_all(head.as_bytes())?;
                return echo(&mut stream);
            }
            self.answer(&request, to, stream.get_mut())?;
            if request.header("connection").is_some_and(|v| v.eq_ignore_ascii_case("close")) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn answer(&self, request: &Request, to: SocketAddr, writer: &mut impl Write) -> std::io::Result<()> {
        let host = request.header("host").unwrap_or_default();
        let name = host.split(':').next().unwrap_or_default();
        // apt asks for `/./Packages`.
        let path = request.target.split('?').next().unwrap_or_default().replace("/./", "/");
        let file =
            self.shared.files.lock().unwrap_or_else(PoisonError::into_inner).get(&format!("{name}{path}")).cloned();
        if let Some(file) = file {
            let kind = match file.first() {
                Some(b'<') => "text/html",
                Some(b'{') => "application/json",
                _ => "application/octet-stream",
            };
            return reply(writer, "200 OK", &format!("content-type: {kind}\r\n"), &file);
        }
        if let Some(size) = path.strip_prefix("/bytes/").and_then(|n| n.parse().ok()) {
            return bytes(writer, size);
        }
        if let Some(count) = path.strip_prefix("/chunks/").and_then(|n| n.parse().ok()) {
            return chunks(writer, count);
        }
        match path.as_str() {
            "/headers" => {
                let json = serde_json::to_vec(&request.headers).expect("JSON");
                reply(writer, "200 OK", "content-type: application/json\r\n", &json)
            }
            "/echo" => reply(writer, "200 OK", "", &request.body),
            "/redirect" => {
                let there = request.target.split_once('?').map_or("/", |(_, url)| url);
                reply(writer, "302 Found", &format!("location: {there}\r\n"), b"")
            }
            "/missing" => reply(writer, "404 Not Found", "", b"no such file\n"),
            _ if path.contains('.') || path.contains("info/refs") => {
                reply(writer, "404 Not Found", "", b"no such file\n")
            }
            _ => reply(writer, "200 OK", "", format!("hello from {host} at {}\n", to.ip()).as_bytes()),
        }
    }
}

fn echo(stream: &mut BufReader<impl Read + Write>) -> std::io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        stream.get_mut().write_all(&buffer[..length])?;
        stream.get_mut().flush()?;
    }
}

fn bytes(writer: &mut impl Write, size: usize) -> std::io::Result<()> {
    write!(writer, "HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n")?;
    let block = [b'x'; BLOCK_BYTES];
    let mut left = size;
    while left > 0 {
        let now = left.min(block.len());
        writer.write_all(&block[..now])?;
        left -= now;
    }
    writer.flush()
}

fn chunks(writer: &mut impl Write, count: usize) -> std::io::Result<()> {
    write!(writer, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
    for number in 0..count {
        let line = format!("line {number}\n");
        write!(writer, "{:x}\r\n{line}\r\n", line.len())?;
        writer.flush()?;
    }
    writer.write_all(b"0\r\n\r\n")?;
    writer.flush()
}
