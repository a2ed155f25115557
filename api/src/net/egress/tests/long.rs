//! What must not grow, and how fast it is.

use std::time::Instant;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Response;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

/// Requests after which memory is looked at, and again after as many as the rest.
const WARM: usize = 2_000;
const ALL: usize = 12_000;
/// What memory may grow by meanwhile; a kilobyte for each request would be ten times as much.
const GROWTH_BYTES_MAX: usize = 1 << 20;

/// Memory of this process that is not shared.
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

/// In a process of its own: the memory of this one is that of other tests, too.
#[test]
fn requests_leave_nothing_behind() {
    let this = std::env::current_exe().expect("this program");
    let name = "net::egress::tests::long::alone_requests_leave_nothing_behind";
    let done = std::process::Command::new(this).args(["--exact", name, "--ignored", "--nocapture"]).output();
    let done = done.expect("run it");
    let text = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success() && text.contains("1 passed"), "{text}");
}

#[tokio::test]
#[ignore = "the test above runs it alone"]
async fn alone_requests_leave_nothing_behind() {
    let world = world().await;
    let mut before = 0;
    let mut tls = world.dial_tls(443, "api.example").await.expect("TLS");
    for number in 0..ALL {
        if number == WARM {
            before = memory();
        }
        // One connection has many requests, and there are many connections.
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

/// Measures by hand: `cargo test --release -p icebox-api --lib -- --ignored --nocapture how_fast`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it measures"]
async fn how_fast() {
    const REQUESTS: usize = 20_000;
    const MEGABYTES: usize = 4096;
    let world = world().await;
    let server = world.way.0.lock().unwrap().servers[&SocketAddrV4::new(SITE, 443)];
    let direct = TcpStream::connect(server).await.expect("connect");
    let name = ServerName::try_from("api.example").expect("name");
    let mut direct = trusting(&world.outside.pem).connect(name, direct).await.expect("TLS");
    let mut proxied = world.dial_tls(443, "api.example").await.expect("TLS");
    for round in 0..2 {
        let (d, p) = (rate(&mut direct, REQUESTS).await, rate(&mut proxied, REQUESTS).await);
        println!("round {round}: direct {d}; with headers {p}");
    }
    world.serve_echo(SITE, 9000).await;
    let sink = world.serve(OTHER, 9000).await;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = sink.accept().await {
            tokio::spawn(async move {
                let mut buffer = vec![0; 1 << 18];
                while stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {}
            });
        }
    });
    let sink = world.way.0.lock().unwrap().servers[&SocketAddrV4::new(OTHER, 9000)];
    for round in 0..2 {
        let direct = throughput(TcpStream::connect(sink).await.expect("connect"), MEGABYTES).await;
        let spliced = throughput(world.dial(OTHER, 9000).await, MEGABYTES).await;
        println!("round {round}: direct {direct:.0} MB/s; spliced {spliced:.0} MB/s");
    }
}

async fn rate(stream: &mut (impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin), requests: usize) -> String {
    let mut times = Vec::with_capacity(requests);
    let begun = Instant::now();
    for _ in 0..requests {
        let one = Instant::now();
        request(stream).await;
        times.push(one.elapsed());
    }
    let rate = requests as f64 / begun.elapsed().as_secs_f64();
    times.sort_unstable();
    format!("{rate:.0}/s, p50 {:?}, p99 {:?}", times[requests / 2], times[requests * 99 / 100])
}

async fn throughput(mut stream: TcpStream, megabytes: usize) -> f64 {
    let megabyte = vec![7; 1 << 20];
    let begun = Instant::now();
    for _ in 0..megabytes {
        stream.write_all(&megabyte).await.expect("write");
    }
    stream.shutdown().await.expect("shutdown");
    let _ = stream.read(&mut [0; 1]).await;
    megabytes as f64 * 1.048_576 / begun.elapsed().as_secs_f64()
}
