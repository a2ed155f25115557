//! Tests of memory growth and speed.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Response;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

/// Requests before the first memory measurement, and again before the second.
const WARM: usize = 2_000;
const ALL: usize = 12_000;
/// Allowed growth between both; a kilobyte per request would be ten times as much.
const GROWTH_BYTES_MAX: usize = 1 << 20;

/// Private memory of this process.
fn memory() -> usize {
    let text = std::fs::read_to_string("/proc/self/status").expect("status");
    let line = text.lines().find(|line| line.starts_with("RssAnon:")).expect("RssAnon");
    line.split_whitespace().nth(1).expect("a number").parse::<usize>().expect("a number") * 1024
}

async fn world() -> World {
    let world = World::new(BoxPolicy::AllowAll, Some(json!({"api.example": {"authorization": "hidden"}}))).await;
    let tls = world.outside.server("api.example");
    world
        .serve_http(443, Some(tls), |_| async {
            Response::new(Full::from(Bytes::from_static(b"answer")).map_err(|never| match never {}).boxed())
        })
        .await;
    world
}

async fn request(stream: &mut (impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin)) {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: api.example\r\n\r\n").await.expect("write");
    let (mut seen, mut buffer) = (Vec::with_capacity(1024), [0; 1024]);
    while !seen.ends_with(b"answer") {
        let count = stream.read(&mut buffer).await.expect("read");
        assert!(count > 0, "it ended: {}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buffer[..count]);
    }
}

/// Measures the memory of the whole process: nextest, the project's test runner, gives each test its own.
#[tokio::test]
async fn requests_leave_nothing_behind() {
    let world = world().await;
    let mut before = 0;
    let mut tls = world.dial_tls(443, "api.example").await.expect("TLS");
    for number in 0..ALL {
        if number == WARM {
            before = memory();
        }
        // Several requests per connection, on several connections.
        if number % 100 == 0 {
            tls = world.dial_tls(443, "api.example").await.expect("TLS");
        }
        request(&mut tls).await;
    }
    let grown = memory().saturating_sub(before);
    assert!(grown < GROWTH_BYTES_MAX, "{grown} bytes after {} requests", ALL - WARM);
    assert_eq!(world.egress.counters().requests, ALL as u64);
    drop(tls);
    while world.egress.counters().open > 0 {
        tokio::task::yield_now().await;
    }
}
