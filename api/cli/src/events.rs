//! Events as they happen: `icebox events`.

use reqwest::{Method, header};
use serde_json::Value;

use super::args_more::EventsArgs;
use super::client::{Client, Patience};
use super::error::Error;
use super::human;
use super::output::Output;

/// Longest record. The server's are far shorter.
const RECORD_BYTES_MAX: usize = 1024 * 1024;
const READ: &str = "read the events";

/// `icebox events`. Ends when the server ends the stream, which is a failure.
pub(crate) async fn events(client: &Client, output: &Output, events: EventsArgs) -> Result<(), Error> {
    let mut query = Vec::new();
    query.extend(events.name.map(|name| ("box", name)));
    if !events.types.is_empty() {
        query.push(("type", events.types.join(",")));
    }
    let mut request = client.request(Method::GET, &["v1", "events"], Patience::Work).query(&query);
    request = request.header(header::ACCEPT, "text/event-stream");
    if let Some(after) = events.after {
        request = request.header("Last-Event-ID", after);
    }
    let mut answer = client.send(request).await?;
    let mut records = Records::default();
    let broken = |cause: reqwest::Error| Error::transport(READ, &client.access().url, cause.without_url());
    while let Some(piece) = answer.chunk().await.map_err(broken)? {
        for record in records.push(&piece)? {
            match record.name.as_str() {
                "end" => {
                    let reason = record.data["reason"].as_str().unwrap_or_default();
                    return Err(Error::protocol(READ, format!("the server ended them: {}", human::plain(reason))));
                }
                _ if output.is_json() => output.json_line(&record.data)?,
                "lost" => output.line("some events are lost")?,
                _ => output.line(&event_line(&record))?,
            }
        }
    }
    Err(Error::protocol(READ, "the server closed the connection"))
}

/// A record of Server-Sent Events.
#[derive(Debug, PartialEq)]
struct Record {
    name: String,
    data: Value,
}

/// Splits a stream into records.
#[derive(Debug, Default)]
struct Records {
    pending: Vec<u8>,
}

impl Records {
    /// Adds bytes; returns the records that are whole now. Comments and records without data are left out.
    fn push(&mut self, piece: &[u8]) -> Result<Vec<Record>, Error> {
        self.pending.extend_from_slice(piece);
        let mut whole = Vec::new();
        while let Some(end) = self.pending.windows(2).position(|two| two == b"\n\n") {
            let text = String::from_utf8_lossy(&self.pending[..end]).into_owned();
            self.pending.drain(..end + 2);
            whole.extend(record(&text)?);
        }
        if self.pending.len() > RECORD_BYTES_MAX {
            return Err(Error::protocol(READ, "a record is too long"));
        }
        Ok(whole)
    }
}

fn record(text: &str) -> Result<Option<Record>, Error> {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.strip_prefix(' ').unwrap_or(line))
    };
    let Some(data) = field("data") else { return Ok(None) };
    let data = serde_json::from_str(data).map_err(|cause| Error::protocol(READ, format!("no JSON ({cause})")))?;
    Ok(Some(Record { name: field("event").unwrap_or("message").to_owned(), data }))
}

/// An event for people: time, box, type, and the data as `name=value`.
fn event_line(record: &Record) -> String {
    let text = |key: &str| record.data[key].as_str().unwrap_or("-").to_owned();
    let at = human::moment(record.data["at_ms"].as_i64().unwrap_or(0).div_euclid(1000));
    let mut line = format!("{at}  {:24} {:22}", text("box_id"), record.name);
    for (name, value) in record.data["data"].as_object().into_iter().flatten() {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        line.push_str(&format!(" {name}={value}"));
    }
    human::plain(line.trim_end())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn records_are_found_wherever_the_stream_is_cut() {
        let stream = ": events follow\nid: 1-0\n\nid: 1-1\nevent: box.frozen\ndata: {\"at_ms\":1000,\"box_id\":\"b\",\
                      \"data\":{\"idle_seconds\":5}}\n\n:\n\nevent: lost\ndata:{\"up_to\":\"1-9\"}\n\n";
        for cut in 0..stream.len() {
            let mut records = Records::default();
            let mut found = records.push(&stream.as_bytes()[..cut]).expect("records");
            found.extend(records.push(&stream.as_bytes()[cut..]).expect("records"));
            let names: Vec<&str> = found.iter().map(|record| record.name.as_str()).collect();
            assert_eq!(names, ["box.frozen", "lost"], "{cut}");
            let line = event_line(&found[0]);
            assert!(line.starts_with("1970-01-01 00:00:01Z  b ") && line.ends_with(" idle_seconds=5"), "{line}");
        }
    }

    #[test]
    fn an_endless_record_is_refused() {
        let mut records = Records::default();
        assert!(records.push(&vec![b'x'; RECORD_BYTES_MAX + 1]).is_err());
        assert_eq!(record("data: [1]").expect("a record"), Some(Record { name: "message".into(), data: json!([1]) }));
    }
}
