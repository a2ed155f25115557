//! A small HTTP/1.1 client over one kept connection: what a client library does at best, without its own cost.
//!
//! It knows Content-Length and chunked bodies and nothing else: no redirects, no compression, no TLS.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

use super::context::failed;
use crate::error::Result;

/// How long one answer may take.
const ANSWER_TIMEOUT_S: u64 = 120;
/// The largest answer that a benchmark expects.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// One kept connection.
pub(super) struct Client {
    address: String,
    key: String,
    connection: Option<BufReader<TcpStream>>,
}

impl Client {
    /// `url` is `http://host:port`.
    pub(super) fn new(url: &str, key: &str) -> Self {
        let address = url.trim_start_matches("http://").trim_end_matches('/').to_owned();
        Self { address, key: key.to_owned(), connection: None }
    }

    /// Sends a request and returns the JSON of a 2xx answer (null for an empty one).
    pub(super) fn call(&mut self, method: &'static str, path: &str, body: &str) -> Result<Value> {
        let (status, answer) = self.exchange(method, path, body).map_err(|e| failed(method, path, e))?;
        let text = String::from_utf8_lossy(&answer);
        if !(200..300).contains(&status) {
            return Err(failed(method, path, format!("{status} {text}")));
        }
        if text.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).map_err(|e| failed(method, path, e))
    }

    fn exchange(&mut self, method: &str, path: &str, body: &str) -> std::io::Result<(u16, Vec<u8>)> {
        // iceboxd closes a connection that was idle for long, as any server does.
        let mut connection = match self.connection.take().filter(is_open) {
            Some(connection) => connection,
            None => connect(&self.address)?,
        };
        let kind = if body.is_empty() { "" } else { "content-type: application/json\r\n" };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nx-box-api-key: {}\r\n{kind}content-length: {}\r\n\r\n{body}",
            self.address,
            self.key,
            body.len()
        );
        connection.get_mut().write_all(request.as_bytes())?;
        let (status, answer, keep) = read_answer(&mut connection)?;
        self.connection = keep.then_some(connection);
        Ok((status, answer))
    }
}

fn connect(address: &str) -> std::io::Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(ANSWER_TIMEOUT_S)))?;
    Ok(BufReader::new(stream))
}

/// True unless the server has closed it: between two requests nothing is to be read, not even an end.
fn is_open(connection: &BufReader<TcpStream>) -> bool {
    let stream = connection.get_ref();
    let nothing = |e: std::io::Error| e.kind() == std::io::ErrorKind::WouldBlock;
    let is_open = stream.set_nonblocking(true).is_ok() && stream.peek(&mut [0]).is_err_and(nothing);
    is_open && stream.set_nonblocking(false).is_ok()
}

fn invalid(what: &str) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, what.to_owned())
}

fn line(reader: &mut impl BufRead) -> std::io::Result<String> {
    let mut text = String::new();
    if reader.take(64 << 10).read_line(&mut text)? == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(text.trim_end().to_owned())
}

/// Reads status, headers and body; tells whether the connection may be used again.
fn read_answer(reader: &mut impl BufRead) -> std::io::Result<(u16, Vec<u8>, bool)> {
    let head = line(reader)?;
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(|| invalid("no status line"))?;
    let (mut length, mut chunked, mut keep) = (0_usize, false, true);
    loop {
        let header = line(reader)?.to_ascii_lowercase();
        let Some((name, value)) = header.split_once(':') else {
            if header.is_empty() {
                break;
            }
            return Err(invalid("a header without colon"));
        };
        match (name, value.trim()) {
            ("content-length", value) => length = value.parse().map_err(|_| invalid("content-length"))?,
            ("transfer-encoding", "chunked") => chunked = true,
            ("connection", "close") => keep = false,
            _ => {}
        }
    }
    let mut body = Vec::new();
    if chunked {
        loop {
            let size = usize::from_str_radix(line(reader)?.trim(), 16).map_err(|_| invalid("chunk size"))?;
            read_exactly(reader, size, &mut body)?;
            line(reader)?;
            if size == 0 {
                break;
            }
        }
    } else {
        read_exactly(reader, length, &mut body)?;
    }
    Ok((status, body, keep))
}

fn read_exactly(reader: &mut impl BufRead, size: usize, body: &mut Vec<u8>) -> std::io::Result<()> {
    let start = body.len();
    if start + size > ANSWER_BYTES_MAX {
        return Err(invalid("the answer is too large"));
    }
    body.resize(start + size, 0);
    reader.read_exact(&mut body[start..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_the_server_has_closed_is_replaced() {
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = Client::new(&format!("http://{}", server.local_addr().unwrap()), "key");
        let serving = std::thread::spawn(move || {
            // Each answer promises to keep the connection, and then it is closed.
            for _ in 0..2 {
                let mut stream = BufReader::new(server.accept().unwrap().0);
                while !line(&mut stream).unwrap().is_empty() {}
                stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n7").unwrap();
            }
        });
        assert_eq!(client.call("GET", "/", "").unwrap(), 7);
        // The end of the connection arrives.
        let kept = client.connection.as_ref().unwrap().get_ref();
        assert_eq!(kept.peek(&mut [0]).unwrap(), 0);
        assert_eq!(client.call("GET", "/", "").unwrap(), 7);
        serving.join().unwrap();
    }

    #[test]
    fn reads_lengths_chunks_and_errors() {
        let mut plain: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokrest";
        assert_eq!(read_answer(&mut plain).unwrap(), (200, b"ok".to_vec(), true));
        assert_eq!(plain, b"rest");
        let mut chunked: &[u8] =
            b"HTTP/1.1 201 Created\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n";
        assert_eq!(read_answer(&mut chunked).unwrap(), (201, b"abcd".to_vec(), false));
        for bad in
            ["", "HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab", "HTTP/1.1 200 OK\r\nx\r\n\r\n"]
        {
            assert!(read_answer(&mut bad.as_bytes()).is_err(), "{bad:?}");
        }
    }
}
