//! HTTP/1.1 as far as the world's servers need it: requests are read from any stream, and answered.

use std::io::{BufRead, Read, Write};

/// Longest head that is read.
const HEAD_BYTES_MAX: u64 = 64 << 10;
/// Longest body that is kept.
const BODY_BYTES_MAX: usize = 64 << 20;

/// A request.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The method.
    pub method: String,
    /// The target as it was sent.
    pub target: String,
    /// Headers in their order; names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Request {
    /// The first header of a name (in lower case).
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// Reads the next one. None at the end of the stream.
    pub fn read(reader: &mut impl BufRead) -> std::io::Result<Option<Self>> {
        let Some(first) = line(reader)? else { return Ok(None) };
        let mut words = first.split(' ');
        let mut word = || words.next().unwrap_or_default().to_owned();
        let mut request = Self { method: word(), target: word(), ..Self::default() };
        while let Some(text) = line(reader)?.filter(|text| !text.is_empty()) {
            if let Some((name, value)) = text.split_once(':') {
                request.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
            }
        }
        if request.header("expect").is_some_and(|v| v.eq_ignore_ascii_case("100-continue")) {
            // Not answered: clients send the body after a second anyway, and none of the world's do.
        }
        request.body = read_body(&request, reader)?;
        Ok(Some(request))
    }
}

fn read_body(request: &Request, reader: &mut impl BufRead) -> std::io::Result<Vec<u8>> {
    let mut body = Vec::new();
    if request.header("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
        loop {
            let size = line(reader)?.unwrap_or_default();
            let size = usize::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16)
                .map_err(|_| std::io::ErrorKind::InvalidData)?;
            read_more(reader, size, &mut body)?;
            line(reader)?;
            if size == 0 {
                return Ok(body);
            }
        }
    }
    let length = request.header("content-length").and_then(|v| v.parse().ok()).unwrap_or(0);
    read_more(reader, length, &mut body)?;
    Ok(body)
}

fn read_more(reader: &mut impl Read, size: usize, body: &mut Vec<u8>) -> std::io::Result<()> {
    let start = body.len();
    if start + size > BODY_BYTES_MAX {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    body.resize(start + size, 0);
    reader.read_exact(&mut body[start..])
}

fn line(reader: &mut impl BufRead) -> std::io::Result<Option<String>> {
    let mut bytes = Vec::new();
    if reader.take(HEAD_BYTES_MAX).read_until(b'\n', &mut bytes)? == 0 {
        return Ok(None);
    }
    Ok(Some(String::from_utf8_lossy(&bytes).trim_end_matches(['\r', '\n']).to_owned()))
}

/// Answers with a body.
pub fn reply(writer: &mut impl Write, status: &str, headers: &str, body: &[u8]) -> std::io::Result<()> {
    let head = format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n", body.len());
    writer.write_all(&[head.as_bytes(), body].concat())?;
    writer.flush()
}
